"""What is done about personal data: documents with much of it go, in others it is masked."""

from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl
from pydantic import Field, SerializeAsAny, model_validator

from tilth.curate.attributes import Attribute
from tilth.curate.personal_data import KINDS, Kind, PersonalData
from tilth.curate.rules import DocumentRule, Rule
from tilth.curate.sets.frame import Limit, Profiled
from tilth.curate.spans import SPANS, flat, replaced

MASKS: dict[Kind, str] = {"email": "|||EMAIL_ADDRESS|||", "phone": "|||PHONE_NUMBER|||", "ip": "|||IP_ADDRESS|||"}


class MaskPersonalData(DocumentRule):
    """Puts the mask of its kind in the place of every span. Every other byte stays as it was."""

    kind: str = "mask_personal_data"
    rewrites_text: ClassVar[bool] = True
    measured_by: SerializeAsAny[PersonalData] = Field(default_factory=PersonalData)
    masks: dict[Kind, str] = Field(default_factory=lambda: dict(MASKS))

    def measures(self) -> tuple[Attribute, ...]:
        return (self.measured_by,)

    def needs(self) -> tuple[str, ...]:
        return self.measured_by.columns()

    def masked(self) -> dict[str, str]:
        """Column of spans -> mask, of the kinds that have one."""
        return {column: self.masks[kind] for kind, column in zip(KINDS, self.needs(), strict=False)
                if kind in self.masks}

    def counts(self) -> dict[str, pl.Expr]:
        return {column: pl.col(column).list.len() for column in self.masked()}

    def rewrites(self) -> pl.Expr:
        return pl.struct("text", *self.masked()).map_batches(self._mask, return_dtype=pl.String)

    def _mask(self, given: pl.Series) -> pl.Series:
        found = [flat(given.struct.field(column).cast(SPANS)) for column in self.masked()]
        row_of, starts, ends = (np.concatenate(part) for part in zip(*found, strict=True))
        by = [mask for mask, (rows, _, _) in zip(self.masked().values(), found, strict=True) for _ in rows]
        return replaced(given.struct.field("text"), row_of, starts, ends, by)


class PersonalDataRules(Profiled):
    """E-mail addresses, telephone numbers and IP addresses: a document with more than `maximum` goes, in others each
    is replaced by its mask (of `masks`; a kind that is left out stays as it is, but counts).

    `dolma-1.2.1`: what Dolma's tagger finds, dropped and masked as version 1.6 of the corpus was.
    """

    PROFILES: ClassVar[dict[str, dict[str, Any]]] = {
        "dolma-1.2.1": {"masks": {kind: f" {mask} " for kind, mask in MASKS.items()}}}

    kind: str = "personal_data"
    profile: Literal["default", "dolma-1.2.1"] = "default"
    maximum: float | None = 5
    masks: dict[Kind, str] = Field(default_factory=lambda: dict(MASKS))

    @model_validator(mode="after")
    def _does_something(self) -> "PersonalDataRules":
        if self.maximum is None and not self.masks:
            raise ValueError("give `maximum`, or `masks`, or both")
        return self

    def rules(self) -> list[Rule]:
        measured = PersonalData(profile=self.profile, prefix=self.prefix)
        made: list[Rule] = []
        if self.maximum is not None:
            made.append(Limit(attribute=measured.columns()[-1], measured_by=measured, maximum=self.maximum,
                              name=f"{self.title()} maximum"))
        if self.masks:
            made.append(MaskPersonalData(measured_by=measured, masks=self.masks, name=f"{self.title()} masks"))
        return made
