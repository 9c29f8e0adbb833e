"""Lines and paragraphs: what each toolkit takes for a line, and how much of a document repeats earlier lines."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from tilth.curate.attributes import TEXT
from tilth.curate.sets.words import PYTHON_SPACE, Words

# Where str.splitlines breaks, and the white space that does not break a line; as the insides of classes.
PYTHON_BREAK = r"\n\r\x0b\x0c\x1c-\x1e\x{85}\x{2028}\x{2029}"
PYTHON_INLINE_SPACE = r"\t \x1f\x{a0}\x{1680}\x{2000}-\x{200a}\x{202f}\x{205f}\x{3000}"
# datatrove.utils.text.TERMINAL_PUNCTUATION and PUNCTUATION_SET: the Unicode property of an older version, and signs.
DATATROVE_TERMINAL = (r"[\p{Sentence_Terminal}៖៙៚--\x{1b4e}\x{1b4f}\x{1b7f}\x{2024}\x{2cf9}-\x{2cfb}\x{fe12}\x{fe15}"
                      r"\x{fe16}\x{113d4}\x{113d5}\x{16d6e}\x{16d6f}]")
DATATROVE_PUNCTUATION = (r"\x00-\x08\x0b-\x1f!-/:-@\[-`{-~\x7f-\x9f"
                         "«´»–—’“”„…∶━►、。〈〉《》「」【】！％（），．１：；？～" + DATATROVE_TERMINAL)


def python_lines() -> pl.Expr:
    """How many lines `str.splitlines()` makes."""
    return TEXT.str.count_matches(f"\r\n|[{PYTHON_BREAK}]") + (
        TEXT.str.contains(rf"[^{PYTHON_BREAK}]\z")).cast(pl.UInt32)


def python_stripped() -> pl.Expr:
    """As `str.strip()`."""
    return TEXT.str.replace(rf"\A[{PYTHON_SPACE}]+", "").str.replace(rf"[{PYTHON_SPACE}]+\z", "")


@dataclass(frozen=True)
class Pieces:
    """Lines or paragraphs of a batch laid end to end; as `Words`, of which it uses the sums."""

    words: Words
    documents: int

    @classmethod
    def of(cls, records: pl.DataFrame, expression: pl.Expr) -> "Pieces":
        """From an expression that gives a list of strings for each record."""
        return cls(Words.of_lists(records.select(expression).to_series()), records.height)

    def keys(self) -> pl.Series:
        """One number a piece, equal for equal pieces of the same document."""
        document = self.words.document().astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        return pl.Series(self.words.values.hash(seed=0x6C696E6573).to_numpy() + document)

    def repeated(self, all_of_them: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Per document: how many pieces came before in it, and their characters; with `all_of_them` the first
        occurrences of what comes again count too."""
        keys = self.keys()
        again = (keys.is_duplicated() if all_of_them else ~keys.is_first_distinct()).to_numpy()
        return self.words.sums(again), self.words.sums(self.words.lengths() * again)


def stripped_lines() -> pl.Expr:
    """Lines without white space at their ends, blank ones left out."""
    return TEXT.str.strip_chars().str.replace_all(r"[^\S\n]*\n\s*", "\n").str.split("\n").list.eval(
        pl.element().filter(pl.element() != ""))


def stripped_paragraphs() -> pl.Expr:
    """What blank lines separate, without white space at the ends; empty ones left out."""
    return TEXT.str.strip_chars().str.replace_all(r"[^\S\n]*\n[^\S\n]*\n\s*", "\x00").str.split("\x00").list.eval(
        pl.element().filter(pl.element() != ""))
