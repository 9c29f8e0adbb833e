"""The work on one shard of input: the first pass measures and applies the document rules; the second writes what
the decisions over the whole corpus left.

Between the passes a shard has four files in the work folder: its `records` (what the document rules kept), its
`attributes` (of everything read), its `index` (what decisions over the corpus need) and a `summary` (the counts; the
last one written, hence the sign that the shard is done).
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from tilth import __version__
from tilth.curate import held_out
from tilth.curate.attributes import Attribute
from tilth.curate.pipeline import Pipeline, add_examples
from tilth.curate.report import Amount, Tally, source_amounts
from tilth.curate.rules import CorpusCut, CorpusRule, DocumentRule
from tilth.curate.shingles import ShingleSet
from tilth.curate.spans import SPANS, covered, union, without
from tilth.data.inputs import Input
from tilth.data.records import SCHEMA, Quarantine, check_schema, read_records
from tilth.recipe import BadInput
from tilth.recipe.files import write_json, writing

Advance = Callable[[int], None]  # told how much of the shard's stored bytes is done


@dataclass(frozen=True)
class Shard:
    """Some files of one input, and what is done to them."""

    number: int
    input: Input
    paths: tuple[str, ...]
    stored_bytes: int


@dataclass(frozen=True)
class Plan:
    """What every shard is treated with; goes to worker processes."""

    folder: Path
    seed: int
    attributes: tuple[Attribute, ...]
    rules: tuple[DocumentRule, ...]
    corpus_rules: tuple[CorpusRule, ...]
    held_out: held_out.HeldOut | None

    @property
    def work(self) -> Path:
        return self.folder / ".work"

    def part(self, number: int, what: str) -> Path:
        return self.work / f"{what}-{number:05d}.{'json' if 'summary' in what else 'parquet'}"

    def quarantine(self, number: int) -> Path:
        return self.work / f"quarantine-{number:05d}.jsonl"

    def output(self, what: str, number: int) -> Path:
        return self.folder / f"{what}-{number:05d}.parquet"


class ParquetOut:
    """A Parquet file written batch by batch; each batch is a row group. The first batch fixes the schema."""

    def __init__(self, file: BinaryIO, schema: pa.Schema | None = None):
        self.file, self.schema = file, schema
        self.writer: pq.ParquetWriter | None = None

    def write(self, frame: pl.DataFrame) -> None:
        table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
        if self.schema is None:
            self.schema = table.schema.with_metadata({"tilth_version": __version__})
        if self.writer is None:
            self.writer = pq.ParquetWriter(self.file, self.schema, compression="zstd")
        if table.num_rows:
            self.writer.write_table(_as_schema(table, self.schema), row_group_size=table.num_rows)

    def close(self, empty: pl.DataFrame) -> None:
        """Finish the file; if nothing was written, it has the columns of `empty` and no rows."""
        if self.writer is None:
            self.write(empty.clear())
        assert self.writer is not None
        self.writer.close()


def _as_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    try:
        return table.cast(schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise BadInput(f"A column changed its type between two batches (an attribute must always give the same): "
                       f"{error}. It was {schema.to_string(show_schema_metadata=False)!r}.") from error


def first_pass(plan: Plan, shard: Shard, advance: Advance | None = None) -> None:
    """Read, measure, apply the document rules, and leave the shard's four files in the work folder."""
    pipeline = Pipeline(plan.rules, plan.attributes)
    read, number = Amount(), shard.number
    with Quarantine(plan.quarantine(number)) as quarantine, ExitStack() as stack:
        files = [stack.enter_context(writing(plan.part(number, what))) for what in ("records", "attributes", "index")]
        outs = [ParquetOut(file, schema) for file, schema in zip(files, (SCHEMA, None, None), strict=True)]
        for batch in shard.input.read(quarantine, shard.paths):
            frames = _first_pass_batch(plan, pipeline, check_schema(batch), read)
            for out, frame in zip(outs, frames, strict=True):
                out.write(frame)
            if advance is not None:
                advance(min(read.bytes, shard.stored_bytes))
        empty = _first_pass_batch(plan, pipeline, pa.RecordBatch.from_pylist([], SCHEMA), read)
        for out, frame in zip(outs, empty, strict=True):
            out.close(frame)
    write_json(plan.part(number, "summary"), {
        "read": read.as_json(), "quarantined": dict(quarantine.counts), "present": dict(pipeline.present),
        "rules": [tally.as_json() for tally in pipeline.tallies]})


