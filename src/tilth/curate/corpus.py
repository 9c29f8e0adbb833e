"""Decisions over the whole corpus, between the two passes: corpus rules, then the held-out part.

What they decide from is the index: a few numbers for each document that the document rules kept.
"""

import hashlib
from typing import Any

import numpy as np
import polars as pl

from tilth.curate import held_out as held
from tilth.curate.report import EXAMPLES
from tilth.curate.shards import ParquetOut, Plan, Shard, frames_of
from tilth.curate.shingles import ShingleSet
from tilth.data.records import SCHEMA, read_records
from tilth.recipe.files import writing


def decide(plan: Plan, shards: list[Shard]) -> list[pl.DataFrame]:
    """For each shard a frame with a row for each of its records: `dropped_by` and `why`, null where one stays."""
    index, ends = read_index(plan, shards)
    dropped_by = pl.Series("dropped_by", [None] * index.height, pl.String)
    why = pl.Series("why", [None] * index.height, pl.String)
    for rule in plan.corpus_rules:
        there = index.filter(dropped_by.is_null())
        original = rule.decide(there)
        rows = there["row"].filter(original.is_not_null())
        dropped_by = dropped_by.scatter(rows, rule.title()) if len(rows) else dropped_by
        first = original.drop_nulls().head(EXAMPLES)
        if len(first):
            names = record_ids(plan, first.to_list(), ends)
            why = why.scatter(rows.head(EXAMPLES), [f"repeats {name}" for name in names])
    if plan.held_out is not None:
        there = index.filter(dropped_by.is_null())
        chosen = there["row"].filter(pl.Series(held.choose(there, plan.held_out)))
        dropped_by = dropped_by.scatter(chosen, held.NAME)
    decisions = pl.DataFrame([dropped_by, why])
    starts = [0, *ends[:-1]]
    return [decisions.slice(start, end - start) for start, end in zip(starts, ends, strict=True)]


def read_index(plan: Plan, shards: list[Shard]) -> tuple[pl.DataFrame, list[int]]:
    """The index of all shards in order, with `row` (uint32), and the row at which each shard ends."""
    parts = [pl.read_parquet(plan.part(shard.number, "index")) for shard in shards]
    ends = np.cumsum([part.height for part in parts]).tolist()
    return pl.concat(parts).with_row_index("row"), ends


def record_ids(plan: Plan, rows: list[int], ends: list[int]) -> list[str]:
    """Ids of a few records by their row in the index."""
    ids = []
    for row in rows:
        shard = int(np.searchsorted(ends, row, "right"))
        within = row - (ends[shard - 1] if shard else 0)
        column = pl.scan_parquet(plan.part(shard, "records")).select("id").slice(within, 1).collect()
        ids.append(column.item())
    return ids


def write_held_out(plan: Plan, shards: list[Shard], decisions: list[pl.DataFrame]) -> dict[str, Any]:
    """Write `held_out.parquet` (if anything is held out) and its shingles; returns documents, bytes and sha256.

    The digest is that of all held-out texts in UTF-8, one after the other in the file's order.
    """
    if plan.held_out is None:
        return {"documents": 0, "bytes": 0, "sha256": None}
    path = plan.folder / "held_out.parquet"
    if not path.exists():
        _copy_held_out(plan, shards, decisions)
    digest, documents, size = hashlib.sha256(), 0, 0
    for batch in read_records(path):
        for text in batch.column("text").to_pylist():
            content = text.encode()
            digest.update(content)
            size += len(content)
        documents += batch.num_rows
    texts = pl.read_parquet(path, columns=["text"]).to_series()
    ShingleSet.of(texts, plan.held_out.shingle_words).save(plan.work / "shingles.npy")
    return {"documents": documents, "bytes": size, "sha256": digest.hexdigest()}


def _copy_held_out(plan: Plan, shards: list[Shard], decisions: list[pl.DataFrame]) -> None:
    with writing(plan.folder / "held_out.parquet") as file:
        out = ParquetOut(file, SCHEMA)
        for shard, decided in zip(shards, decisions, strict=True):
            held_rows = (decided["dropped_by"] == held.NAME).fill_null(False)
            done = 0
            for records in frames_of(plan.part(shard.number, "records")):
                out.write(records.filter(held_rows.slice(done, records.height)))
                done += records.height
        out.close(pl.DataFrame(schema=dict.fromkeys(SCHEMA.names, pl.String)))
