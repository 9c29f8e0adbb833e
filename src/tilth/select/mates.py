"""MATES: every stretch, measure on a few units what helps the model now, learn to predict it, and draw the best.

Yu, Das and Xiong 2024 ("MATES: Model-Aware Data Selection for Efficient Pretraining with Data Influence Models",
NeurIPS, https://arxiv.org/abs/2406.06046). The first `start` stretches are random. Then, at the beginning of each:

1. oracle: for `probes` units that are never trained on, the influence I(x) of one optimizer step on x on the loss of
   the reference set (`tilth.select.probe`), by a true step or to first order;
2. influence model: ridge regression on hashed n-grams of y = -I, standardised; `warm_start` shrinks towards the model
   of the stretch before instead of towards 0 (the published encoder is fine-tuned on); the penalty is the one with the
   best Spearman correlation over five folds, which is reported: a model that predicts nothing chooses at random;
3. a window of k / keep undrawn units at random, k the units of a stretch, is scored, and k are drawn by Gumbel-top-k,
   score / temperature + Gumbel(0, 1), on standardised scores (the published code has the opposite sign of the noise).

Differences from the paper: a linear model for BERT-base, and probes at the run's current rate. `frozen` learns once,
the static baseline. The same `anchors` units are probed in every stretch: their rank correlation from stretch to
stretch shows how far what helps has moved.
"""

import base64
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from tilth.curate.linear import Bags, Linear, fit_ridge
from tilth.data.pool import Pool
from tilth.data.seeding import generator
from tilth.recipe import BadInput, one_of
from tilth.select.diversity import DIVERSITIES, Diversity, ScoreAlone
from tilth.select.drawing import selectivity, standardised
from tilth.select.ngrams import NGrams
from tilth.select.probe import Order
from tilth.select.protocols import Plan, Selector, SelectorConfig
from tilth.select.reference import Reference, held_back, measuring_flops
from tilth.select.statistics import spearman

FOLDS = 5


class Mates(SelectorConfig):
    """Model-aware selection by predicted influence. A stretch is `policy.stretch_units` units."""

    kind: str = "mates"
    reference: Reference = Reference()
    keep: float = Field(0.2, gt=0, le=1, description="drawn share of the window that is scored")
    temperature: float = Field(0.5, ge=0, description="of Gumbel-top-k; 0 takes the best")
    probes: int = Field(400, ge=20, description="units measured each stretch")
    held_back: float = Field(0.02, gt=0, lt=1, description="share of the records kept out of training to be measured")
    anchors: int = Field(50, ge=0, description="probed units that are the same in every stretch")
    influence: Order = Field("step", description="by a true step, or to first order (cheaper)")
    start: int = Field(1, ge=0, description="random stretches before the first measurement")
    frozen: bool = Field(False, description="measure and learn once, then keep the model")
    diversity: one_of(Diversity, DIVERSITIES) = ScoreAlone()  # type: ignore[valid-type]
    warm_start: bool = True
    order: int = Field(2, ge=1, le=4)
    bits: int = Field(18, ge=4, le=24)
    penalties: list[float] = Field(default_factory=lambda: [0.3, 3.0, 30.0], min_length=1)

    def files(self) -> list[Path]:
        return self.reference.files()

    def build(self, pool: Pool, seed: int) -> Selector:
        return Influence(pool, self, seed)


