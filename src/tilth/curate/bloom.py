"""Sets of 64-bit hashes that tell what came before: exactly, or as a Bloom filter in less memory.

Both take whole arrays: `add(hashes)` returns which of them were seen before, earlier in the same array included, and
adds them all. The answers depend on nothing but what was added, in which batches.
"""

import math

import numpy as np

from tilth.curate.ngrams import mixed

U64 = np.uint64


def first_of_each(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct hashes, and where each comes first."""
    return np.unique(hashes, return_index=True)


class HashSet:
    """An open-addressing table (linear probing) of 64-bit hashes, for at most `capacity` distinct ones.

    8 bytes a place, at most two thirds of them filled. Two different keys have one hash with probability 2^-64; among
    n keys any two do with probability about n^2 / 2^65.
    """

    def __init__(self, capacity: int):
        self.table = np.zeros(1 << max(4, (capacity * 3 // 2).bit_length()), np.uint64)

    def add(self, hashes: np.ndarray) -> np.ndarray:
        hashes = np.where(hashes == 0, U64(1), hashes)  # 0 marks an empty place
        distinct, first = first_of_each(hashes)
        seen = np.ones(len(hashes), bool)
        seen[first] = self._insert(distinct)
        return seen

    def _insert(self, hashes: np.ndarray) -> np.ndarray:
        """Which of these distinct hashes were there; afterwards all are."""
        there = np.zeros(len(hashes), bool)
        waiting = np.arange(len(hashes))
        last = U64(len(self.table) - 1)
        places = (mixed(hashes) & last).astype(np.int64)
        while len(waiting):
            wanted, held = hashes[waiting], self.table[places]
            there[waiting[held == wanted]] = True
            free = held == 0
            self.table[places[free]] = wanted[free]  # of several that want one place, the last gets it
            done = (self.table[places] == wanted)
            waiting, places = waiting[~done], (places[~done] + 1) & int(last)
        return there


class Bloom:
    """A Bloom filter (Bloom 1970) for `capacity` hashes that calls a new one seen with probability at most `rate`.

    m = ceil(n ln(1/rate) / ln(2)^2) bits, k = round(m/n ln 2) functions; with n hashes added, the probability is
    (1 - e^(-k n / m))^k. The functions are h1 + i h2 modulo m (Kirsch & Mitzenmacher 2006).
    """

    def __init__(self, capacity: int, rate: float):
        self.bits, self.functions = bloom_size(capacity, rate)
        self.words = np.zeros(self.bits // 8 + 1, np.uint8)

    def add(self, hashes: np.ndarray) -> np.ndarray:
        distinct, first = first_of_each(hashes)
        seen = np.ones(len(hashes), bool)
        there = np.ones(len(distinct), bool)
        step = mixed(distinct ^ U64(0x9E3779B97F4A7C15)) | U64(1)
        places = []
        for number in range(self.functions):
            at = (distinct + U64(number) * step) % U64(self.bits)
            places.append(((at >> U64(3)).astype(np.int64), (U64(1) << (at & U64(7))).astype(np.uint8)))
            there &= (self.words[places[-1][0]] & places[-1][1]) != 0
        for word, bit in places:
            np.bitwise_or.at(self.words, word, bit)
        seen[first] = there
        return seen


def bloom_size(capacity: int, rate: float) -> tuple[int, int]:
    """Bits and number of functions; see `Bloom`."""
    capacity = max(capacity, 1)
    bits = math.ceil(capacity * math.log(1 / rate) / math.log(2) ** 2)
    functions = max(1, round(bits / capacity * math.log(2)))
    while false_positives(capacity, bits, functions) > rate:
        bits += bits // 1000 + 1  # rounding the number of functions costs a little
    return bits, functions


def false_positives(added: int, bits: int, functions: int) -> float:
    """The probability that a new hash is called seen, with `added` hashes in the filter."""
    return float((-np.expm1(-functions * added / bits)) ** functions)
