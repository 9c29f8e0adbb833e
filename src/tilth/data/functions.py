"""Families of random functions, and a stream of sequences (x_1, f(x_1), ..., x_K, f(x_K)) from a mixture of them.

The controlled study of what learning in context owes to pretraining (Garg et al. 2022, arXiv 2208.01066; mixtures of
families: Yadlowsky et al. 2023, arXiv 2311.00871). Every family is scaled to one variance of its outputs, so that
families cannot be told apart by size. There is no noise.

Shapes: B sequences (each a unit with a function of its own), K points, d coordinates of a point.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from tilth.data.batch import Batch
from tilth.data.seeding import generator
from tilth.data.streams import Inputs, StreamConfig, UnitStream
from tilth.recipe import BadInput, Config, one_of

BLOCK = 64  # sequences drawn together, from random numbers of their own
Distribution = Literal["normal", "uniform"]
REACH = 2.0  # uniform points lie in [-2, 2]
VARIANCE = {"normal": 1.0, "uniform": REACH**2 / 3}


class Family(Config):
    """A distribution over functions of d coordinates; `values` draws a function for each row of points."""

    kind: str = ""
    variance: float = Field(1.0, gt=0, description="of f(x), over functions and points")

    def values(self, rng: np.random.Generator, x_BKd: np.ndarray, spread: float) -> np.ndarray:
        """f_b(x) for one new function a row, (B, K). spread: the variance of each coordinate of the points."""
        raise TypeError(f"{type(self).__name__} does not define values.")


class Linear(Family):
    """f(x) = beta . x with every coordinate of beta normal, or only `nonzero` of them, placed at random."""

    kind: str = "linear"
    nonzero: int | None = Field(None, ge=1)

    def coefficients(self, rng: np.random.Generator, count: int, dims: int, spread: float) -> np.ndarray:
        """beta of `count` functions, (count, d)."""
        some = self.nonzero or dims
        if some > dims:
            raise BadInput(f"`nonzero` is {some}, but a point has only {dims} coordinates.")
        beta = rng.normal(0.0, math.sqrt(self.variance / (some * spread)), (count, dims))
        ranks = rng.random((count, dims)).argsort(1).argsort(1)  # which coordinates stay: the ranks of random numbers
        return np.where(ranks < some, beta, 0.0)

    def values(self, rng: np.random.Generator, x_BKd: np.ndarray, spread: float) -> np.ndarray:
        beta = self.coefficients(rng, len(x_BKd), x_BKd.shape[2], spread)
        return np.einsum("bkd,bd->bk", x_BKd, beta)


class TwoLayer(Family):
    """f(x) = v . relu(W x) with W and v normal: random networks of one hidden layer."""

    kind: str = "two_layer"
    hidden: int = Field(100, ge=1)

    def values(self, rng: np.random.Generator, x_BKd: np.ndarray, spread: float) -> np.ndarray:
        rows, _, dims = x_BKd.shape
        first = rng.normal(size=(rows, dims, self.hidden))
        # E relu(w . x)^2 is half of E (w . x)^2 = d * spread, since w is as likely as -w.
        second = rng.normal(0.0, math.sqrt(2 * self.variance / (self.hidden * dims * spread)), (rows, self.hidden))
        return np.einsum("bkh,bh->bk", np.maximum(np.einsum("bkd,bdh->bkh", x_BKd, first), 0.0), second)


class Sinusoid(Family):
    """f(x) = sqrt(2 variance) sin(omega x + phase), omega uniform in `frequencies`, phase uniform; x is one number."""

    kind: str = "sinusoid"
    frequencies: tuple[float, float] = (1.0, 4.0)

    def values(self, rng: np.random.Generator, x_BKd: np.ndarray, spread: float) -> np.ndarray:
        if x_BKd.shape[2] != 1:
            raise BadInput(f"Sinusoids are functions of one number; these points have {x_BKd.shape[2]} coordinates.")
        omega = rng.uniform(*self.frequencies, (len(x_BKd), 1))
        phase = rng.uniform(0.0, 2 * math.pi, (len(x_BKd), 1))
        return math.sqrt(2 * self.variance) * np.sin(omega * x_BKd[:, :, 0] + phase)


FAMILIES: dict[str, "type[Family] | str"] = {"linear": Linear, "two_layer": TwoLayer, "sinusoid": Sinusoid,
                                             "combination": "tilth.data.functions:Combination"}


class Combination(Family):
    """f = weight f1 + (1 - weight) f2, one function of each family: tasks between those trained on. Its variance is
    what the two make of it."""

    kind: str = "combination"
    first: one_of(Family, FAMILIES)  # type: ignore[valid-type]
    second: one_of(Family, FAMILIES)  # type: ignore[valid-type]
    weight: float = Field(0.5, ge=0, le=1)

    def values(self, rng: np.random.Generator, x_BKd: np.ndarray, spread: float) -> np.ndarray:
        first, second = self.first.values(rng, x_BKd, spread), self.second.values(rng, x_BKd, spread)
        return self.weight * first + (1 - self.weight) * second


def draw_points(rng: np.random.Generator, shape: tuple[int, int, int], points: Distribution) -> np.ndarray:
    """Points (B, K, d), every coordinate on its own: standard normal, or uniform in [-2, 2]."""
    return rng.normal(size=shape) if points == "normal" else rng.uniform(-REACH, REACH, shape)


class FunctionsConfig(StreamConfig):
    """Sequences of points and values of random functions, each from one of `families`.

    points: K of a sequence; dims: d of a point; shares: of each family, by its name (default: equal).
    """

    kind: str = "functions"
    families: dict[str, one_of(Family, FAMILIES)] = Field(min_length=1)  # type: ignore[valid-type]
    shares: dict[str, float] = Field(default_factory=dict)
    points: int = Field(16, ge=2)
    dims: int = Field(1, ge=1)
    distribution: Distribution = "normal"

    @model_validator(mode="after")
    def _shares_of_families(self) -> "FunctionsConfig":
        if self.shares and (self.shares.keys() != self.families.keys() or min(self.shares.values()) < 0
                            or not sum(self.shares.values()) > 0):
            raise ValueError("shares must give every family a number of at least 0, and not all of them 0")
        return self

    def sample(self, rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x (B, K, d), y (B, K) in float64, and the index of each sequence's family, int64 (B,)."""
        shares = np.array([self.shares.get(name, 1.0) for name in self.families])
        family = np.searchsorted(np.cumsum(shares / shares.sum())[:-1], rng.random(rows), side="right")
        x = draw_points(rng, (rows, self.points, self.dims), self.distribution)
        y = np.empty(x.shape[:2])
        for index, one in enumerate(self.families.values()):
            where = family == index
            y[where] = one.values(rng, x[where], VARIANCE[self.distribution])
        return x, y, family

    def build(self, inputs: Inputs, seed: int) -> "FunctionStream":
        return FunctionStream(self, seed)


