"""A draw by score that also cares how alike the drawn units are.

Scores of single units add up as if units did not overlap; ten copies of the best unit are ten times the best. Two
cures, over cheap embeddings of the units (`tilth.select.embedding`):

    quota      k-means clusters of the window; none gets more than `cap` times its share of the window
    facility   greedy facility location (Lin and Bilmes 2011, "A Class of Submodular Functions for Document
               Summarization"): units are taken one by one, each the one with the largest

                   score_j + temperature Gumbel_j + strength k / n sum_i max(0, cos_ij - covered_i)

               where covered_i is the largest cosine of unit i with what was taken, n the window and k what is drawn
               from it. A unit that alone stands for n / k others gains `strength`; scores are standardised.

Without a cap, or with a strength of 0, both are the Gumbel-top-k draw, unit for unit.
"""

import heapq
import math
from typing import Any

import numpy as np
from pydantic import Field

from tilth.recipe import Config
from tilth.select.drawing import gumbel_keys, gumbel_top_k
from tilth.select.embedding import clustering_flops, clusters, embed, embedding_flops

NEIGHBOURHOOD = 1024  # units that facility location compares with each other


class Diversity(Config):
    """How alike what is drawn together may be."""

    kind: str = ""

    def draw(self, pool: Any, units: np.ndarray, scores: np.ndarray, count: int, temperature: float,
             rng: np.random.Generator) -> tuple[np.ndarray, dict[str, float]]:
        """`count` places in `units` (rows of the pool) by standardised scores, both (n,); figures for the report."""
        raise NotImplementedError(f"{type(self).__name__} must draw units.")

    def flops(self, units: float, tokens: float) -> float:
        """What a draw from so many units costs beside their scores."""
        return 0.0


class ScoreAlone(Diversity):
    """The draw looks at scores alone."""

    kind: str = "none"

    def draw(self, pool: Any, units: np.ndarray, scores: np.ndarray, count: int, temperature: float,
             rng: np.random.Generator) -> tuple[np.ndarray, dict[str, float]]:
        return gumbel_top_k(scores, count, temperature, rng), {}


class Quota(Diversity):
    """No cluster of the window gets more than `cap` times its share of it."""

    kind: str = "quota"
    clusters: int = Field(16, ge=2)
    cap: float = Field(2.0, ge=1, description="1 draws every cluster in proportion")
    dims: int = Field(64, ge=2, description="of the embedding")

    def draw(self, pool: Any, units: np.ndarray, scores: np.ndarray, count: int, temperature: float,
             rng: np.random.Generator) -> tuple[np.ndarray, dict[str, float]]:
        order = gumbel_top_k(scores, len(scores), temperature, rng)
        vectors = embed(pool, units, self.dims)
        cluster, _ = clusters(vectors, self.clusters, rng)
        most = np.ceil(self.cap * count * np.bincount(cluster, minlength=self.clusters) / len(units))
        drawn = order[rank_within(cluster[order]) < most[cluster[order]]][:count]
        return drawn, likeness(vectors, drawn)

    def flops(self, units: float, tokens: float) -> float:
        return embedding_flops(tokens, self.dims) + clustering_flops(units, self.clusters, self.dims)


class Facility(Diversity):
    """Units that stand for many others come first: greedy facility location.

    It works in random neighbourhoods of the window, so that its cost grows with the window linearly.
    """

    kind: str = "facility"
    strength: float = Field(1.0, ge=0, description="in standard deviations of the score")
    dims: int = Field(64, ge=2, description="of the embedding")

    def draw(self, pool: Any, units: np.ndarray, scores: np.ndarray, count: int, temperature: float,
             rng: np.random.Generator) -> tuple[np.ndarray, dict[str, float]]:
        keys, vectors = gumbel_keys(scores, temperature, rng), embed(pool, units, self.dims)
        if not self.strength:
            drawn = np.argsort(-keys, kind="stable")[:count]
            return drawn, likeness(vectors, drawn)
        parts = np.array_split(rng.permutation(len(units)), math.ceil(len(units) / NEIGHBOURHOOD))
        ends = np.round(np.cumsum([len(part) for part in parts]) * count / len(units)).astype(int)
        drawn = np.concatenate([part[greedy(keys[part], vectors[part], int(size), self.strength)] for part, size in
                                zip(parts, np.diff(ends, prepend=0), strict=True)])
        return drawn, likeness(vectors, drawn)

    def flops(self, units: float, tokens: float) -> float:
        near = min(units, NEIGHBOURHOOD)
        return embedding_flops(tokens, self.dims) + units * near * (2.0 * self.dims + 2)


def greedy(keys: np.ndarray, vectors: np.ndarray, count: int, strength: float) -> np.ndarray:
    """`count` places by key plus coverage. Gains only fall while units are taken, so that the best known gain is the
    best if it still holds (Minoux 1978)."""
    alike = np.maximum(vectors @ vectors.T, 0)
    covered, scale = np.zeros(len(keys), np.float32), strength * count / len(keys)

    def value(place: int) -> float:
        return float(keys[place]) + scale * float(np.maximum(alike[place] - covered, 0).sum())

    waiting = [(-value(place), place) for place in range(len(keys))]
    heapq.heapify(waiting)
    taken: list[int] = []
    while len(taken) < min(count, len(keys)):
        _, place = heapq.heappop(waiting)
        fresh = (-value(place), place)
        if waiting and fresh > waiting[0]:
            heapq.heappush(waiting, fresh)
            continue
        taken.append(place)
        np.maximum(covered, alike[place], out=covered)
    return np.array(taken, np.int64)


def rank_within(groups: np.ndarray) -> np.ndarray:
    """How many earlier entries are of the same group, int64 (n,)."""
    order = np.argsort(groups, kind="stable")
    _, first, counts = np.unique(groups[order], return_index=True, return_counts=True)
    rank = np.empty(len(groups), np.int64)
    rank[order] = np.arange(len(groups)) - np.repeat(first, counts)
    return rank


def likeness(vectors: np.ndarray, drawn: np.ndarray) -> dict[str, float]:
    """Mean cosine of two drawn units, and of two of all."""
    return {"likeness": mean_cosine(vectors[drawn]), "likeness_of_window": mean_cosine(vectors)}


def mean_cosine(vectors: np.ndarray) -> float:
    count, total = len(vectors), vectors.sum(axis=0, dtype=np.float64)
    own = float(np.square(vectors, dtype=np.float64).sum())
    return (float(total @ total) - own) / max(count * (count - 1), 1)


DIVERSITIES: dict[str, type[Config] | str] = {"none": ScoreAlone, "quota": Quota, "facility": Facility}
