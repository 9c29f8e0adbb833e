"""Semantic deduplication: of units that say the same, one stays.

Abbas et al. 2023 ("SemDeDup: Data-efficient learning at web-scale through semantic deduplication",
https://arxiv.org/abs/2303.09540): units are embedded and clustered by k-means; within a cluster, from the least typical
unit (the lowest cosine with the cluster's direction) to the most,

    redundancy(x) = max cosine of x with any unit before it          -1 for the first

and x goes if its redundancy is above a threshold: of each group of likes the least typical one stays. The paper embeds
by a pretrained model; here by the model being trained, or without any by hashed n-grams.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from tilth.data.pool import Pool
from tilth.data.seeding import generator
from tilth.recipe import BadInput
from tilth.select.drawing import pack_mask, top_share, unpack_mask
from tilth.select.embedding import clustering_flops, clusters, embed, embedding_flops, normalised
from tilth.select.protocols import Plan, Selector, SelectorConfig
from tilth.select.scored import ByScore

ORDER = 2  # of the n-grams
LEVELS = (0.8, 0.9, 0.95, 0.99)  # thresholds whose effect is reported
BLOCK = 1 << 12  # units of a cluster that are compared with all before them at once


class SemDeDup(SelectorConfig):
    """One of each group of units that are alike, by cosine of embeddings within k-means clusters (SemDeDup).

    Give `threshold`, a cosine above which a unit is redundant, or `keep`, the share of the units that stay. embedding:
    `ngrams` compares hashed n-grams before training, `model` mean hidden states of the model being trained, once, at
    the beginning of stretch `start` (a forward pass over the pool; the stretches before see everything).
    """

    kind: str = "semdedup"
    threshold: float | None = Field(None, ge=-1, le=1)
    keep: float | None = Field(None, gt=0, le=1)
    embedding: Literal["ngrams", "model"] = "ngrams"
    clusters: int | None = Field(None, ge=1, description="default: the square root of the number of units")
    dims: int = Field(128, ge=2, description="of n-gram embeddings")
    start: int = Field(1, ge=0)

    @model_validator(mode="after")
    def _one(self) -> "SemDeDup":
        if (self.threshold is None) == (self.keep is None):
            raise ValueError("give either `threshold`, a cosine such as 0.95, or `keep`, a share of the units")
        return self

    def files(self) -> list[Path]:
        return []

    def build(self, pool: Pool, seed: int) -> Selector:
        if self.embedding == "model":
            return ByModel(pool, self, seed)
        units = np.arange(len(pool))
        mask, figures = self.choose(embed(pool, units, self.dims, ORDER), seed)
        flops = embedding_flops(float(pool.lengths().sum()), self.dims, ORDER) + self.flops(len(pool), self.dims)
        return ByScore(mask, figures, flops)

    def choose(self, vectors: np.ndarray, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        """Mask (n,) of the units that stay, by unit vectors (n, dims), and figures for the report."""
        place, near = clusters(vectors, self.groups(len(vectors)), generator(seed, "semdedup"))
        found = redundancy(vectors, place, near)
        mask = found <= self.threshold if self.threshold is not None else top_share(-found, self.keep or 1.0)
        above = {f"above_{level}": float(np.mean(found > level)) for level in LEVELS}
        return mask, {"units": len(mask), "selected": int(mask.sum()), "clusters": int(place.max()) + 1, **above,
                      "threshold": self.threshold if self.threshold is not None else float(found[mask].max())}

    def groups(self, units: int) -> int:
        return self.clusters or max(1, round(math.sqrt(units)))

    def flops(self, units: int, dims: int) -> float:
        """Of clusters and comparisons."""
        groups = self.groups(units)
        return clustering_flops(units, groups, dims) + 2.0 * dims * units * units / groups


class ByModel(Selector):
    """Asks the model for embeddings at its stretch and remembers the choice."""

    def __init__(self, pool: Pool, config: SemDeDup, seed: int):
        self.pool, self.config, self.seed = pool, config, seed
        self.probe: Any = None
        self.mask: np.ndarray | None = None
        self.figures: dict[str, Any] = {}

    def bind(self, probe: Any) -> None:
        self.probe = probe

    def select(self, candidates: np.ndarray, stretch: int, rng: np.random.Generator) -> np.ndarray:
        if self.mask is None:
            if stretch < self.config.start or not self.paid(stretch):
                return candidates
            if self.probe is None:
                raise BadInput("`embedding: model` asks the model being trained, and there is none here; use ngrams.")
            vectors = normalised(self.probe.embeddings(np.arange(len(self.pool))))
            self.probe.spend(self.config.flops(len(self.pool), vectors.shape[1]))
            self.mask, self.figures = self.config.choose(vectors, self.seed)
        return candidates[self.mask[candidates]]

    def planned_flops(self, plan: Plan) -> float:
        # The width of the model is not known here; its comparisons are small beside its pass over the pool.
        return plan.forward(float(self.pool.lengths().sum())) + self.config.flops(len(self.pool), self.config.dims) if (
            plan.stretches > self.config.start) else 0.0

    def report(self) -> dict[str, Any]:
        return self.figures

    def state_dict(self) -> dict[str, Any]:
        return {"mask": None if self.mask is None else pack_mask(self.mask), "figures": self.figures}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mask = None if state["mask"] is None else unpack_mask(state["mask"], len(self.pool))
        self.figures = dict(state["figures"])


def redundancy(vectors: np.ndarray, cluster: np.ndarray, near: np.ndarray) -> np.ndarray:
    """The largest cosine of each unit with a less typical one of its cluster, float32 (n,).

    vectors: unit vectors (n, dims); cluster (n,); near (n,): cosine with the cluster's direction. Of equally typical
    units the earlier counts as less typical.
    """
    found = np.full(len(vectors), -1, np.float32)
    order = np.lexsort((near, cluster))
    for members in np.split(order, np.flatnonzero(np.diff(cluster[order])) + 1):
        for first in range(0, len(members), BLOCK):
            part = members[first:first + BLOCK]
            alike = vectors[part] @ vectors[members[:first + len(part)]].T
            rows = np.arange(len(part))[:, None] + first
            alike[rows <= np.arange(alike.shape[1])[None]] = -1
            found[part] = alike.max(axis=1)
    return found
