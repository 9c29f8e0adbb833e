"""Attributes: what is measured about records, as columns beside them.

An attribute is one or more named Polars expressions over the columns of records, or a function from a frame of
records to columns; it never sees single documents in Python. Rules read attributes by column name; thresholds are
the rules' business, so that they change without measuring again.
"""

from collections.abc import Sequence
from typing import ClassVar

import polars as pl

from tilth.data.records import COLUMNS
from tilth.recipe import BadInput, Config
from tilth.recipe.frame import nearest

TEXT = pl.col("text")


class Attribute(Config):
    """Base of all attributes. An outside class defines `expression`, or `columns` with `expressions` or `measure`."""

    kind: str = "characters"
    of_records: ClassVar[bool] = False  # whether it is read off the records' metadata, in which it may not be

    def columns(self) -> tuple[str, ...]:
        """Names of the columns this attribute adds."""
        return (self.kind.rpartition(":")[2],)

    def reads(self) -> list[str]:
        """Files that the attribute reads; if one changes, the corpus is curated again."""
        return []

    def expression(self) -> pl.Expr:
        """The one column, over `id, text, source, license, attribution, metadata`."""
        raise NotImplementedError(f"{type(self).__name__} must define expression(), expressions() or measure(frame).")

    def expressions(self) -> list[pl.Expr]:
        """One expression for each of `columns()`, in that order."""
        return [self.expression()]

    def measure(self, records: pl.DataFrame) -> pl.DataFrame:
        """The columns, for a frame of records (same rows, same order)."""
        named = [expression.alias(name) for name, expression in zip(self.columns(), self.expressions(), strict=True)]
        # Lazily, so that what several expressions share is computed once.
        return records.lazy().select(named).collect()


def share(part: pl.Expr, whole: pl.Expr) -> pl.Expr:
    """part / whole as float64, 0 where the whole is 0."""
    return pl.when(whole == 0).then(0.0).otherwise(part / whole)


def without(characters: str) -> pl.Expr:
    """Characters that are left when a class (regex) is taken out; runs are cheaper to match than single ones."""
    return TEXT.str.replace_all(f"(?:{characters})+", "").str.len_chars()


class Characters(Attribute):
    """Unicode code points."""

    kind: str = "characters"

    def expression(self) -> pl.Expr:
        return TEXT.str.len_chars()


class Bytes(Attribute):
    """UTF-8 bytes."""

    kind: str = "bytes"

    def expression(self) -> pl.Expr:
        return TEXT.str.len_bytes()


class Words(Attribute):
    """Runs of characters that are not white space."""

    kind: str = "words"

    def expression(self) -> pl.Expr:
        return TEXT.str.count_matches(r"\S+")


class Lines(Attribute):
    """Lines; a last line without its newline counts, an empty text has none."""

    kind: str = "lines"

    def expression(self) -> pl.Expr:
        return TEXT.str.count_matches("\n", literal=True) + (~TEXT.str.ends_with("\n") & (TEXT != "")).cast(pl.UInt32)


class MeanWordLength(Attribute):
    """Characters that are not white space, per word; 0 without words."""

    kind: str = "mean_word_length"

    def expression(self) -> pl.Expr:
        return share(without(r"\s"), TEXT.str.count_matches(r"\S+"))


class AlphabeticShare(Attribute):
    """Share of characters that are letters of any script (Unicode Alphabetic)."""

    kind: str = "alphabetic_share"

    def expression(self) -> pl.Expr:
        return share(without(r"\P{Alphabetic}"), TEXT.str.len_chars())


class DigitShare(Attribute):
    """Share of characters that are decimal digits of any script."""

    kind: str = "digit_share"

    def expression(self) -> pl.Expr:
        return share(TEXT.str.count_matches(r"\p{Nd}"), TEXT.str.len_chars())


class SymbolShare(Attribute):
    """Share of characters that are neither letters, marks, digits nor white space."""

    kind: str = "symbol_share"

    def expression(self) -> pl.Expr:
        return share(without(r"[\p{Alphabetic}\p{M}\p{N}\s]"), TEXT.str.len_chars())


