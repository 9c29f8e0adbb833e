"""Byte n-gram models, counted and scored with sorted arrays: what a model without any learning of structure reaches.

A document is the sequence of its bytes and one end mark (symbol 256), seen after `order - 1` marks of its beginning
(256 too), so that every symbol has a full context and nothing is predicted across documents. An n-gram is packed into
an int64, nine bits a symbol, oldest symbol highest: its suffix of k symbols is `key & (1 << 9 * k) - 1`, its context
is `key >> 9`. Counts of all orders follow from the distinct n-grams of the highest order alone.

Probabilities are interpolated down to the uniform distribution over the 257 symbols:

    p_k(s | c) = (max(n(c s) - D(n(c s)), 0) + B(c) p_{k-1}(s | shorter c)) / A(c)

- Witten-Bell: D = 0, B(c) = T(c), A(c) = n(c) + T(c), with T(c) the number of distinct symbols seen after c.
- absolute discounting: D takes one of three values, for counts 1, 2 and more, estimated from the counts of counts of
  the order (Chen and Goodman 1999); B(c) is the mass they took, A(c) = n(c).
- Kneser-Ney (modified, interpolated): the same, but below the highest order n(c s) is the number of distinct symbols
  seen before c s.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

BITS = 9
SYMBOLS = 257
END = 256
SMOOTHINGS = ("witten_bell", "absolute", "kneser_ney")
CHUNK_BYTES = 1 << 22


def document_keys(text: bytes, order: int) -> np.ndarray:
    """The packed n-grams of one document, one for each of its bytes and its end mark: int64 (len(text) + 1,)."""
    symbols = np.full(len(text) + order, END, np.int64)
    symbols[order - 1 : -1] = np.frombuffer(text, np.uint8)
    keys = np.zeros(len(text) + 1, np.int64)
    for place in range(order):
        keys = (keys << BITS) | symbols[place : place + len(keys)]
    return keys


def suffix(keys: np.ndarray, symbols: int) -> np.ndarray:
    return keys & ((1 << BITS * symbols) - 1)


def counted(keys: np.ndarray, counts: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Distinct keys in rising order, and for each the sum of its counts (of ones where `counts` is None)."""
    if counts is None:
        distinct, sums = np.unique(keys, return_counts=True)
        return distinct, sums.astype(np.int64)
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], counts[order]
    starts = np.flatnonzero(np.diff(keys, prepend=keys[:1] - 1)) if len(keys) else np.zeros(0, np.int64)
    return keys[starts], np.add.reduceat(counts, starts) if len(keys) else counts


def count_ngrams(texts: Iterable[bytes], order: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct n-grams of all documents with their counts; memory grows with what is distinct, not with the text."""
    total = (np.zeros(0, np.int64), np.zeros(0, np.int64))
    for keys in _chunks(texts, order):
        chunk = counted(keys)
        total = counted(np.concatenate([total[0], chunk[0]]), np.concatenate([total[1], chunk[1]]))
    return total


def _chunks(texts: Iterable[bytes], order: int) -> Iterator[np.ndarray]:
    waiting: list[np.ndarray] = []
    size = 0
    for text in texts:
        waiting.append(document_keys(text, order))
        size += len(text)
        if size >= CHUNK_BYTES:
            yield np.concatenate(waiting)
            waiting, size = [], 0
    if waiting:
        yield np.concatenate(waiting)


@dataclass
class Table:
    """One order: its n-grams, and for each of its contexts what the interpolation needs. All keys rise.

    `keep` (N,) is the discounted count of each n-gram; `lower` (C,) the mass B(c) that goes to the shorter context and
    `whole` (C,) the denominator A(c).
    """

    keys: np.ndarray
    keep: np.ndarray
    contexts: np.ndarray
    lower: np.ndarray
    whole: np.ndarray

    @classmethod
    def build(cls, keys: np.ndarray, counts: np.ndarray, smoothing: str) -> "Table":
        contexts, starts = np.unique(keys >> BITS, return_index=True)
        total = np.add.reduceat(counts, starts).astype(np.float64)
        if smoothing == "witten_bell":
            types = np.diff(starts, append=len(keys)).astype(np.float64)
            return cls(keys, counts.astype(np.float64), contexts, types, total + types)
        taken = discounts(counts)[np.minimum(counts, 3)]
        return cls(keys, counts - taken, contexts, np.add.reduceat(taken, starts), total)

    def mix(self, keys: np.ndarray, shorter: np.ndarray) -> np.ndarray:
        """Probabilities of `keys` (of this order) given those of the next shorter context, both (n,)."""
        place, known = find(self.contexts, keys >> BITS)
        at, seen = find(self.keys, keys)
        kept = np.where(seen, self.keep[at], 0.0)
        return np.where(known, (kept + self.lower[place] * shorter) / self.whole[place], shorter)


def find(table: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each key its index in the rising `table` (some valid index where absent) and whether it is there."""
    at = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return at, table[at] == keys


def discounts(counts: np.ndarray) -> np.ndarray:
    """What to take off counts of 0, 1, 2 and 3 or more (4,), after Chen and Goodman; 0.5 to 1 where they say nothing.

    Low orders of a byte model have hardly a count of one or two, which leaves the formula without meaning there; a
    discount must stay above 0 all the same, or unseen symbols would be impossible.
    """
    n = np.bincount(np.minimum(counts, 5), minlength=6).astype(np.float64)
    if n[1:5].min() == 0:
        return np.array([0.0, 0.5, 0.75, 1.0])
    y = n[1] / (n[1] + 2 * n[2])
    found = np.array([1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]])
    return np.concatenate([[0.0], np.clip(found, 0.05, [0.95, 1.9, 2.85])])


