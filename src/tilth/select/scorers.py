"""Influence models: what learns, from a few measured units, to predict how much any unit would help.

Each is fitted anew at every measurement, from where the last one ended, and says what that takes. `ngrams`, a linear
model of hashed n-grams, is the fast one; `encoder` (`tilth.select.encoder`) a small transformer trained here; `hf`
(`tilth.select.hf_encoder`) a pretrained encoder from a folder.
"""

import base64
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from tilth.curate.linear import Bags, Linear, fit_ridge
from tilth.data.pool import Pool
from tilth.recipe import Config
from tilth.select.ngrams import NGrams
from tilth.select.statistics import spearman

FOLDS = 5


class Scorer(Config):
    """What predicts influence; builds an `InfluenceModel`."""

    kind: str = ""

    def files(self) -> list[Path]:
        """Local files that it reads."""
        return []

    def build(self, pool: Pool, seed: int) -> "InfluenceModel":
        raise NotImplementedError(f"{type(self).__name__} must build its influence model.")


class InfluenceModel:
    """Predicts the helpfulness (minus the influence, standardised) of units, rows of a pool.

    share: of the run's training FLOPs, that all its fits together may take (None: it is too cheap to be limited).
    """

    share: float | None = None

    def fit(self, units: np.ndarray, target: np.ndarray, stretch: int, most: float = math.inf) -> tuple[
            dict[str, Any], float]:
        """Learn `target` (n,) of `units` (n,). Returns figures, among them `spearman`, the rank correlation of
        predictions with targets that were held out, and the FLOPs that it took, `most` at most."""
        raise NotImplementedError

    def scores(self, units: np.ndarray) -> np.ndarray:
        """Predictions, float64 (n,); higher is better."""
        raise NotImplementedError

    def fit_flops(self, units: np.ndarray, most: float = math.inf) -> float:
        """FLOPs that a fit on such units will take."""
        raise NotImplementedError

    def score_flops(self, tokens: float) -> float:
        """FLOPs of predicting for so many tokens."""
        raise NotImplementedError

    def check(self, units: np.ndarray, most: float) -> None:
        """BadInput where `most` FLOPs are too few to learn anything from such units."""

    def place(self, device: torch.device) -> None:
        """Move to where the run trains."""

    def state_dict(self) -> dict[str, Any]:
        raise NotImplementedError

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        raise NotImplementedError


class NGramScorer(Scorer):
    """Ridge regression on hashed n-grams of tokens: seconds for millions of units.

    warm_start shrinks towards the model of the stretch before instead of towards 0; of the penalties the one with the
    best rank correlation over five folds is taken.
    """

    kind: str = "ngrams"
    order: int = Field(2, ge=1, le=4)
    bits: int = Field(18, ge=4, le=24)
    penalties: list[float] = Field(default_factory=lambda: [0.3, 3.0, 30.0], min_length=1)
    warm_start: bool = True

    def build(self, pool: Pool, seed: int) -> InfluenceModel:
        return LinearInfluence(pool, self)


class LinearInfluence(InfluenceModel):
    """The mean weight of a unit's n-grams; its state is the weights."""

    def __init__(self, pool: Pool, config: NGramScorer):
        self.pool, self.config = pool, config
        self.ngrams = NGrams(pool.vocab_size, config.order, config.bits)
        self.model = Linear(np.zeros(self.ngrams.size), 0.0)

    def fit(self, units: np.ndarray, target: np.ndarray, stretch: int, most: float = math.inf) -> tuple[
            dict[str, Any], float]:
        base = self.model.weights if self.config.warm_start else np.zeros_like(self.model.weights)
        found = {penalty: self._folds(units, target, base, penalty) for penalty in self.config.penalties}
        penalty = max(found, key=lambda one: found[one])
        self.model = refit(self.ngrams.bags(self.pool, units), target, base, penalty)
        return {"spearman": found[penalty], "penalty": penalty}, self.fit_flops(units)

    def _folds(self, units: np.ndarray, target: np.ndarray, base: np.ndarray, penalty: float) -> float:
        """Spearman's correlation of predictions for units left out with what was measured."""
        fold = np.arange(len(units)) % FOLDS
        guess = np.empty(len(units))
        for number in range(FOLDS):
            model = refit(self.ngrams.bags(self.pool, units[fold != number]), target[fold != number], base, penalty)
            bags = self.ngrams.bags(self.pool, units[fold == number])
            guess[fold == number] = bags.times(model.weights) + model.bias
        return spearman(guess, target)

    def scores(self, units: np.ndarray) -> np.ndarray:
        return self.ngrams.scores(self.pool, self.model.weights, self.model.bias, units)

    def fit_flops(self, units: np.ndarray, most: float = math.inf) -> float:
        fits = 100 * (FOLDS * len(self.config.penalties) + 1)  # rounds of conjugate gradients, at most
        return fits * self.score_flops(float(self.pool.lengths()[units].sum()))

    def score_flops(self, tokens: float) -> float:
        return 4.0 * self.config.order * tokens  # a multiply-add an n-gram, there and back

    def state_dict(self) -> dict[str, Any]:
        weights = base64.b64encode(zlib.compress(self.model.weights.astype("<f8").tobytes())).decode()
        return {"weights": weights, "bias": self.model.bias}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        weights = np.frombuffer(zlib.decompress(base64.b64decode(state["weights"])), "<f8").astype(np.float64)
        self.model = Linear(weights, state["bias"])


def refit(bags: Bags, target: np.ndarray, base: np.ndarray, penalty: float) -> Linear:
    """Ridge regression whose penalty is on the distance from `base` (features,)."""
    model = fit_ridge(bags, target - bags.times(base), len(base), penalty)
    return Linear(base + model.weights, model.bias)


SCORERS: dict[str, type[Config] | str] = {"ngrams": NGramScorer, "encoder": "tilth.select.encoder:Encoder",
                                          "hf": "tilth.select.hf_encoder:HuggingFaceEncoder"}