class FunctionStream(UnitStream):
    """Batches `x (B, K, d)`, `y (B, K)`: sequence i of the stream is a pure function of (seed, i)."""

    def __init__(self, config: FunctionsConfig, seed: int):
        self.config, self.seed = config, seed
        self.facts = {"dims": config.dims, "points": config.points}
        self.row = 0
        self._block: int | None = None  # the one whose sequences are kept in _drawn

    def next(self, rows: int) -> Batch:
        parts = []
        first, last = self.row, self.row + rows
        while self.row < last:
            block, start = divmod(self.row, BLOCK)
            take = min(BLOCK - start, last - self.row)
            parts.append([values[start:start + take] for values in self._of(block)])
            self.row += take
        x, y, family = (np.concatenate(values) for values in zip(*parts, strict=True))
        return {"x": torch.from_numpy(x).float(), "y": torch.from_numpy(y).float(),
                "unit_id": torch.arange(first, last), "source": torch.from_numpy(family.astype(np.int64)),
                "weight": torch.ones(rows)}

    def _of(self, block: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if block != self._block:
            self._block, self._drawn = block, self.config.sample(generator(self.seed, "functions", block), BLOCK)
        return self._drawn

    def report(self) -> dict[str, Any]:
        return {"sequences": self.row, "families": list(self.config.families)}

    def state_dict(self) -> dict[str, Any]:
        return {"version": 1, "row": self.row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state.get("version") != 1:
            raise BadInput(f"The state of the stream has version {state.get('version')}; this Tilth reads version 1.")
        self.row = state["row"]