class Influence(Selector):
    """Measures, learns and draws; its memory is the influence model and what was measured on the anchors."""

    def __init__(self, pool: Pool, config: Mates, seed: int):
        self.pool, self.config, self.seed = pool, config, seed
        self.ngrams = NGrams(pool.vocab_size, config.order, config.bits)
        self.reference = config.reference.units(pool, seed)
        aside = config.reference.held_back(pool, seed)
        measured = held_back(pool, config.held_back, seed, "probing") & ~aside
        self.free = ~(measured | aside)
        self.measured = np.flatnonzero(measured & (pool.lengths() > 0))
        if len(self.measured) < 2 * FOLDS or not self.free.any():
            raise BadInput(f"`held_back` {config.held_back} leaves {len(self.measured)} units to measure and "
                           f"{int(self.free.sum())} to train on; change it, or give more data.")
        self.probe: Any = None
        self.model = Linear(np.zeros(self.ngrams.size), 0.0)
        self.learned = -1  # the stretch that the model was learned at
        self.stages: list[dict[str, Any]] = []

    def bind(self, probe: Any) -> None:
        self.probe = probe

    def select(self, candidates: np.ndarray, stretch: int, rng: np.random.Generator) -> np.ndarray:
        candidates = candidates[self.free[candidates]]
        if stretch < self.config.start or not len(candidates):
            return candidates
        known = self.learned >= 0
        if stretch != self.learned and self.paid(stretch) and not (self.config.frozen and known):
            self._learn(stretch)
        elif not known:  # the budget ends before the first measurement
            return candidates
        count = max(1, min(self.stretch_units or len(candidates), round(self.config.keep * len(candidates))))
        window = rng.choice(candidates, min(len(candidates), round(count / self.config.keep)), replace=False)
        scores = self.ngrams.scores(self.pool, self.model.weights, self.model.bias, window)
        tokens = float(self.pool.lengths()[window].sum())
        self._spend(tokens)
        drawn, figures = self.config.diversity.draw(self.pool, window, standardised(scores), count,
                                                    self.config.temperature, rng)
        self.probe.spend(self.config.diversity.flops(len(window), tokens))
        if self.stages:
            self.stages[-1].update({**selectivity(scores, drawn), **figures})
        return np.sort(window[drawn])

    def _learn(self, stretch: int) -> None:
        """Measure, fit, and write down how well the model predicts what it has not seen."""
        if self.probe is None:
            raise BadInput("The mates selector asks the model being trained, and there is none here.")
        units = self._units(stretch)
        before = self.probe.batches(np.arange(len(self.reference)), self.reference)
        influence = self.probe.influences(units, before, self.config.influence)
        target, bags = standardised(-influence), self.ngrams.bags(self.pool, units)
        self._spend(self._fits() * self.pool.lengths()[units].sum())
        base = self.model.weights if self.config.warm_start else np.zeros_like(self.model.weights)
        found = {penalty: self._folds(units, target, base, penalty) for penalty in self.config.penalties}
        penalty = max(found, key=lambda one: found[one])
        self.model = refit(bags, target, base, penalty)
        anchors = influence[:self._anchors()].tolist()
        drift = spearman(np.array(self.stages[-1]["anchors"]), np.array(anchors)) if self.stages and anchors else None
        self.stages.append({"stretch": stretch, "probed": len(units), "spearman": found[penalty], "penalty": penalty,
                            "influence_mean": float(influence.mean()), "influence_std": float(influence.std()),
                            "anchors": anchors, "anchors_spearman_with_last": drift})
        self.learned = stretch

    def _anchors(self) -> int:
        return min(self.config.anchors, self.config.probes, len(self.measured))

    def _units(self, stretch: int) -> np.ndarray:
        """The anchors, then others at random, int64 (probes,)."""
        order = generator(self.seed, "anchors").permutation(self.measured)
        fixed, rest = order[:self._anchors()], order[self._anchors():]
        return np.concatenate([fixed, generator(self.seed, "oracle", stretch).permutation(rest)])[:self.config.probes]

    def _folds(self, units: np.ndarray, target: np.ndarray, base: np.ndarray, penalty: float) -> float:
        """Spearman's correlation of predictions for units left out with what was measured."""
        fold = np.arange(len(units)) % FOLDS
        guess = np.empty(len(units))
        for number in range(FOLDS):
            model = refit(self.ngrams.bags(self.pool, units[fold != number]), target[fold != number], base, penalty)
            bags = self.ngrams.bags(self.pool, units[fold == number])
            guess[fold == number] = bags.times(model.weights) + model.bias
        return spearman(guess, target)

    def _fits(self) -> int:
        """How often learning goes over the features of a measured token, at most."""
        return 100 * (FOLDS * len(self.config.penalties) + 1)

    def _spend(self, tokens: float) -> None:
        """Count what the influence model takes for so many tokens: two operations an n-gram, there and back."""
        self.probe.spend(4.0 * self.config.order * float(tokens))

    def planned_flops(self, plan: Plan) -> float:
        chosen = max(plan.stretches - self.config.start, 0)
        times = min(chosen, 1) if self.config.frozen else chosen
        lengths, probes = self.pool.lengths(), min(self.config.probes, len(self.measured))
        tokens = float(lengths[self.measured].mean()) * probes
        units = (self.stretch_units or 0) / self.config.keep
        window = units * float(lengths[self.free].mean())
        linear = 4.0 * self.config.order * (times * self._fits() * tokens + chosen * window)
        return times * measuring_flops(plan, self.reference, probes, tokens, self.config.influence) + linear + (
            chosen * self.config.diversity.flops(units, window))

    def metrics(self) -> dict[str, float]:
        if not self.stages:
            return {}
        return {"influence_spearman": self.stages[-1]["spearman"],
                "selectivity": self.stages[-1].get("selectivity", 0.0)}

    def report(self) -> dict[str, Any]:
        return {"trained_on": int(self.free.sum()), "held_back": int((~self.free).sum()), "stages": self.stages}

    def state_dict(self) -> dict[str, Any]:
        weights = base64.b64encode(zlib.compress(self.model.weights.astype("<f8").tobytes())).decode()
        return {"weights": weights, "bias": self.model.bias, "learned": self.learned, "stages": self.stages}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        weights = np.frombuffer(zlib.decompress(base64.b64decode(state["weights"])), "<f8").astype(np.float64)
        self.model, self.learned = Linear(weights, state["bias"]), state["learned"]
        self.stages = [dict(one) for one in state["stages"]]


def refit(bags: Bags, target: np.ndarray, base: np.ndarray, penalty: float) -> Linear:
    """Ridge regression whose penalty is on the distance from `base` (features,)."""
    model = fit_ridge(bags, target - bags.times(base), len(base), penalty)
    return Linear(base + model.weights, model.bias)