class WhitespaceShare(Attribute):
    """Share of characters that are white space."""

    kind: str = "whitespace_share"

    def expression(self) -> pl.Expr:
        return share(TEXT.str.count_matches(r"\s"), TEXT.str.len_chars())


class UniqueLineShare(Attribute):
    """Distinct lines per line, of the lines that are not blank (stripped of white space first); 1 without any."""

    kind: str = "unique_line_share"

    def expression(self) -> pl.Expr:
        stripped = pl.element().str.strip_chars()
        lines = TEXT.str.split("\n").list.eval(stripped.filter(stripped != ""))
        return pl.when(lines.list.len() == 0).then(1.0).otherwise(lines.list.n_unique() / lines.list.len())


BUILT_IN: tuple[type[Attribute], ...] = (Characters, Bytes, Words, Lines, MeanWordLength, AlphabeticShare, DigitShare,
                                         SymbolShare, WhitespaceShare, UniqueLineShare)
ATTRIBUTES: dict[str, type[Attribute] | str] = {cls.model_fields["kind"].default: cls for cls in BUILT_IN} | {
    "c4_sentences": "tilth.curate.sets.c4:C4Sentences",
    "chinese": "tilth.curate.sets.chinese:ChineseMeasures",
    "chinese_word_length": "tilth.curate.sets.chinese:ChineseWordLength",
    "classifier": "tilth.curate.classifier_rules:ClassifierScore",
    "code": "tilth.curate.sets.code:CodeMeasures",
    "dolma_attribute": "tilth.curate.dolma_attribute:DolmaAttribute",
    "fineweb": "tilth.curate.sets.fineweb:FineWebMeasures",
    "gopher_quality": "tilth.curate.sets.gopher:GopherQualityMeasures",
    "gopher_repetition": "tilth.curate.sets.repetition:GopherRepetitionMeasures",
    "language": "tilth.curate.language:Language",
    "language_stop_words": "tilth.curate.sets.multilingual:LanguageStopWords",
    "line_languages": "tilth.curate.language:LineLanguages",
    "personal_data": "tilth.curate.personal_data:PersonalData",
    "random_number": "tilth.curate.sets.sampling:RandomNumber",
    "secrets": "tilth.curate.sets.code:Secrets",
    "spdx_licence": "tilth.curate.licence_rules:SpdxLicence",
    "starcoder": "tilth.curate.sets.starcoder:StarcoderMeasures",
    "stripped_characters": "tilth.curate.sets.dolma:StrippedCharacters",
    "token_repetition": "tilth.curate.sets.token_repetition:TokenRepetitionMeasures",
    "unspaced": "tilth.curate.sets.multilingual:IsUnspaced",
}


def find(column: str, configured: Sequence[Attribute]) -> Attribute | None:
    """The attribute that computes a column: one of the recipe's, else a built-in; None for columns of the record.

    `metadata.key` reads a key of the record's metadata as text. BadInput if nobody computes the column.
    """
    for attribute in configured:
        if column in attribute.columns():
            return attribute
    if column in COLUMNS or column.startswith("metadata."):
        return None
    known = ATTRIBUTES.get(column)
    if isinstance(known, type):
        return known()
    names = [name for attribute in configured for name in attribute.columns()] + list(ATTRIBUTES) + list(COLUMNS)
    raise BadInput(f"A rule uses the attribute '{column}', which nothing computes{nearest(column, names)} Known are "
                   f"{', '.join(names)} and metadata.KEY; add the attribute that computes it to `attributes`.")


def record_column(name: str) -> pl.Expr:
    """A column of the record, or a key of its metadata (`metadata.language`, nested with more dots)."""
    if name.startswith("metadata."):
        return pl.col("metadata").str.json_path_match("$." + name.removeprefix("metadata.")).alias(name)
    return pl.col(name)


def check_columns(attribute: Attribute, measured: pl.DataFrame, rows: int) -> pl.DataFrame:
    """What an attribute returned, if it is what it promised; an error naming the attribute otherwise."""
    if tuple(measured.columns) != attribute.columns() or measured.height != rows:
        raise BadInput(f"The attribute '{attribute.kind}' returned columns {measured.columns} with {measured.height} "
                       f"rows; it promised {list(attribute.columns())} and was given {rows}.")
    return measured
