"""Cheap embeddings of units for comparing them with each other, and clusters of them.

A unit is the weighted mean of random directions, one for each of its hashed n-grams, frequent ones weighing less
(smooth inverse frequency: Arora, Liang and Ma 2017, "A Simple but Tough-to-Beat Baseline for Sentence Embeddings"),

    e(x) = 1 / |B(x)| sum_{g in B(x)} a / (a + p(g)) r_g        a = 1e-3; r_g uniform signs; p(g) in what is embedded

minus the mean over all units, scaled to length 1 (theirs subtracts the first principal component). By Johnson and
Lindenstrauss the cosines are those of the weighted n-gram counts, to within about 1 / sqrt(dims). No model is asked.
"""

from typing import Any

import numpy as np
import torch

from tilth.select.ngrams import NGrams

SMOOTH = 1e-3
ROUNDS = 10  # of k-means
BLOCK = 1 << 22  # similarities worked out at once


def embed(pool: Any, units: np.ndarray, dims: int = 64, order: int = 2, bits: int = 14, seed: int = 0) -> np.ndarray:
    """Unit vectors of `units` (rows of the pool), float32 (n, dims); 0 for a unit without tokens."""
    ngrams = NGrams(pool.vocab_size, order, bits)
    counts = ngrams.counts(pool, units)
    weight = SMOOTH / (SMOOTH + counts / max(counts.sum(), 1))
    signs = np.random.default_rng([seed, dims]).integers(0, 2, (ngrams.size, dims), np.int8)
    table = torch.from_numpy((weight[:, None] * (2.0 * signs - 1)).astype(np.float32))
    found = np.zeros((len(units), dims), np.float32)
    for places, bags in ngrams.chunks(pool, units):
        found[places] = torch.nn.functional.embedding_bag(
            torch.from_numpy(bags.features.astype(np.int64)), table, torch.from_numpy(bags.starts.astype(np.int64)),
            mode="mean").numpy()
    return normalised(found)


def embedding_flops(tokens: float, dims: int = 64, order: int = 2) -> float:
    """FLOPs of `embed` for so many tokens."""
    return 2.0 * dims * order * tokens


def normalised(vectors: np.ndarray) -> np.ndarray:
    """Vectors (n, dims) minus the mean of those that are not 0, each scaled to length 1."""
    there = (vectors != 0).any(axis=1)
    if not there.any():
        return vectors
    centred = np.where(there[:, None], vectors - vectors[there].mean(axis=0), 0)
    size = np.linalg.norm(centred, axis=1, keepdims=True)
    return (centred / np.maximum(size, 1e-12)).astype(np.float32)


def clusters(vectors: np.ndarray, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Spherical k-means (Dhillon and Modha 2001) of unit vectors (n, dims), seeded by k-means++: the cluster of each,
    int64 (n,), and its cosine with the cluster's direction, float32 (n,)."""
    centres = seeds(vectors, min(count, len(vectors)), rng)
    place, near = nearest(vectors, centres)
    for _ in range(ROUNDS):
        sums = np.zeros_like(centres)
        np.add.at(sums, place, vectors)
        size = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(size > 1e-9, sums / np.maximum(size, 1e-9), centres)  # an empty cluster stays where it is
        before = place
        place, near = nearest(vectors, centres)
        if (place == before).all():
            break
    return place, near


def seeds(vectors: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Up to `count` of the vectors, each drawn in proportion to 1 - cosine with the nearest before it (Arthur and
    Vassilvitskii 2007), float32 (count, dims)."""
    chosen = [int(rng.integers(len(vectors)))]
    far = 1 - vectors @ vectors[chosen[0]]
    while len(chosen) < count:
        upto = np.cumsum(np.maximum(far, 0), dtype=np.float64)
        if upto[-1] <= 1e-6:  # nothing but copies of what was chosen
            break
        chosen.append(int(np.searchsorted(upto, rng.random() * upto[-1], side="right").clip(max=len(vectors) - 1)))
        far = np.minimum(far, 1 - vectors @ vectors[chosen[-1]])
    return vectors[chosen]


def clustering_flops(count: float, clusters: int, dims: int = 64) -> float:
    """FLOPs of `clusters` for `count` vectors, at most."""
    return 2.0 * (ROUNDS + 2) * count * clusters * dims


def nearest(vectors: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The row of `centres` with the largest product with each vector, and that product."""
    place, near = np.empty(len(vectors), np.int64), np.empty(len(vectors), np.float32)
    step = max(1, BLOCK // len(centres))
    for first in range(0, len(vectors), step):
        products = vectors[first:first + step] @ centres.T
        place[first:first + step], near[first:first + step] = products.argmax(axis=1), products.max(axis=1)
    return place, near