class NGram:
    """An interpolated byte n-gram model of `order` symbols (context of `order - 1`), counted once."""

    def __init__(self, keys: np.ndarray, counts: np.ndarray, order: int, smoothing: str):
        if smoothing not in SMOOTHINGS:
            raise ValueError(f"smoothing is {smoothing!r}, must be one of {', '.join(SMOOTHINGS)}")
        self.order, self.smoothing = order, smoothing
        self.tables = [Table.build(keys, counts, smoothing)]
        for symbols in range(order - 1, 0, -1):
            ones = np.ones_like(counts) if smoothing == "kneser_ney" else counts
            keys, counts = counted(suffix(keys, symbols), ones)
            self.tables.insert(0, Table.build(keys, counts, smoothing))

    @classmethod
    def train(cls, texts: Iterable[bytes], order: int, smoothing: str) -> "NGram":
        keys, counts = count_ngrams(texts, order)
        if not len(keys):
            raise ValueError("an n-gram model needs at least one document to count")
        return cls(keys, counts, order, smoothing)

    def probability(self, keys: np.ndarray) -> np.ndarray:
        """p(last symbol | the others) of packed n-grams of this order: float64 (n,) from int64 (n,)."""
        found = np.full(len(keys), 1 / SYMBOLS)
        for symbols, table in enumerate(self.tables, 1):
            found = table.mix(suffix(keys, symbols), found)
        return found

    def bits(self, keys: np.ndarray, counts: np.ndarray) -> float:
        """The code length of n-grams that occur `counts` times, in bits."""
        return float(counts @ -np.log2(self.probability(keys)))


def best_ngram(texts: list[bytes], order: int, slice_share: float = 0.1) -> tuple[NGram, dict[str, float]]:
    """The strongest of the smoothings by a slice of the training text, then counted on all of it.

    Every tenth document (for `slice_share` 0.1) is scored by models of the others; a single document is cut in two.
    Returns the model and, for each smoothing, the bits per symbol on the slice.
    """
    every = round(1 / slice_share)
    if len(texts) == 1:
        half = len(texts[0]) // 2
        texts = [texts[0][:half], texts[0][half:]]
    every = min(every, len(texts))
    rest = [text for number, text in enumerate(texts) if number % every]
    trial = count_ngrams(rest, order)
    keys, counts = count_ngrams(texts[::every], order)
    scores = {name: NGram(*trial, order, name).bits(keys, counts) / counts.sum() for name in SMOOTHINGS}
    everything = counted(np.concatenate([trial[0], keys]), np.concatenate([trial[1], counts]))
    return NGram(*everything, order, min(SMOOTHINGS, key=scores.__getitem__)), scores
