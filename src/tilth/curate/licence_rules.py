"""The licence of each record by its SPDX name, and the rule that keeps only what is licensed as listed."""

from typing import Any

import polars as pl
from pydantic import Field, field_validator

from tilth.curate.attributes import Attribute
from tilth.curate.licences import allowed, needs_credit, spdx
from tilth.curate.rules import DocumentRule


class SpdxLicence(Attribute):
    """The SPDX expression of the record's `license`, null where it is missing or not known."""

    kind: str = "spdx_licence"

    def measure(self, records: pl.DataFrame) -> pl.DataFrame:
        # Licences are few: each spelling is looked at once.
        known = {given: spdx(given) for given in records["license"].unique().drop_nulls().to_list()}
        return pl.DataFrame({self.columns()[0]: by_value(records["license"], known, pl.String)})


class Licences(DocumentRule):
    """Keeps records whose licence is one of `licences` (SPDX names, in any spelling; without a version, `CC-BY`, all
    of its versions) or, word for word, one of `others` (what has no SPDX name). A record without a licence, or with
    one that is not known, goes. Of licences to choose from one must be listed, of those that hold together all.

    `attribution: required` also drops records that have to name somebody and do not (`attribution` is empty).
    """

    kind: str = "licences"
    licences: list[str] = Field(min_length=1)
    others: list[str] = Field(default_factory=list)
    attribution: str = Field(default="optional", pattern="^(optional|required)$")

    @field_validator("licences")
    @classmethod
    def _named(cls, given: list[str]) -> list[str]:
        """The SPDX names, so that a resolved recipe shows them."""
        unknown = [name for name in given if spdx(name) is None]
        if unknown:
            raise ValueError(f"{', '.join(map(repr, unknown))} is no licence that is known here; write its SPDX name, "
                             f"or put it into `others`, word for word as the records have it")
        return [str(spdx(name)) for name in given]

    def measures(self) -> tuple[Attribute, ...]:
        return (SpdxLicence(),)

    def needs(self) -> tuple[str, ...]:
        return SpdxLicence().columns()

    def drops(self) -> pl.Expr:
        return pl.struct("license", "spdx_licence", "attribution").map_batches(self._drops, return_dtype=pl.Boolean)

    def _drops(self, given: pl.Series) -> pl.Series:
        names, said = given.struct.field("spdx_licence"), given.struct.field("license")
        found = names.unique().drop_nulls().to_list()
        listed = by_value(names, {name: allowed(name, set(self.licences)) for name in found}, pl.Boolean)
        kept = listed.fill_null(False) | said.is_in(self.others).fill_null(False)
        if self.attribution == "required":
            free = by_value(names, {name: not needs_credit(name) for name in found}, pl.Boolean).fill_null(False)
            credited = given.struct.field("attribution").str.strip_chars().str.len_bytes() > 0
            kept &= free | credited.fill_null(False)
        return ~kept

    def why(self) -> pl.Expr:
        said = pl.col("license").fill_null("missing").str.head(80)
        return pl.format("licence {}, attribution {}", said, pl.col("attribution").is_not_null())


def by_value(column: pl.Series, meaning: dict[str, Any], dtype: Any) -> pl.Series:
    """What each value means; null for null."""
    return column.replace_strict(list(meaning), list(meaning.values()), default=None, return_dtype=dtype)
