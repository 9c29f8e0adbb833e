"""MinHash signatures and their banding (locality-sensitive hashing).

The share of equal places of two signatures estimates the Jaccard similarity of the two sets of n-grams without bias
(Broder 1997). Signatures are cut into `bands` of `rows` places; two texts with Jaccard similarity s agree in all of at
least one band with probability 1 - (1 - s^rows)^bands (Indyk & Motwani 1998; Leskovec, Rajaraman & Ullman, chapter 3).
"""

from functools import cache

import numpy as np
import polars as pl

from tilth.curate.ngrams import STEP, Unit, blocks, mixed

PIECE = 1 << 15  # windows: 128 KiB, so that a piece and its products stay in the processor's nearer caches
NOTHING = np.uint32(0xFFFFFFFF)


@cache
def permutations(number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Multiplier and addend of each permutation x -> a x + b (a odd) of the 32-bit numbers.

    What is permuted are bits of a well mixed hash, for which so simple a family behaves like random permutations
    (Dietzfelbinger et al. 1997; Mitzenmacher & Vadhan 2008).
    """
    drawn = mixed((np.arange(1, 2 * number + 1, dtype=np.uint64) + np.uint64(seed) * np.uint64(1 << 20)) * STEP)
    drawn = (drawn >> np.uint64(32)).astype(np.uint32)
    return drawn[:number] | np.uint32(1), drawn[number:]


def signatures(texts: pl.Series, ngram: int, unit: Unit, number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Signatures, uint32 of shape (number, texts), and bool of shape (texts,): has the text any n-gram?"""
    result = np.full((number, len(texts)), NOTHING)
    known = np.zeros(len(texts), bool)
    for block in blocks(texts, unit):
        hashes, first, _ = block.windows(ngram)
        if len(hashes):
            text_of = block.text_of[first]
            begins = np.flatnonzero(np.diff(text_of, prepend=-1))
            there = block.documents[text_of[begins]]
            result[:, there] = _minima((hashes >> np.uint64(32)).astype(np.uint32), begins, number, seed)
            known[there] = True
    return result, known


def _minima(values: np.ndarray, begins: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Least value of every permutation over each text: uint32 of shape (number, len(begins))."""
    result = np.full((number, len(begins)), NOTHING)
    multipliers, addends = permutations(number, seed)
    buffer = np.empty(PIECE, np.uint32)
    for at in range(0, len(values), PIECE):
        piece = values[at:at + PIECE]
        low, high = np.searchsorted(begins, [at, at + len(piece)])
        inner = begins[low:high] - at
        carried = int(not len(inner) or inner[0] > 0)  # the first text began in an earlier piece
        cuts = np.concatenate([[0], inner]) if carried else inner
        into, products = result[:, low - carried:high], buffer[:len(piece)]
        for row, multiplier, addend in zip(into, multipliers, addends, strict=True):
            np.multiply(piece, multiplier, out=products)
            np.add(products, addend, out=products)
            np.minimum(row, np.minimum.reduceat(products, cuts), out=row)
    return result


def band_keys(signature: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """uint64 of shape (bands, texts): a hash of the `rows` places of each band."""
    keys = np.zeros((bands, signature.shape[1]), np.uint64)
    for band in range(bands):
        for place in signature[band * rows:(band + 1) * rows]:
            keys[band] = mixed(keys[band] + place) * STEP
    return keys


def agreement(signature: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Estimated Jaccard similarity of pairs of texts (indices `left` and `right`)."""
    return (signature[:, left] == signature[:, right]).mean(axis=0)


def recall(jaccard: np.ndarray | float, bands: int, rows: int) -> np.ndarray:
    """Probability that two texts of this Jaccard similarity share a band: 1 - (1 - s^rows)^bands."""
    return 1 - (1 - np.asarray(jaccard, float) ** rows) ** bands


def best_bands(threshold: float, number: int) -> tuple[int, int]:
    """Bands and rows, at most `number` places together, whose recall comes closest to a step at `threshold`: the area
    of the curve below it and of what lacks above it are least (Zhu et al. 2016, as in datasketch)."""
    grid = (np.arange(1000) + 0.5) / 1000
    below = grid < threshold
    candidates = [(bands, rows) for rows in range(1, number + 1) for bands in range(1, number // rows + 1)]

    def error(pair: tuple[int, int]) -> float:
        curve = recall(grid, *pair)
        return float(np.where(below, curve, 1 - curve).sum())

    return min(candidates, key=error)
