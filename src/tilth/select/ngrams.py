"""Linear models over hashed n-grams of tokens: scoring a pool at reading speed, on the processor, without text.

A unit is the average of its n-grams, as in fastText (Joulin et al. 2017, https://arxiv.org/abs/1607.01759): with bag
B(x) of unigrams (one feature a token of the vocabulary) and longer n-grams (hashed to 2^bits buckets),

    score(x) = bias + 1 / |B(x)| sum_{g in B(x)} w_g

so length by itself moves no score, and there is no end-of-line feature that could. n-grams never cross units. The fits
are those of `tilth.curate.linear`.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from tilth.curate.linear import Bags

CHUNK_TOKENS = 1 << 17  # a chunk's arrays stay in the cache
MULTIPLIERS = np.array([0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F], np.uint32)  # odd, from xxHash


class NGrams:
    """Hashed n-grams up to `order` tokens of a vocabulary of `vocab_size`; features 0 .. size - 1."""

    def __init__(self, vocab_size: int, order: int = 2, bits: int = 18):
        self.vocab_size, self.order, self.bits = vocab_size, order, bits
        self.size = vocab_size + (1 << bits if order > 1 else 0)

    def bags(self, pool: Any, units: np.ndarray) -> Bags:
        """The n-grams of `units`, which have at least one token each, order by order."""
        begin = np.asarray(pool.offsets("tokens"))[units]
        length = np.asarray(pool.offsets("tokens"))[units + 1] - begin
        starts = np.cumsum(length) - length
        values = pool.values("tokens")
        whole = len(units) and begin[-1] + length[-1] - begin[0] == length.sum() and (np.diff(units) == 1).all()
        tokens = np.asarray(values[begin[0]:begin[-1] + length[-1]] if whole else
                            values[np.repeat(begin - starts, length) + np.arange(int(length.sum()))])
        tokens = tokens.astype(np.uint32)
        if self.order == 1:
            return Bags(tokens.astype(np.int32), starts, length)
        return self._with_longer(tokens, starts, length)

    def _with_longer(self, tokens: np.ndarray, starts: np.ndarray, length: np.ndarray) -> Bags:
        """Unigrams and longer n-grams side by side, (tokens, order); what would cross a unit's start is left out."""
        features = np.empty((len(tokens), self.order), np.int32)
        features[:, 0] = tokens
        key = tokens * MULTIPLIERS[0]
        inside = np.ones((len(tokens), self.order), bool)
        for extra in range(1, self.order):
            key[extra:] = (key[extra:] ^ (tokens[:-extra] * MULTIPLIERS[extra])) * MULTIPLIERS[3]
            features[:, extra] = (key >> np.uint32(32 - self.bits)) + np.uint32(self.vocab_size)
            for place in range(extra):
                inside[starts[length > place] + place, extra] = False
        counts = length.copy()
        for extra in range(1, self.order):
            counts += np.maximum(length - extra, 0)
        return Bags(features[inside], np.cumsum(counts) - counts, counts)

    def chunks(self, pool: Any, units: np.ndarray) -> Iterator[tuple[np.ndarray, Bags]]:
        """Places in `units` with their bags, some CHUNK_TOKENS tokens at a time; units without a token are left out."""
        offsets = np.asarray(pool.offsets("tokens"))
        length = offsets[units + 1] - offsets[units]
        places = np.flatnonzero(length)
        part = np.cumsum(length[places]) // CHUNK_TOKENS
        for group in np.split(places, np.flatnonzero(np.diff(part)) + 1):
            if len(group):
                yield group, self.bags(pool, units[group])

    def scores(self, pool: Any, weights: np.ndarray, bias: float = 0.0, units: np.ndarray | None = None,
               total: bool = False) -> np.ndarray:
        """bias + mean weight (with `total`: the sum) of each unit's n-grams, float64 (U,); `bias` alone without any."""
        units = np.arange(len(pool)) if units is None else units
        weights, found = weights.astype(np.float32), np.full(len(units), bias)
        for places, bags in self.chunks(pool, units):
            found[places] += bags.times(weights) * (bags.counts if total else 1)
        return found

    def counts(self, pool: Any, units: np.ndarray | None = None) -> np.ndarray:
        """How often each feature occurs, int64 (size,)."""
        found = np.zeros(self.size, np.int64)
        for _, bags in self.chunks(pool, np.arange(len(pool)) if units is None else units):
            found += np.bincount(bags.features, minlength=self.size)
        return found
