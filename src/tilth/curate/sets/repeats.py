"""Repeated n-grams of words within documents, for a whole batch at once.

Only repeated n-grams matter, and those of n + 1 words begin where one of n words does: so all windows are sorted once,
for the smallest n, and ever fewer for the next ones. What is sorted is one unsigned integer a window, the high bits of
a hash over the document's number and the place in the low bits, so that equal windows come to lie side by side in the
order of their places, and no second array has to be moved along. Neighbours count as equal if all 64 bits agree.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tilth.curate.sets.words import Words

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, hence invertible modulo 2^64: every word of a window counts
SEED = 0x6E6772616D
CHUNK = 1 << 19  # words sorted at once: the arrays of this many stay in the caches


@dataclass(frozen=True)
class Repeats:
    """The windows of `size` words that occur again in their document, grouped: equal ones together, by place.

    `places`: index of the first word (into all words of the batch, int64). `group`: number of the group (int64, from
    0, ascending), `first`: index of each group's first window.
    """

    size: int
    places: np.ndarray
    group: np.ndarray
    first: np.ndarray

    def counts(self) -> np.ndarray:
        """Windows of each group."""
        return np.diff(np.append(self.first, len(self.places)))


def repeats(words: Words, sizes: range) -> Iterator[list[Repeats]]:
    """For each chunk of documents its repeats for every size, in ascending order of size."""
    hashes = words.each(words.values.hash(seed=SEED).to_numpy())
    document, last = words.document(), len(words.starts) - 1
    start = 0
    while start < last:
        # Whole documents up to CHUNK words; a longer document is a chunk of its own.
        end = int(np.searchsorted(words.starts, words.starts[start] + CHUNK, "right")) - 1
        end = min(max(end, start + 1), last)
        low, high = words.starts[start], words.starts[end]
        yield _of_chunk(hashes[low:high], document[low:high], int(low), sizes)
        start = end


def _of_chunk(hashes: np.ndarray, document: np.ndarray, offset: int, sizes: range) -> list[Repeats]:
    total = len(hashes)
    bits = np.uint64(max(total, 2).bit_length())
    # A document's number is in the hash, so that equal windows are of the same document.
    salt = (document.astype(np.uint64) + np.uint64(1)) * MULTIPLIER
    salt ^= salt >> np.uint64(29)
    window, places = hashes, np.arange(total)
    found: list[Repeats] = []
    for size in range(2, sizes.stop):
        if found:  # only where a shorter one repeats
            places = np.sort(found[-1].places)
            places = places[places + size <= total]
            window = window[places] * MULTIPLIER + hashes[places + (size - 1)]
        else:
            places = places[:max(total - size + 1, 0)]
            window = window[:len(places)] * MULTIPLIER + hashes[size - 1:]
        if size < sizes.start:
            continue
        inside = document[places + (size - 1)] == document[places]
        places = places[inside]
        made = _grouped((window[inside] + salt[places]) * MULTIPLIER, places, size, bits)
        window = _spread(window[inside], places, total)
        found.append(made)
    return [Repeats(one.size, one.places + offset, one.group, one.first) for one in found]


def _spread(window: np.ndarray, places: np.ndarray, total: int) -> np.ndarray:
    out = np.zeros(total, np.uint64)
    out[places] = window
    return out


def _grouped(keys: np.ndarray, places: np.ndarray, size: int, bits: np.uint64) -> Repeats:
    low = (np.uint64(1) << bits) - np.uint64(1)
    packed = np.sort((keys & ~low) | np.arange(len(keys), dtype=np.uint64))
    order = (packed & low).astype(np.int64)
    same = (packed[1:] ^ packed[:-1]) <= low
    likely = np.flatnonzero(same)
    same[likely] = keys[order[likely + 1]] == keys[order[likely]]
    again = np.zeros(len(keys), bool)
    again[1:] |= same
    again[:-1] |= same
    opens = np.ones(len(keys), bool)
    opens[1:] = ~same
    opens = opens[again]
    return Repeats(size, places[order[again]], np.cumsum(opens) - 1, np.flatnonzero(opens))
