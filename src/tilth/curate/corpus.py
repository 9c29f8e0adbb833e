"""Decisions over the whole corpus, between the two passes: corpus rules, then the held-out part.

What they decide from is the index: a few numbers for each document that the document rules kept. It stays in files;
a rule reads the columns that it needs, one at a time where they are many.
"""

import hashlib
from collections.abc import Iterator
from copy import copy
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from tilth import __version__
from tilth.curate import held_out as held
from tilth.curate.report import EXAMPLES
from tilth.curate.rules import CorpusCut
from tilth.curate.shards import ParquetOut, Plan, Shard, frames_of, index_column, spans_column
from tilth.curate.shingles import ShingleSet
from tilth.curate.spans import flat, span_lists
from tilth.data.records import SCHEMA, read_records
from tilth.recipe.files import writing

BASE = ("source", "bytes", "draw")
CLUSTERS = pa.schema([("rule", pa.string()), ("cluster", pa.uint32()), ("id", pa.string()), ("kept", pa.bool_())],
                     metadata={"tilth_version": __version__})


class Index:
    """The index of all shards, of which columns are read when asked for; one rule's view of it.

    `alive` (bool, one for each record that the document rules kept) is shared by the views: rows that a rule dropped
    are not there for the next one.
    """

    def __init__(self, plan: Plan, shards: list[Shard]):
        self.files = [plan.part(shard.number, "index") for shard in shards]
        self.ends = np.cumsum([pq.read_metadata(file).num_rows for file in self.files]).tolist()
        self.alive = np.ones(self.ends[-1], bool)
        self.rule = -1

    def view(self, rule: int) -> "Index":
        """The index as the rule at this place sees it."""
        seen = copy(self)
        seen.rule = rule
        return seen

    @property
    def height(self) -> int:
        return int(self.alive.sum())

    def _stored(self, columns: tuple[str, ...]) -> list[str]:
        return [column if column in BASE else index_column(self.rule, column) for column in columns]

    def parts(self, *columns: str) -> Iterator[pl.DataFrame]:
        """Stored columns of the documents that are still there, a batch of the first pass at a time."""
        start = 0
        for file in self.files:
            with pq.ParquetFile(file) as parquet:
                for group in range(parquet.num_row_groups):
                    stored = self._stored(columns)
                    read = pl.DataFrame(pl.from_arrow(parquet.read_row_group(group, stored))).select(stored)
                    there = pl.Series(self.alive[start:start + read.height])
                    start += read.height
                    yield read.rename(dict(zip(stored, columns, strict=True))).filter(there)

    def select(self, *columns: str) -> pl.DataFrame:
        """Columns of the documents that are still there; `row` is their place in the whole index."""
        names = tuple(column for column in columns if column != "row")
        stored = self._stored(names)
        frame = pl.DataFrame({"row": np.arange(len(self.alive), dtype=np.uint32)})
        if stored:
            read = pl.read_parquet(self.files, columns=stored).select(stored)
            frame = frame.hstack(read.rename(dict(zip(stored, names, strict=True))))
        return frame.select(columns).filter(pl.Series(self.alive))


def decide(plan: Plan, shards: list[Shard]) -> tuple[list[pl.DataFrame], pl.DataFrame]:
    """For each shard a frame with a row for each of its records: `dropped_by` and `why`, null where one stays, and
    spans (see `spans_column`); and the clusters that rules found: `row`, `original` (the row of the document that
    stays) and `rule`."""
    index, clusters = Index(plan, shards), []
    dropped_by = pl.Series("dropped_by", [None] * len(index.alive), pl.String)
    why = pl.Series("why", [None] * len(index.alive), pl.String)
    for at, rule in enumerate(plan.corpus_rules):
        if isinstance(rule, CorpusCut):
            continue
        there = index.view(at)
        found = pl.DataFrame([there.select("row").to_series(), rule.decide(there).alias("original")]).drop_nulls()
        if not found.height:
            continue
        dropped_by = dropped_by.scatter(found["row"], rule.title())
        index.alive[found["row"].to_numpy()] = False
        clusters.append(found.with_columns(rule=pl.lit(rule.title())))
        names = record_ids(plan, found["original"].head(EXAMPLES).to_list(), index.ends)
        why = why.scatter(found["row"].head(EXAMPLES), [f"repeats {name}" for name in names])
    if plan.held_out is not None:
        left = index.select("row", *BASE)
        chosen = left["row"].filter(pl.Series(held.choose(left, plan.held_out)))
        dropped_by = dropped_by.scatter(chosen, held.NAME)
    spans = [_spans(index.view(at), rule, dropped_by).alias(spans_column(rule))
             for at, rule in enumerate(plan.corpus_rules) if isinstance(rule, CorpusCut)]
    decisions, starts = pl.DataFrame([dropped_by, why, *spans]), [0, *index.ends[:-1]]
    empty = pl.DataFrame(schema={"row": pl.UInt32, "original": pl.UInt32, "rule": pl.String})
    return [decisions.slice(start, end - start)
            for start, end in zip(starts, index.ends, strict=True)], pl.concat([empty, *clusters])


def _spans(index: Index, rule: CorpusCut, dropped_by: pl.Series) -> pl.Series:
    """The spans of a rule for all records; none in held-out documents if the rule cuts."""
    row_of, starts, ends = flat(rule.cut(index))
    row_of = np.flatnonzero(index.alive)[row_of]
    if rule.cuts:
        free = dropped_by.is_null().to_numpy()[row_of]
        row_of, starts, ends = row_of[free], starts[free], ends[free]
    return span_lists(len(index.alive), row_of, starts, ends)


def write_clusters(plan: Plan, shards: list[Shard], clusters: pl.DataFrame) -> None:
    """Write `clusters.parquet`: for each document of a cluster the rule that found it, the cluster (a number that the
    documents of one cluster share), the id and whether the rule kept it; in the order of reading."""
    if not plan.corpus_rules:
        return
    kept = clusters.select("rule", row="original", cluster="original").unique()
    members = pl.concat([kept.with_columns(kept=pl.lit(True)),
                         clusters.select("rule", "row", cluster="original", kept=pl.lit(False))]).sort("row", "rule")
    start = 0
    with writing(plan.folder / "clusters.parquet") as file:
        out = ParquetOut(file, CLUSTERS)
        for shard in shards:
            ids = pl.read_parquet(plan.part(shard.number, "records"), columns=["id"])
            here = members.filter(pl.col("row").is_between(start, start + ids.height, closed="left"))
            out.write(here.select("rule", "cluster", ids["id"].gather(here["row"] - start).alias("id"), "kept"))
            start += ids.height
        out.close(pl.DataFrame(schema={"rule": pl.String, "cluster": pl.UInt32, "id": pl.String, "kept": pl.Boolean}))


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
