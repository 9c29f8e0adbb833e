"""Gopher's quality rules: word counts, word lengths, symbols, bullets, ellipses, letters and stop words.

Rae et al. 2021, "Scaling Language Models: Methods, Analysis & Insights from Training Gopher" (arXiv 2112.11446), A.1.1:
drop a document of fewer than 50 or more than 100,000 words; of a mean word length outside 3 to 10; of more than 0.1
hash symbols or ellipses a word; of more than 90 % of lines that start with a bullet or 30 % that end with an ellipsis;
with fewer than 80 % of words that hold a letter; or without two of eight English stop words.
The paper does not say what a word or a bullet is, and the common toolkits disagree; `GopherQuality` tells how.
"""

from typing import Any, ClassVar

import numpy as np
import polars as pl
from pydantic import Field

from tilth.curate.attributes import TEXT, Attribute
from tilth.curate.loops import loops
from tilth.curate.sets.frame import SHORT, MeasuredSet, Profile
from tilth.curate.sets.lines import DATATROVE_PUNCTUATION, PYTHON_BREAK, PYTHON_INLINE_SPACE, python_lines
from tilth.curate.sets.ratios import ratio
from tilth.curate.sets.words import LETTER, SPLITTERS, Splitter, Words
from tilth.recipe import one_of

STOP_WORDS = ["the", "be", "to", "of", "and", "that", "have", "with"]
BULLET = r"[•‣⁃◦▪▫■□●○∙·▶➢]|[\-*+–—]\s"  # the second kind is a bullet only before white space: -5 and **x** are text
COLUMNS = ("words", "word_length", "symbols", "bullet_lines", "ellipsis_lines", "alphabetic_words", "stop_words")


class GopherQualityMeasures(Attribute):
    """The seven measures of Gopher's quality rules, for one profile; see `GopherQuality` for their definitions."""

    kind: str = "gopher_quality"
    profile: Profile = "default"
    prefix: str = ""
    splitter: one_of(Splitter, SPLITTERS) = Field(default_factory=Splitter)  # type: ignore[valid-type]
    stop_words: list[str] = Field(default_factory=lambda: list(STOP_WORDS))

    def columns(self) -> tuple[str, ...]:
        return tuple(f"{self.prefix}{SHORT[self.profile]}gopher_{name}" for name in COLUMNS)

    def measure(self, records: pl.DataFrame) -> pl.DataFrame:
        words = self.splitter.words_of(records["text"])
        measured = {"default": self._default, "dolma-1.2.1": self._dolma,
                    "datatrove-0.10.1": self._datatrove}[self.profile](records, words)
        return pl.DataFrame(dict(zip(self.columns(), measured, strict=True)))

    def _default(self, records: pl.DataFrame, words: Words) -> list[np.ndarray]:
        counts, (letters,) = words.counts(), words.matching(LETTER)
        lines, bullets, ellipses, hashes, dots = _counts(
            records, TEXT.str.count_matches(r"(?m)\S[^\n]*$"),
            TEXT.str.count_matches(rf"(?m)^\s*(?:{BULLET})"), TEXT.str.count_matches(r"(?m)(?:\.\.\.|…)[^\S\n]*$"),
            *_symbols())
        found = records.select(pl.sum_horizontal(
            [TEXT.str.contains(as_word(word)).cast(pl.Int64) for word in sorted(set(self.stop_words))])
            if self.stop_words else pl.lit(0)).to_series()
        return [counts, ratio(words.totals(words.lengths()), counts), ratio(np.maximum(hashes, dots), counts),
                ratio(bullets, lines), ratio(ellipses, lines), ratio(words.totals(letters), counts),
                _spread(found, len(counts))]

    def _dolma(self, records: pl.DataFrame, words: Words) -> list[np.ndarray]:
        counts, (letters, symbols) = words.counts(), words.matching(LETTER, "#…")
        lines, bullets, ellipses = _counts(records, TEXT.str.count_matches("\n", literal=True) + 1,
                                           TEXT.str.count_matches(r"(?m)^[*\-]"), TEXT.str.count_matches(r"(?m)…$"))
        required = words.totals(words.holding(self.stop_words) > 0)
        return [counts, medians(words), ratio(words.totals(symbols), counts),
                ratio(bullets, lines), ratio(ellipses, lines), ratio(words.totals(letters), counts),
                required]

    def _datatrove(self, records: pl.DataFrame, words: Words) -> list[np.ndarray]:
        counts, (letters, real) = words.counts(), words.matching(LETTER, f"^{DATATROVE_PUNCTUATION}")
        space, end = f"[{PYTHON_INLINE_SPACE}]*", f"(?:[{PYTHON_BREAK}]|\\z)"
        bullets, ellipses, hashes, dots = _counts(
            records, TEXT.str.count_matches(rf"(?:\A|[{PYTHON_BREAK}]){space}[•\-]"),
            TEXT.str.count_matches(rf"(?:\.\.\.|…){space}{end}"), *_symbols())
        lines = records.select(python_lines()).to_series().to_numpy()
        plain = words.totals(real)
        return [plain, ratio(words.totals(words.lengths() * real), plain), ratio(np.maximum(hashes, dots), counts),
                ratio(bullets, lines), ratio(ellipses, lines), ratio(words.totals(letters), counts),
                distinct(words, self.stop_words)]


