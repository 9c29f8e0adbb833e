"""FineWeb's rules: lines without terminal punctuation, short lines, repeated lines, and lists.

Penedo et al. 2024, "The FineWeb Datasets" (arXiv 2406.17557), section 3.6: drop a document in which at most 12 % of
lines end in terminal punctuation, at least 67 % of lines have fewer than 30 characters, or more than 1 % (10 % in the
paper's text) of characters are in repeated lines; datatrove's filter adds more than 0.3 newlines a word.
"""

from typing import Any, ClassVar

import numpy as np
import polars as pl
from pydantic import Field

from tilth.curate.attributes import TEXT, Attribute
from tilth.curate.sets.frame import SHORT, MeasuredSet, Profile
from tilth.curate.sets.lines import DATATROVE_TERMINAL, Pieces, stripped_lines
from tilth.curate.sets.ratios import ratio
from tilth.curate.sets.words import PYTHON_SPACE, SPLITTERS, Splitter, Words
from tilth.recipe import one_of

COLUMNS = ("line_ends", "short_lines", "duplicate_characters", "newlines")
ENDS = r"[\p{Sentence_Terminal}][\"”“’'»）)\]]*\z"


class FineWebMeasures(Attribute):
    """The four measures of FineWeb's rules, for one profile; see `FineWeb` for their definitions."""

    kind: str = "fineweb"
    profile: Profile = "default"
    prefix: str = ""
    splitter: one_of(Splitter, SPLITTERS) = Field(default_factory=Splitter)  # type: ignore[valid-type]
    short_line_characters: int = 30

    def columns(self) -> tuple[str, ...]:
        return tuple(f"{self.prefix}{SHORT[self.profile]}fineweb_{name}" for name in COLUMNS)

    def measure(self, records: pl.DataFrame) -> pl.DataFrame:
        peer = self.profile == "datatrove-0.10.1"
        pieces = _datatrove_lines(records) if peer else Pieces.of(records, stripped_lines())
        lines, counts = pieces.words, pieces.words.counts()
        characters = lines.sums(lines.lengths())
        if peer:
            characters = _count(records, TEXT.str.replace_all("\n", "", literal=True).str.len_chars())
        ends = lines.values.str.contains(f"[{DATATROVE_TERMINAL}]\\z" if peer else ENDS).to_numpy()
        newlines = _count(records, TEXT.str.count_matches("\n", literal=True)) if peer else np.maximum(counts - 1, 0)
        values = [ratio(lines.sums(ends), counts),
                  ratio(lines.sums(lines.lengths() <= self.short_line_characters), counts),
                  ratio(pieces.repeated()[1], characters),
                  ratio(newlines, self.splitter.words_of(records["text"]).counts())]
        return pl.DataFrame(dict(zip(self.columns(), values, strict=True)))


class FineWeb(MeasuredSet):
    """FineWeb's rules. A threshold of null switches its rule off.

    Definitions of the default profile: lines without the white space at their ends, blank ones not counted; a line
    ends a sentence also with quotes or brackets after the mark; `newlines` are line breaks between lines that are
    not blank, a word (separated by white space).
    `datatrove-0.10.1`: white space after the mark hides it, and so do quotes; blank lines count as newlines; words
    and punctuation marks are counted apart.
    """

    LIMITS: ClassVar[dict[str, tuple[str, str]]] = {
        "minimum_line_ends": ("fineweb_line_ends", "minimum"),
        "maximum_short_lines": ("fineweb_short_lines", "maximum"),
        "maximum_duplicate_characters": ("fineweb_duplicate_characters", "maximum"),
        "maximum_newlines": ("fineweb_newlines", "maximum")}
    PROFILES: ClassVar[dict[str, dict[str, Any]]] = {"datatrove-0.10.1": {"splitter": "tokens"}}

    kind: str = "fineweb"
    splitter: one_of(Splitter, SPLITTERS) = Field(default_factory=Splitter)  # type: ignore[valid-type]
    short_line_characters: int = 30
    minimum_line_ends: float | None = 0.12
    maximum_short_lines: float | None = 0.67
    maximum_duplicate_characters: float | None = 0.01
    maximum_newlines: float | None = 0.3

    def attribute(self) -> FineWebMeasures:
        return FineWebMeasures(profile=self.profile, prefix=self.prefix, splitter=self.splitter,
                               short_line_characters=self.short_line_characters)


def _datatrove_lines(records: pl.DataFrame) -> Pieces:
    """Lines that are not blank, with their white space."""
    lines = Words.of_lists(records["text"].str.split("\n"))
    full = lines.values.str.contains(f"[^{PYTHON_SPACE}]").to_numpy()
    return Pieces(Words(lines.values.filter(pl.Series(full, dtype=pl.Boolean)),
                        np.concatenate([[0], np.cumsum(lines.sums(full))])), records.height)


def _count(records: pl.DataFrame, expression: pl.Expr) -> np.ndarray:
    return records.select(expression.cast(pl.Int64)).to_series().to_numpy()
