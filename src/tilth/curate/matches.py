"""Where a pattern matches in many texts: the linear engine (Rust's), which tells no places, made to tell them.

Only texts in which the pattern occurs at all are looked at. In those every match is put between two marks (a character
that none of the texts holds); where the marks came to stand, less the marks before, is where the match begins and ends.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from tilth.curate.spans import utf8
from tilth.recipe.errors import RunFailed


@dataclass(frozen=True)
class Matches:
    """All matches in order: `row` (which text), `starts` and `ends` (characters of the text), all int64; `texts`, what
    matched; `before` and `after`, uint8 (matches, 2): the two bytes to the left, nearest first, and those to the right;
    0 beyond the ends of the text."""

    row: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    texts: pl.Series
    before: np.ndarray
    after: np.ndarray

    def where(self, mask: np.ndarray) -> "Matches":
        return Matches(self.row[mask], self.starts[mask], self.ends[mask], self.texts.filter(pl.Series(mask)),
                       self.before[mask], self.after[mask])


def find(texts: pl.Series, pattern: str) -> Matches:
    """All matches of `pattern`, from left to right; the pattern must not match nothing."""
    rows = texts.str.contains(pattern).fill_null(False).arg_true()
    chosen = texts.gather(rows)
    mark = free_character(chosen)
    marked, _ = utf8(chosen.str.replace_all(pattern, f"{mark}${{0}}{mark}"))
    at = _places(marked, mark.encode())
    at -= len(mark.encode()) * np.arange(len(at))  # less the marks before
    starts, ends = at[::2], at[1::2]
    content, offsets = utf8(chosen)
    row = np.searchsorted(offsets, starts, "right") - 1
    first, last = offsets[row], offsets[row + 1]
    characters = np.concatenate([[0], np.cumsum((content & 0xC0) != 0x80)])  # before each byte
    found = chosen.str.extract_all(pattern).explode() if len(chosen) else chosen
    return Matches(rows.to_numpy().astype(np.int64)[row], characters[starts] - characters[first],
                   characters[ends] - characters[first], found,
                   np.stack([_bytes(content, starts - back, first, last) for back in (1, 2)], 1),
                   np.stack([_bytes(content, ends + on, first, last) for on in (0, 1)], 1))


def free_character(texts: pl.Series) -> str:
    """A character that none of the texts holds; one of the last of Unicode, which are four bytes long."""
    for point in range(0x10FFFF, 0xFFFF, -1):
        if not texts.str.contains(chr(point), literal=True).any():
            return chr(point)
    raise RunFailed("A batch of texts holds a million different characters; none is left to mark places with.")


def _places(content: np.ndarray, wanted: bytes) -> np.ndarray:
    """Where the bytes of one character begin, int64, ascending."""
    at = np.flatnonzero(content == wanted[-1]) - (len(wanted) - 1)
    for place, byte in enumerate(wanted[:-1]):
        at = at[content[at + place] == byte]
    return at


def _bytes(content: np.ndarray, places: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """The bytes at `places`, 0 for a place that is not in its own text."""
    inside = (places >= first) & (places < last)
    return np.where(inside, content[np.where(inside, places, first)], 0) if len(places) else np.zeros(0, np.uint8)
