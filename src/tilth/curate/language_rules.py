"""Rules by language: documents that stay, lines that go."""

from typing import ClassVar

import polars as pl
from pydantic import Field, field_validator

from tilth.curate.attributes import Attribute
from tilth.curate.language import DETECTORS, Cld2, Detector, Language, LineLanguages
from tilth.curate.rules import DocumentRule
from tilth.curate.spans import SPANS, without
from tilth.recipe import one_of


class ByLanguage(DocumentRule):
    """What both rules share. `languages`: codes, or codes with a least confidence each (`{en: 0.65, fr: 0.5}`), which
    otherwise is `minimum_confidence` (0.5 as in Dolma; Lucie takes 0.65, CT-LLM 0.4). A code also stands for its
    variants: `zh` for `zh-hant`."""

    languages: list[str] | dict[str, float] = Field(min_length=1)
    minimum_confidence: float = Field(default=0.5, ge=0, le=1)
    prefix: str = ""
    detector: one_of(Detector, DETECTORS) = Field(default_factory=Cld2)  # type: ignore[valid-type]

    @field_validator("languages")
    @classmethod
    def _lower_case(cls, given: list[str] | dict[str, float]) -> list[str] | dict[str, float]:
        if isinstance(given, dict):
            return {code.lower(): least for code, least in given.items()}
        return [code.lower() for code in given]

    def default_title(self) -> str:
        return f"{self.kind} {', '.join(self.languages)}"

    def least(self) -> dict[str, float]:
        """The least confidence of each code."""
        return self.languages if isinstance(self.languages, dict) else dict.fromkeys(self.languages,
                                                                                     self.minimum_confidence)

    def reads(self) -> list[str]:
        return self.detector.reads()


class KeepLanguages(ByLanguage):
    """Keeps documents that are in one of `languages`, with the confidence wanted. `by: lines` asks for the language of
    most of the lines and its share of the document (dolma's paragraph score) instead of the whole text's."""

    kind: str = "keep_languages"
    by: str = Field(default="document", pattern="^(document|lines)$")

    def attribute(self) -> Attribute:
        one = Language if self.by == "document" else LineLanguages
        return one(prefix=self.prefix, detector=self.detector)

    def measures(self) -> tuple[Attribute, ...]:
        return (self.attribute(),)

    def needs(self) -> tuple[str, ...]:
        return self.attribute().columns()[-2:]

    def drops(self) -> pl.Expr:
        language, confidence = map(pl.col, self.needs())
        return ~pl.any_horizontal([is_language(language, code) & (confidence >= least)
                                   for code, least in self.least().items()]).fill_null(False)

    def why(self) -> pl.Expr:
        language, confidence = map(pl.col, self.needs())
        return pl.format("language {} with confidence {}", language.fill_null("unknown"), confidence.round(2))


class DropForeignLines(ByLanguage):
    """Takes out lines that are, with at least the confidence wanted, in none of `languages`. Lines of fewer than
    `minimum_characters` stay, and so do those whose language cannot be told; a document of which nothing is left
    goes."""

    kind: str = "drop_foreign_lines"
    rewrites_text: ClassVar[bool] = True
    minimum_characters: int = Field(default=40, ge=1)

    def attribute(self) -> LineLanguages:
        return LineLanguages(prefix=self.prefix, detector=self.detector)

    def measures(self) -> tuple[Attribute, ...]:
        return (self.attribute(),)

    def needs(self) -> tuple[str, ...]:
        return self.attribute().columns()[:1]

    def rewrites(self) -> pl.Expr:
        line = pl.element().struct
        known = pl.any_horizontal([is_language(line.field("language"), code) for code in self.least()])
        foreign = (line.field("language").is_not_null() & ~known
                   & (line.field("confidence") >= self.minimum_confidence)
                   & (line.field("end") - line.field("start") >= self.minimum_characters))
        spans = pl.col(self.needs()[0]).list.eval(
            pl.struct(line.field("start"), line.field("end")).filter(foreign)).alias("spans")
        return pl.struct("text", spans).map_batches(
            lambda both: without(both.struct.field("text"), both.struct.field("spans").cast(SPANS)),
            return_dtype=pl.String)

    def drops(self) -> pl.Expr:
        return pl.col("text").str.strip_chars() == ""

    def why(self) -> pl.Expr:
        return pl.lit("no line is in a wanted language")


def is_language(language: pl.Expr, code: str) -> pl.Expr:
    """Is this the code, or a variant of it (`zh-hant` of `zh`)?"""
    return (language == code) | language.str.starts_with(f"{code}-")
