"""Near copies by shared word shingles: which texts repeat a fixed, smaller set of texts.

A shingle is `size` consecutive words, lower case, without punctuation; a character of a script that writes no spaces
between words counts as a word. Only hashes are kept (64 bits), and only those of the fixed set, so that memory does
not grow with the corpus that is compared against it.
"""

from pathlib import Path

import numpy as np
import polars as pl

WORD = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]|[\p{L}\p{M}\p{N}_]+"
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, hence invertible modulo 2^64: every word of a window counts
SEED = 0x711714


def shingles(texts: pl.Series, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Hash (uint64) and text number (int64) of every window of `size` words, in order.

    A text of fewer words has one window, of all its words; a text without words has none.
    """
    words = texts.str.to_lowercase().str.extract_all(WORD)
    counts = words.list.len().to_numpy().astype(np.int64)
    hashes = words.filter(words.list.len() > 0).explode().hash(seed=SEED).to_numpy()
    padded = np.where(counts > 0, np.maximum(counts, size), 0)
    text_of = np.repeat(np.arange(len(counts)), padded)
    within = np.arange(len(text_of)) - np.repeat(np.cumsum(padded) - padded, padded)
    laid_out = np.zeros(len(text_of), np.uint64)
    laid_out[within < counts[text_of]] = hashes
    windows = np.zeros(max(len(laid_out) - size + 1, 0), np.uint64)
    for offset in range(size):
        windows = windows * MULTIPLIER + laid_out[offset:offset + len(windows)]
    whole = (within <= padded[text_of] - size)[:len(windows)]  # not reaching into the next text
    return windows[whole], text_of[:len(windows)][whole]


class ShingleSet:
    """The shingles of a fixed set of texts: `hashes` sorted (uint64), the text of each, and how many each text has."""

    def __init__(self, hashes: np.ndarray, text_of: np.ndarray, counts: np.ndarray, size: int):
        self.hashes, self.text_of, self.counts, self.size = hashes, text_of, counts, size
        # Most windows of a corpus are not in the set: a table of 32 places for each hash turns 97 % of them away
        # at the cost of one look-up, where a binary search would take twenty.
        self.table = np.zeros(1 << max(10, (32 * len(hashes)).bit_length()), bool)
        self.table[self._place(hashes)] = True

    def _place(self, hashes: np.ndarray) -> np.ndarray:
        return (hashes & np.uint64(len(self.table) - 1)).astype(np.int64)

    @classmethod
    def of(cls, texts: pl.Series, size: int) -> "ShingleSet":
        hashes, text_of = shingles(texts, size)
        order = np.lexsort((text_of, hashes))
        hashes, text_of = hashes[order], text_of[order]
        new = np.ones(len(hashes), bool)
        new[1:] = (hashes[1:] != hashes[:-1]) | (text_of[1:] != text_of[:-1])
        counts = np.bincount(text_of[new], minlength=len(texts))
        return cls(hashes[new], text_of[new], counts, size)

    def save(self, path: Path) -> None:
        with open(path, "wb") as file:
            for array in (self.hashes, self.text_of, self.counts, np.array([self.size])):
                np.save(file, array, allow_pickle=False)

    @classmethod
    def load(cls, path: Path) -> "ShingleSet":
        with open(path, "rb") as file:
            hashes, text_of, counts, size = (np.load(file, allow_pickle=False) for _ in range(4))
        return cls(hashes, text_of, counts, int(size[0]))

    def overlap(self, texts: pl.Series) -> np.ndarray:
        """For each text the larger of two shares (float64, 0 to 1): of its own windows, those that occur in the set;
        and of the windows of any one text of the set, those that occur in it (a long text may quote a short one
        whole)."""
        hashes, text_of = shingles(texts, self.size)
        own = np.bincount(text_of, minlength=len(texts))
        likely = np.flatnonzero(self.table[self._place(hashes)])
        hashes, text_of = hashes[likely], text_of[likely]
        left = np.searchsorted(self.hashes, hashes, "left")
        found = np.searchsorted(self.hashes, hashes, "right") - left
        hits = np.bincount(text_of, weights=found > 0, minlength=len(texts))
        result = np.divide(hits, own, out=np.zeros(len(texts)), where=own > 0)
        np.maximum.at(result, *self._quoted(text_of, left, found))
        return result

    def _quoted(self, text_of: np.ndarray, left: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs (text, share of one text of the set that it holds), for all pairs that share a window."""
        # Every window that hits is paired with each entry of the set that has its hash.
        repeated = np.repeat(np.arange(len(found)), found)
        step = np.arange(len(repeated)) - np.repeat(np.cumsum(found) - found, found)
        entry = left[repeated] + step
        pairs = np.unique(np.stack([text_of[repeated], entry]), axis=1)  # a window counts once for a text
        combined = pairs[0] * len(self.counts) + self.text_of[pairs[1]]
        pair, count = np.unique(combined, return_counts=True)
        return pair // max(len(self.counts), 1), count / self.counts[pair % max(len(self.counts), 1)]
