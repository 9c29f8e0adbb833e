"""A trained classifier as an attribute, and a rule that takes out what it says yes to."""

from typing import Any

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from tilth.curate.attributes import Attribute
from tilth.curate.classifier import FACTS, WEIGHTS, loaded
from tilth.curate.pieces import Unit, pieces
from tilth.curate.rules import DocumentRule
from tilth.curate.spans import SPANS, without
from tilth.recipe import Config


class ByClassifier(Config):
    """What attribute and rule share. `path`: a folder that `tilth classifier train` wrote; `column`: what the
    probability of the positive label is called (two classifiers of a recipe need two names); `unit`: what is scored."""

    path: str
    column: str = "classifier"
    unit: Unit = "document"

    def files(self) -> list[str]:
        return [f"{self.path}/{name}" for name in (FACTS, WEIGHTS)]


class ClassifierScore(ByClassifier, Attribute):
    """`COLUMN`: the probability of the classifier's positive label. By line or sentence: the highest of the
    document's (0 without any), and `COLUMN_pieces`, a list of {start, end, probability}."""

    kind: str = "classifier"

    def reads(self) -> list[str]:
        return self.files()

    def columns(self) -> tuple[str, ...]:
        return (self.column,) if self.unit == "document" else (self.column, f"{self.column}_pieces")

    def measure(self, records: pl.DataFrame) -> pl.DataFrame:
        classifier, name = loaded(self.path), self.column
        if self.unit == "document":
            return pl.DataFrame({name: classifier.probabilities(records["text"])})
        parts = pieces(records["text"], self.unit)
        probability = classifier.probabilities(parts.texts)
        highest = np.zeros(records.height)
        np.maximum.at(highest, parts.row, probability)
        frame = pl.DataFrame({"row": parts.row, "start": parts.starts, "end": parts.ends, "probability": probability},
                             schema={"row": pl.Int64, "start": pl.UInt32, "end": pl.UInt32, "probability": pl.Float64})
        listed = frame.group_by("row", maintain_order=True).agg(
            pl.struct("start", "end", "probability").alias("pieces"))
        rows = pl.DataFrame({"row": np.arange(records.height)}, schema={"row": pl.Int64})
        joined = rows.join(listed, on="row", how="left", maintain_order="left")
        listed = joined.select(pl.col("pieces").fill_null(pl.lit([], dtype=joined.schema["pieces"])))
        return pl.DataFrame([pl.Series(name, highest), listed.to_series().alias(f"{name}_pieces")])


class Classified(ByClassifier, DocumentRule):
    """Takes out documents, lines or sentences (`unit`) whose probability of the classifier's positive label is below
    `minimum` or above `maximum`. A document that loses all its lines or sentences goes.

    Dolma takes out sentences with a probability of hate or of obscenity of 0.4 and more.
    """

    kind: str = "classified"
    minimum: float | None = Field(default=None, ge=0, le=1)
    maximum: float | None = Field(default=None, ge=0, le=1)

    @model_validator(mode="after")
    def _has_a_limit(self) -> "Classified":
        if self.minimum is None and self.maximum is None:
            raise ValueError("give `minimum`, `maximum` or both")
        return self

    @property
    def rewrites_text(self) -> bool:  # type: ignore[override]
        return self.unit != "document"

    def default_title(self) -> str:
        return f"{self.kind} {self.column}"

    def attribute(self) -> ClassifierScore:
        return ClassifierScore(path=self.path, column=self.column, unit=self.unit)

    def reads(self) -> list[str]:
        return self.files()

    def about(self) -> dict[str, Any]:
        known = loaded(self.path)
        return {"classifier": {"positive": known.positive, **known.facts}}

    def measures(self) -> tuple[Attribute, ...]:
        return (self.attribute(),)

    def needs(self) -> tuple[str, ...]:
        return self.attribute().columns()

    def _outside(self, probability: pl.Expr) -> pl.Expr:
        tests = [probability < self.minimum] if self.minimum is not None else []
        return pl.any_horizontal(tests + ([probability > self.maximum] if self.maximum is not None else []))

    def rewrites(self) -> pl.Expr | None:
        if self.unit == "document":
            return None
        piece = pl.element().struct
        gone = self._outside(piece.field("probability"))
        spans = pl.col(self.needs()[1]).list.eval(pl.struct(piece.field("start"), piece.field("end")).filter(gone))
        return pl.struct("text", spans.alias("spans")).map_batches(
            lambda both: without(both.struct.field("text"), both.struct.field("spans").cast(SPANS)),
            return_dtype=pl.String)

    def drops(self) -> pl.Expr:
        return (self._outside(pl.col(self.column)) if self.unit == "document"
                else pl.col("text").str.strip_chars() == "")

    def why(self) -> pl.Expr:
        if self.unit != "document":
            return pl.lit(f"no {self.unit} is left")
        return pl.format("{} is {}", pl.lit(self.column), pl.col(self.column).round(3))