def _first_pass_batch(plan: Plan, pipeline: Pipeline, batch: pa.RecordBatch, read: Amount) -> list[pl.DataFrame]:
    """The frames of one batch: records that stay, attributes of all, index of those that stay."""
    records = pl.DataFrame(pl.from_arrow(batch))
    read.add(Amount.of(records["text"].str.len_bytes().to_numpy()))
    records, attributes = pipeline.apply(records)
    alive = records.filter(attributes["dropped_by"].is_null())
    columns = [alive.select("source", bytes=pl.col("text").str.len_bytes().cast(pl.Int64))]
    columns.append(pl.DataFrame({"draw": held_out.draw(plan.seed, alive["id"])}, schema={"draw": pl.UInt64}))
    for at, rule in enumerate(plan.corpus_rules):
        signature = rule.signature(alive)
        columns.append(signature.rename({name: index_column(at, name) for name in signature.columns}))
    return [alive, attributes, pl.concat(columns, how="horizontal")]


def index_column(rule: int, name: str) -> str:
    """How the index calls a column of the signature of a corpus rule (two rules of one kind may stand in a recipe)."""
    return f"{rule}/{name}"


def spans_column(rule: CorpusCut) -> str:
    """The column of decisions, and the attribute, that holds the spans of a rule."""
    return f"{rule.title()}_spans"


