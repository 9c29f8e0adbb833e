"""How often concepts occur, and whether performance follows: one analysis from captions, tags and scores to a page.

    DIR/counts.csv      concept, text, image, matched
    DIR/result.json     counts' sums, misalignment, the fit
    DIR/concepts.html   the same on one page
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import Field

from tilth.analyze.concepts import ConceptFit, joined
from tilth.curate.concepts import Concepts, image_pairs, indexed, matched, misalignment, read_names
from tilth.curate.lemmas import Lemmas
from tilth.data.auto import AutoInput
from tilth.data.records import Quarantine
from tilth.recipe.console import say
from tilth.recipe.errors import BadInput
from tilth.recipe.files import write_bytes, write_json
from tilth.recipe.frame import Config, nearest, parse
from tilth.report import text_table
from tilth.report.concepts import FIT_HEADER, fit_rows, sentences, write_page


class ConceptStudy(Config):
    """What is counted, and what is set against it.

    captions: inputs (files, folders, globs) whose text is counted, with ids that tie them to `images`; names: the
    concepts; images: tags of images (Parquet with id, concept and perhaps score). counts: a table of counts made
    before, in place of all these. performance: a table with concept, performance (or accuracy) and perhaps dataset;
    count: which count it is set against (default: matched where there are images, else text). where: column=value,
    applied to every table that has the column; same: a concept's name in `performance` = its name in the counts.
    """

    captions: list[str] = Field(default_factory=list)
    names: Path | None = None
    images: Path | None = None
    threshold: float = 0.7
    text_column: str = "text"
    id_column: str = "id"
    lemmas: Lemmas = Lemmas()
    counts: Path | None = None
    performance: Path | None = None
    count: str | None = None
    where: dict[str, str] = Field(default_factory=dict)
    same: dict[str, str] = Field(default_factory=dict)
    fit: ConceptFit = ConceptFit()

    def run(self) -> dict[str, Any]:
        """`counts` (rows of a table), `records`, `alignment`, `fit`: what there is, the rest None."""
        if bool(self.captions) == (self.counts is not None):
            raise BadInput("Give either captions to count (files, folders) or --counts, a table of counts made before.")
        if self.counts is not None and self.performance is None:
            raise BadInput("A table of counts alone leaves nothing to do; name scores by concept with --performance.")
        found: dict[str, Any] = {"name": "", "counts": None, "records": None, "alignment": None, "fit": None}
        if self.captions:
            found |= self._count()
            table = pl.DataFrame(found["counts"])
            found["name"] = f"{len(table)} concepts"
            table = table.with_columns(count=pl.col(self._column(table)))
        else:
            assert self.counts is not None
            table, found["name"] = self._filtered(read_table(self.counts)), self.counts.stem
            table = table if "count" in table.columns else table.with_columns(count=pl.col(self._column(table)))
        if self.performance is not None:
            scores = self._filtered(read_table(self.performance))
            found["fit"] = self.fit.run(joined(table, scores, self.same))
        return found

    def _count(self) -> dict[str, Any]:
        if self.names is None:
            raise BadInput("Name the concepts to count with --names FILE: one a line, or a table with a column "
                           "`concept`.")
        concepts = Concepts(read_names(self.names), self.lemmas)
        with Quarantine() as quarantine:
            index = indexed((batch for path in self.captions for batch in AutoInput(
                path=path, text_column=self.text_column, id_column=self.id_column).read(quarantine)), concepts)
        if quarantine.total:
            say(f"{quarantine.total} records could not be used: {dict(quarantine.counts)}")
        text = index.pairs()
        rows: dict[str, Any] = {"concept": concepts.names, "text": index.counts(text), "image": None, "matched": None}
        alignment = None
        if self.images is not None:
            images = image_pairs(self.images, concepts, self.threshold)
            rows |= {"image": index.counts(images), "matched": index.counts(matched(text, images))}
            alignment = misalignment(text, images, index.records)
        none = [None] * len(concepts.names)
        table = pl.DataFrame({name: none if values is None else values for name, values in rows.items()}, schema={
            "concept": pl.String, "text": pl.Int64, "image": pl.Int64, "matched": pl.Int64})
        return {"counts": table.to_dicts(), "records": index.records, "alignment": alignment}

    def _column(self, table: pl.DataFrame) -> str:
        known = [name for name in ("matched", "text", "image") if name in table.columns and
                 table[name].null_count() < len(table)]
        if self.count is not None and self.count not in known:
            raise BadInput(f"There is no count '{self.count}'{nearest(self.count, known)} There are "
                           f"{', '.join(known)}.")
        if not known:
            raise BadInput("The table of counts has no column `count` (or text, image, matched).")
        return self.count or known[0]

    def _filtered(self, table: pl.DataFrame) -> pl.DataFrame:
        for column, value in self.where.items():
            if column in table.columns:
                table = table.filter(pl.col(column).cast(pl.String) == value)
                if table.is_empty():
                    raise BadInput(f"No row has {column}={value}.")
        return table


def read_table(path: Path) -> pl.DataFrame:
    """A CSV, TSV (plain or compressed by gzip or zstandard) or Parquet file."""
    try:
        if path.suffix == ".parquet":
            return pl.read_parquet(path)
        return pl.read_csv(path, separator="\t" if ".tsv" in path.suffixes else ",", infer_schema_length=None)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise BadInput(f"{path} cannot be read as a table (CSV, TSV or Parquet): {error}.") from error


def pairs_of(texts: Sequence[str], option: str) -> dict[str, str]:
    """`a=b` options as a mapping."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise BadInput(f"{option} is '{text}'; give it as NAME=VALUE.")
        found[key] = value
    return found


def study_concepts(fields: dict[str, Any], output: Path) -> dict[str, Any]:
    """The command: run the study, write the folder, print what was found. fields: of ConceptStudy."""
    result = parse(ConceptStudy, fields, "concepts").run()
    counted = result["counts"]
    output.mkdir(parents=True, exist_ok=True)
    if counted:
        write_bytes(output / "counts.csv", pl.DataFrame(counted).write_csv().encode())
    write_page(output / "concepts.html", result)
    summary = {key: value for key, value in result.items() if key != "counts"}
    write_json(output / "result.json", summary)
    if result["fit"]:
        print(text_table(fit_rows(result), FIT_HEADER))
    print("\n".join(sentences(result)))
    say(f"page: {output / 'concepts.html'}")
    return summary