class GopherQuality(MeasuredSet):
    """Gopher's quality rules. A threshold of null switches its rule off.

    Definitions of the default profile: words are separated by white space; `word_length` is the mean; `symbols` is
    the larger of hash signs and ellipses (`...` or U+2026) a word; blank lines are not counted; a bullet is a bullet
    sign, or a dash, star or plus before white space; `stop_words` counts how many different ones occur, in any case,
    as whole words (punctuation around them does not matter).
    `dolma-1.2.1` is its tagger `gopher_v1`: the median word length; words that hold `#` or U+2026; blank lines
    counted; lines beginning with `*` or `-`; U+2026 only; every occurrence of a stop word counts, exactly as written.
    `datatrove-0.10.1` counts punctuation marks as words of their own (its splitter), but not where it counts or
    measures words; bullets are `•` and `-`; different stop words, exactly as written.
    """

    LIMITS: ClassVar[dict[str, tuple[str, str]]] = {
        "minimum_words": ("gopher_words", "minimum"), "maximum_words": ("gopher_words", "maximum"),
        "minimum_word_length": ("gopher_word_length", "minimum"),
        "maximum_word_length": ("gopher_word_length", "maximum"), "maximum_symbols": ("gopher_symbols", "maximum"),
        "maximum_bullet_lines": ("gopher_bullet_lines", "maximum"),
        "maximum_ellipsis_lines": ("gopher_ellipsis_lines", "maximum"),
        "minimum_alphabetic_words": ("gopher_alphabetic_words", "minimum"),
        "minimum_stop_words": ("gopher_stop_words", "minimum")}
    PROFILES: ClassVar[dict[str, dict[str, Any]]] = {"dolma-1.2.1": {"splitter": "python"},
                                                     "datatrove-0.10.1": {"splitter": "tokens"}}

    kind: str = "gopher_quality"
    splitter: one_of(Splitter, SPLITTERS) = Field(default_factory=Splitter)  # type: ignore[valid-type]
    stop_words: list[str] = Field(default_factory=lambda: list(STOP_WORDS))
    minimum_words: float | None = 50
    maximum_words: float | None = 100_000
    minimum_word_length: float | None = 3
    maximum_word_length: float | None = 10
    maximum_symbols: float | None = 0.1
    maximum_bullet_lines: float | None = 0.9
    maximum_ellipsis_lines: float | None = 0.3
    minimum_alphabetic_words: float | None = 0.8
    minimum_stop_words: int | None = 2

    def attribute(self) -> GopherQualityMeasures:
        return GopherQualityMeasures(profile=self.profile, prefix=self.prefix, splitter=self.splitter,
                                     stop_words=self.stop_words)


def medians(words: Words) -> np.ndarray:
    """Median word length of each document (the mean of the middle two for an even count), 0 without words."""
    counts, compiled = words.counts(), loops("words")
    if not len(words.values):
        return np.zeros(len(counts))
    if words.codes is not None and compiled is not None:
        return compiled.middles(words.codes, words.starts, words.lengths()) / 2
    # Sorted within documents: the document in the high bits, the length in the low ones.
    ordered = np.sort(words.document() << 32 | words.each(words.lengths())) & 0xFFFFFFFF
    last = len(ordered) - 1
    low = np.minimum(words.starts[:-1] + np.maximum(counts - 1, 0) // 2, last)
    high = np.minimum(words.starts[:-1] + counts // 2, last)
    return np.where(counts > 0, (ordered[low] + ordered[high]) / 2, 0.0)


def distinct(words: Words, wanted: list[str]) -> np.ndarray:
    """How many of the wanted words occur in each document, exactly as written (int64)."""
    known = sorted(set(wanted))
    which, found = words.holding(known), np.zeros(len(words.starts) - 1, np.int64)
    for number in range(1, len(known) + 1):
        found += words.totals(which == number) > 0
    return found


def _counts(records: pl.DataFrame, *expressions: pl.Expr) -> list[np.ndarray]:
    frame = records.select(expression.cast(pl.Int64).alias(str(at)) for at, expression in enumerate(expressions))
    return [column.to_numpy() for column in frame]


def _symbols() -> tuple[pl.Expr, pl.Expr]:
    """Hash signs, and ellipses of either form."""
    return (TEXT.str.count_matches("#", literal=True),
            TEXT.str.count_matches("...", literal=True) + TEXT.str.count_matches("…", literal=True))


def as_word(word: str) -> str:
    """A pattern for the word between characters that are no part of a word, in any case."""
    outside = r"[^\p{L}\p{M}\p{N}_]"
    escaped = "".join(f"\\x{{{ord(character):x}}}" for character in word)
    return f"(?i)(?:\\A|{outside}){escaped}(?:{outside}|\\z)"


def _spread(found: pl.Series, rows: int) -> np.ndarray:
    values = found.to_numpy().astype(np.int64)
    return values if len(values) == rows else np.zeros(rows, np.int64)
