"""Attributes that Dolma's taggers computed, as columns: see the input `kind: dolma`."""

from typing import ClassVar, Literal

import polars as pl
from pydantic import Field

from tilth.curate.attributes import Attribute

SPANS = pl.List(pl.List(pl.Float64))
MANY = Literal["max", "min", "sum", "mean", "count", "covered"]


class DolmaAttribute(Attribute):
    """One number a document from the spans of a tagger's column: the `reduce` of their scores, their `count`, or the
    characters `covered` (spans that overlap count twice). `column`: as in the attribute files
    (`c4_v2__c4_v2__has_curly_brace`); `prefix` goes before it in Tilth's columns. Null where a document has no such
    column; a column without spans counts 0, and has no maximum."""

    of_records: ClassVar[bool] = True
    kind: str = "dolma_attribute"
    column: str = Field(min_length=1)
    reduce: MANY = "max"
    prefix: str = ""

    def columns(self) -> tuple[str, ...]:
        return (f"{self.prefix}{self.column}",)

    def expression(self) -> pl.Expr:
        quoted = self.column.replace("\\", "\\\\").replace("'", "\\'")
        spans = pl.col("metadata").str.json_path_match(f"$.attributes['{quoted}']").str.json_decode(SPANS)
        scores = spans.list.eval(pl.element().list.get(2, null_on_oob=True))
        lengths = spans.list.eval(pl.element().list.get(1) - pl.element().list.get(0))
        return {"max": scores.list.max(), "min": scores.list.min(), "sum": scores.list.sum(),
                "mean": scores.list.mean(), "count": spans.list.len().cast(pl.Float64),
                "covered": lengths.list.sum()}[self.reduce]