def second_pass(plan: Plan, shard: Shard, decisions: pl.DataFrame, advance: Advance | None = None) -> None:
    """Write the shard's documents and attributes.

    `decisions` has a row for each record of the shard's `records`: `dropped_by` and `why` (both text or null), and
    the spans of rules that cut or mark.
    """
    number, copies = shard.number, Tally(held_out.NEAR_COPIES)
    tallies = {rule.title(): Tally(rule.title()) for rule in plan.corpus_rules}
    known = ShingleSet.load(plan.work / "shingles.npy") if plan.held_out is not None else None
    kept, sources, reasons, done = Amount(), [], [], 0
    with writing(plan.output("documents", number)) as file:
        out = ParquetOut(file, SCHEMA)
        for records in frames_of(plan.part(number, "records")):
            decided = decisions.slice(done, records.height)
            done += records.height
            _tally_corpus(tallies, records, decided)
            records, dropped_by = _cut(plan, tallies, records, decided)
            dropped_by = _without_near_copies(plan, known, records, dropped_by, copies)
            stay = records.filter(dropped_by.is_null())
            out.write(stay)
            kept.add(Amount.of(stay["text"].str.len_bytes().to_numpy()))
            sources.append(source_amounts(stay))
            reasons.append(dropped_by)
            if advance is not None:
                advance(shard.stored_bytes * done // decisions.height)
        out.close(pl.DataFrame(pl.from_arrow(pa.RecordBatch.from_pylist([], SCHEMA))))
    _write_attributes(plan, number, pl.concat(reasons) if reasons else pl.Series("dropped_by", [], pl.String),
                      decisions.drop("dropped_by", "why"))
    write_json(plan.part(number, "second-summary"), {
        "kept": kept.as_json(), "sources": [row for part in sources for row in part],
        "rules": [tally.as_json() for tally in [*tallies.values(), *([copies] if plan.held_out else [])]]})


def _without_near_copies(plan: Plan, known: ShingleSet | None, records: pl.DataFrame, dropped_by: pl.Series,
                         tally: Tally) -> pl.Series:
    """`dropped_by` with the near copies of held-out text added."""
    if known is None or plan.held_out is None:
        return dropped_by
    alive = dropped_by.is_null()
    overlap = np.zeros(records.height)
    overlap[alive.to_numpy()] = known.overlap(records["text"].filter(alive))
    copies = overlap > plan.held_out.overlap
    sizes = records["text"].str.len_bytes().to_numpy()
    tally.seen.add(Amount.of(sizes, alive.to_numpy()))
    tally.dropped.add(Amount.of(sizes, copies))
    whys = pl.Series([f"shares {share:.0%} of its word windows with held-out text" for share in overlap])
    add_examples(tally, records, copies, whys)
    return pl.select(pl.when(pl.Series(copies)).then(pl.lit(tally.name)).otherwise(dropped_by)).to_series()


def _cut(plan: Plan, tallies: dict[str, Tally], records: pl.DataFrame,
         decided: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series]:
    """The records without the spans of the rules that cut, and `dropped_by` with those of which nothing is left."""
    dropped_by, sizes = decided["dropped_by"], records["text"].str.len_bytes().to_numpy()
    rules = [rule for rule in plan.corpus_rules if isinstance(rule, CorpusCut)]
    cutting = [rule for rule in rules if rule.cuts]
    for rule in rules:
        touched = ((decided[spans_column(rule)].list.len() > 0) & dropped_by.is_null()).to_numpy()
        if rule.cuts:
            tallies[rule.title()].rewritten.add(Amount.of(sizes, touched))
        whys = pl.Series([f"{size} characters came before" for size in covered(decided[spans_column(rule)])])
        add_examples(tallies[rule.title()], records, touched, whys)
    if not cutting:
        return records, dropped_by
    spans = union([decided[spans_column(rule)] for rule in cutting])
    records = records.with_columns(without(records["text"], spans))
    emptied = (spans.list.len() > 0) & (records["text"].str.strip_chars() == "") & dropped_by.is_null()
    for rule in cutting:
        by_it = emptied & (decided[spans_column(rule)].list.len() > 0)
        tallies[rule.title()].dropped.add(Amount.of(sizes, by_it.to_numpy()))
        dropped_by = pl.select(pl.when(by_it).then(pl.lit(rule.title())).otherwise(dropped_by)
                               .alias("dropped_by")).to_series()
        emptied = emptied & ~by_it
    return records, dropped_by


def _tally_corpus(tallies: dict[str, Tally], records: pl.DataFrame, decided: pl.DataFrame) -> None:
    """Count what each corpus rule saw (all that the rules before it left) and dropped."""
    sizes = records["text"].str.len_bytes().to_numpy()
    there = np.ones(records.height, bool)
    for name, tally in tallies.items():
        dropped = (decided["dropped_by"] == name).fill_null(False).to_numpy()
        tally.seen.add(Amount.of(sizes, there))
        tally.dropped.add(Amount.of(sizes, dropped))
        add_examples(tally, records, dropped, decided["why"].fill_null(name))
        there = there & ~dropped


def _write_attributes(plan: Plan, number: int, reasons: pl.Series, spans: pl.DataFrame) -> None:
    """The attributes of all that was read, with the reasons and spans of the second pass in the rows that were still
    there (null in the others)."""
    attributes = pl.read_parquet(plan.part(number, "attributes"))
    place = (attributes["dropped_by"].is_null().cum_sum() - 1).set(attributes["dropped_by"].is_not_null(), None)
    attributes = attributes.with_columns(
        spans[name].gather(place).alias(name) if spans.height else pl.lit(None, SPANS).alias(name)
        for name in spans.columns).select(pl.exclude("dropped_by"), "dropped_by")
    there = attributes["dropped_by"].is_null().arg_true()
    dropped_by = attributes["dropped_by"].scatter(there, reasons) if len(there) else attributes["dropped_by"]
    with writing(plan.output("attributes", number)) as file:
        out = ParquetOut(file)
        out.write(attributes.with_columns(dropped_by.alias("dropped_by")))
        out.close(attributes)


def frames_of(path: Path) -> Iterator[pl.DataFrame]:
    """The batches of a file of records as Polars frames."""
    for batch in read_records(path):
        yield pl.DataFrame(pl.from_arrow(batch))


def summary_of(values: list[dict[str, Any]], key: str) -> Amount:
    """The sum of one amount over the summaries of shards."""
    total = Amount()
    for value in values:
        total.add(Amount.from_json(value[key]))
    return total
