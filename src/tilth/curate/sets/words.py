"""The words of a whole batch, laid end to end, and sums of them for each document.

Where a word ends is the most consequential choice of all word rules, so it is a choice of the recipe (`splitter`):

- `whitespace`: a maximal run of characters that are not white space;
- `python`: the same as Python's `str.split()`, which also splits at U+001C to U+001F (what dolma uses);
- `tokens`: words and punctuation apart, close to the English splitter of spaCy (what datatrove uses);
- `package.module:Class`: an outside class that derives from `Splitter`.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from tilth.recipe import Config

PYTHON_SPACE = r"\s\x1c-\x1f"  # what str.isspace and str.split take for white space, as the inside of a class
LETTER = r"\p{L}"  # what str.isalpha takes for a letter


@dataclass(frozen=True)
class Words:
    """`values`: all words of all documents (String); document d has those from `starts[d]` up to `starts[d + 1]`."""

    values: pl.Series
    starts: np.ndarray

    def counts(self) -> np.ndarray:
        """Words of each document (int64)."""
        return np.diff(self.starts)

    def lengths(self) -> np.ndarray:
        """Characters of each word (int64)."""
        return self.values.str.len_chars().to_numpy().astype(np.int64)

    def document(self) -> np.ndarray:
        """The document of each word (int64)."""
        return np.repeat(np.arange(len(self.starts) - 1), self.counts())

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sum of one number a word (integers or truth values) for each document (int64)."""
        total = np.zeros(len(values) + 1, np.int64)
        np.cumsum(values, out=total[1:], dtype=np.int64)
        return total[self.starts[1:]] - total[self.starts[:-1]]

    def matching(self, pattern: str) -> np.ndarray:
        """Which words a regular expression occurs in."""
        return self.values.str.contains(pattern).to_numpy()

    @classmethod
    def of_lists(cls, lists: pl.Series) -> "Words":
        """From a column of lists, one list a document."""
        counts = lists.list.len().to_numpy().astype(np.int64)
        starts = np.concatenate([[0], np.cumsum(counts)])
        return cls(lists.filter(pl.Series(counts > 0)).explode(), starts)


class Splitter(Config):
    """Base of all splitters. An outside class defines `pattern`, or `split` for what no expression can say."""

    kind: str = "whitespace"

    def pattern(self) -> str:
        """A regular expression (linear engine) whose matches, from left to right, are the words."""
        return r"\S+"

    def split(self, texts: pl.Series) -> Words:
        return Words.of_lists(texts.str.extract_all(self.pattern()))


class PythonSplitter(Splitter):
    """As `str.split()`."""

    kind: str = "python"

    def pattern(self) -> str:
        return f"[^{PYTHON_SPACE}]+"


# The parts of `Tokens`. Classes are complements of short lists: the engine's tables stay small, hence fast.
# Joints join inside a word and are split off at its ends; hyphens, with `.` and `…`, split even in runs.
_JOINTS = r"\"“”«»`´„‚‘()\[\]{}_#*&;!?¿¡§。？！，、；：·।،۔؛٪「」『』（）〔〕【】《》〈〉"
_HYPHENS = r"\-–—~"
_SPLITS = r",:<>=/"
_SIGNS = r"%+$£€¥"
_LETTER = rf"[^\s0-9'’.…{_HYPHENS}{_SPLITS}{_JOINTS}{_SIGNS}]"
_CORE = rf"(?:{_LETTER}[^\s0-9'’.…{_HYPHENS}{_SPLITS}{_JOINTS}]*(?:[{_HYPHENS}][0-9]+)?|[0-9]+)"
_RUN = rf"[{_JOINTS}{_SPLITS}{_SIGNS}][{_JOINTS}{_SPLITS}{_SIGNS}'’{_HYPHENS}]+"  # two signs or more
# After an apostrophe: not the endings that are words of their own (he 's, do n't, we 'll).
_AFTER = rf"{_LETTER}{_LETTER}{_LETTER}+|[a-km-qs-uw-zà-ü][a-zà-ü]|l[a-km-z]|[vr][a-df-zà-ü]|[abce-knopquw-zàéèê]"
_JOINED = "|".join([
    rf"['’](?:{_AFTER})", rf"{_RUN}{_CORE}", rf"\.[{_JOINTS}{_SPLITS}'’]+{_CORE}", rf"[{_JOINTS}]*[$€£¥]\.?",
    rf"[{_JOINTS}{_SIGNS}]{_CORE}", r"\.[a-z0-9]", r"[,:<>=/][0-9]"])
_TOKENS = "|".join([
    r"(?:https?|ftp)://[^\s,;()<>\[\]{}\"]*[^\s,;.:!?()<>\[\]{}\"'’”]",
    r"[A-Z]\.(?:[A-Za-z]\.)*", r"[a-z]\.", r"(?:e\.g|i\.e|a\.m|p\.m|Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|Inc|Co|Corp|Ltd)\.",
    rf"{_CORE}(?:{_CORE}|{_JOINED})*", r"['’](?:s|S|t|m|d|ll|ve|re)", r"\.\.+", r"[\-~/]+", rf"[^\s{_HYPHENS}.…]/+",
    r"\S"])


class Tokens(Splitter):
    """Words and punctuation apart: close to spaCy's English rules, which need look-around and tables of exceptions."""

    kind: str = "tokens"

    def pattern(self) -> str:
        return _TOKENS


SPLITTERS: dict[str, type[Splitter] | str] = {"whitespace": Splitter, "python": PythonSplitter, "tokens": Tokens}
