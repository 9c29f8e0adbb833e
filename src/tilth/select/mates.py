"""MATES: every stretch, measure on a few units what helps the model now, learn to predict it, and draw the best.

Yu, Das and Xiong 2024 ("MATES: Model-Aware Data Selection for Efficient Pretraining with Data Influence Models",
NeurIPS, https://arxiv.org/abs/2406.06046). The first `start` stretches are random. Then, at the beginning of each:

1. oracle: for `probes` units that are never trained on, the influence I(x) of one optimizer step on x on the loss of
   the reference set (`tilth.select.probe`), by a true step or to first order;
2. influence model (`tilth.select.scorers`): learns y = -I, standardised, from the state of the stretch before. The rank
   correlation of its predictions with what it was not fitted on is reported: one that predicts nothing chooses at
   random;
3. a window of k / keep undrawn units at random, k the units of a stretch, is scored, and k are drawn by Gumbel-top-k,
   score / temperature + Gumbel(0, 1), on standardised scores (the published code has the opposite sign of the noise).

Differences from the paper: a linear model or a small encoder for BERT-base, and probes at the run's current rate.
`frozen` learns once, the static baseline; a `diversity` keeps a stretch from being all alike. The same `anchors` units
are probed in every stretch: their rank correlation from stretch to stretch shows how far what helps has moved.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from tilth.data.pool import Pool
from tilth.data.seeding import generator
from tilth.recipe import BadInput, one_of
from tilth.select.diversity import DIVERSITIES, Diversity, ScoreAlone
from tilth.select.drawing import selectivity, standardised
from tilth.select.probe import Order
from tilth.select.protocols import Plan, Selector, SelectorConfig
from tilth.select.reference import Reference, held_back, measuring_flops
from tilth.select.scorers import SCORERS, NGramScorer, Scorer
from tilth.select.statistics import spearman

FEWEST = 20  # probes of a measurement from which anything can be learned
SPARE = 0.96  # of what choosing may take is planned: the units of one measurement are longer than those of another


class Mates(SelectorConfig):
    """Model-aware selection by predicted influence. A stretch is `policy.stretch_units` units."""

    kind: str = "mates"
    reference: Reference = Reference()
    keep: float = Field(0.2, gt=0, le=1, description="drawn share of the window that is scored")
    temperature: float = Field(0.5, ge=0, description="of Gumbel-top-k; 0 takes the best")
    probes: int = Field(400, ge=FEWEST, description="units measured each stretch, at most")
    held_back: float = Field(0.02, gt=0, lt=1, description="share of the records kept out of training to be measured")
    anchors: int = Field(50, ge=0, description="probed units that are the same in every stretch")
    influence: Order = Field("batched", description="by true steps, or to first order: one by one, or in whole batches")
    agreement: int = Field(0, ge=0, description="units of the first measurement whose first-order values are checked "
                                                "against true steps")
    share: float = Field(0.15, gt=0, lt=1, description="of the run's FLOPs that choosing may take, by fewer probes")
    start: int = Field(1, ge=0, description="random stretches before the first measurement")
    frozen: bool = Field(False, description="measure and learn once, then keep the model")
    scorer: one_of(Scorer, SCORERS) = NGramScorer()  # type: ignore[valid-type]
    diversity: one_of(Diversity, DIVERSITIES) = ScoreAlone()  # type: ignore[valid-type]

    def files(self) -> list[Path]:
        return [*self.reference.files(), *self.scorer.files()]

    def build(self, pool: Pool, seed: int) -> Selector:
        return Influence(pool, self, seed)


class Influence(Selector):
    """Measures, learns and draws; its memory is the influence model and what was measured on the anchors."""

    def __init__(self, pool: Pool, config: Mates, seed: int):
        self.pool, self.config, self.seed = pool, config, seed
        self.reference = config.reference.units(pool, seed)
        aside = config.reference.held_back(pool, seed)
        measured = held_back(pool, config.held_back, seed, "probing") & ~aside
        self.free = ~(measured | aside)
        lengths = pool.lengths()
        self.measured = generator(seed, "anchors").permutation(np.flatnonzero(measured & (lengths > 0)))
        if len(self.measured) < 10 or not self.free.any():
            raise BadInput(f"`held_back` {config.held_back} leaves {len(self.measured)} units to measure and "
                           f"{int(self.free.sum())} to train on; change it, or give more data.")
        self.mean_tokens = float(lengths[self.measured].mean()), float(lengths[self.free].mean())
        self.probe: Any = None
        self.model = config.scorer.build(pool, seed)
        self.learned = -1  # the stretch that the model was learned at
        self.stages: list[dict[str, Any]] = []
        self.flops = {"probing": 0.0, "learning": 0.0, "scoring": 0.0}

    def bind(self, probe: Any) -> None:
        self.probe = probe
        if probe is not None:
            self.model.place(probe.settings.device)
        if self.plan is not None and self._measurements(self.plan):  # told before training, not after a stretch of it
            if self._cost(self.plan, FEWEST) > self._limit(self.plan):
                raise BadInput(f"Choosing may take {self.config.share:.3g} of the run's FLOPs (`selector.share`), "
                               f"which does not pay for {FEWEST} probes at each of {self._measurements(self.plan)} "
                               f"measurements. Choose larger stretches, a smaller reference, `influence: batched`, or "
                               f"a larger share.")
            self.model.check(self._units(0), self._most(self.plan))

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
        scores, tokens = self.model.scores(window), float(self.pool.lengths()[window].sum())
        drawn, figures = self.config.diversity.draw(self.pool, window, standardised(scores), count,
                                                    self.config.temperature, rng)
        self._spend("scoring", self.model.score_flops(tokens) + self.config.diversity.flops(len(window), tokens))
        if self.stages:
            self.stages[-1].update({**selectivity(scores, drawn), **figures})
        return np.sort(window[drawn])

    def _learn(self, stretch: int) -> None:
        """Measure, fit, and write down how well the model predicts what it has not seen."""
        if self.probe is None:
            raise BadInput("The mates selector asks the model being trained, and there is none here.")
        units = self._units(stretch)
        influence = self._measure(units)
        checked = self._checked(units) if self.learned < 0 else {}
        target = standardised(-influence)
        stale = self._stale(units, target) if self.learned >= 0 else None
        figures, flops = self.model.fit(units, target, stretch, min(self._most(self.plan), self._rest()))
        self._spend("learning", flops)
        anchors = influence[:self._anchors()].tolist()
        drift = spearman(np.array(self.stages[-1]["anchors"]), np.array(anchors)) if self.stages and anchors else None
        self.stages.append({"stretch": stretch, "probed": len(units), **figures, **checked,
                            "spearman_of_model_before": stale, "influence_mean": float(influence.mean()),
                            "influence_std": float(influence.std()), "anchors": anchors,
                            "anchors_spearman_with_last": drift})
        self.learned = stretch

    def _stale(self, units: np.ndarray, target: np.ndarray) -> float | None:
        """How well the model of the measurement before ranks the units now, those that it was not fitted on."""
        new = ~np.isin(units, self._units(self.learned))
        if new.sum() < FEWEST / 2:
            return None
        self._spend("scoring", self.model.score_flops(float(self.pool.lengths()[units[new]].sum())))
        return spearman(self.model.scores(units[new]), target[new])

    def _measure(self, units: np.ndarray) -> np.ndarray:
        """The influence of each unit now, float64 (n,)."""
        before = self.probe.spent
        batches = self.probe.batches(np.arange(len(self.reference)), self.reference)
        influence = self.probe.influences(units, batches, self.config.influence)
        self.flops["probing"] += self.probe.spent - before
        return influence

    def _checked(self, units: np.ndarray) -> dict[str, float]:
        """How well first order agrees with true steps in rank, on some of the units."""
        if not self.config.agreement or self.config.influence == "step":
            return {}
        before = self.probe.spent
        batches = self.probe.batches(np.arange(len(self.reference)), self.reference)
        found = self.probe.agreement(units[-self.config.agreement:], batches, order=self.config.influence)
        self.flops["probing"] += self.probe.spent - before
        return {"agreement_with_steps": found}

    def _anchors(self) -> int:
        return min(self.config.anchors, self._probes(self.plan))

    def _units(self, stretch: int) -> np.ndarray:
        """The anchors, then others at random, int64 (probes,)."""
        fixed, rest = self.measured[:self._anchors()], self.measured[self._anchors():]
        others = generator(self.seed, "oracle", stretch).permutation(rest)
        return np.concatenate([fixed, others])[:self._probes(self.plan)]

    def _spend(self, what: str, flops: float) -> None:
        self.flops[what] += flops
        self.probe.spend(flops)

    def _measurements(self, plan: Plan) -> int:
        chosen = max(plan.stretches - self.config.start, 0)
        return min(chosen, 1) if self.config.frozen else chosen

    def _most(self, plan: Plan | None) -> float:
        """FLOPs that one fit may take: its part of the share of the run's that the influence model has."""
        if plan is None or self.model.share is None:
            return math.inf
        return self.model.share * plan.training_flops / max(self._measurements(plan), 1)

    def _rest(self) -> float:
        """FLOPs that all further fits may take."""
        if self.plan is None or self.model.share is None:
            return math.inf
        return self.model.share * self.plan.training_flops - self.flops["learning"]

    def _probes(self, plan: Plan | None) -> int:
        """Units of a measurement: `probes`, or as many as the share of the run's FLOPs pays for."""
        high = min(self.config.probes, len(self.measured))
        low = min(FEWEST, high)
        if plan is None or not self._measurements(plan) or self._cost(plan, high) <= self._limit(plan):
            return high
        while low < high:
            middle = (low + high + 1) // 2
            paid = self._cost(plan, middle) <= self._limit(plan)
            low, high = (middle, high) if paid else (low, middle - 1)
        return low

    def _limit(self, plan: Plan) -> float:
        """FLOPs that choosing may take: `share` of all, with the training that is `1 - share` of all."""
        return SPARE * self.config.share / (1 - self.config.share) * plan.training_flops

    def planned_flops(self, plan: Plan) -> float:
        settled = self.plan or plan  # what one measurement may take no longer moves once the run has begun
        return self._cost(plan, self._probes(settled), self._most(settled))

    def _cost(self, plan: Plan, probes: int, most: float | None = None) -> float:
        """FLOPs of choosing over a run with so many units a measurement and `most` FLOPs to learn from them."""
        times = self._measurements(plan)
        chosen = max(plan.stretches + plan.beyond - self.config.start, 0) if times else 0
        how, (mean, free) = self.config.influence, self.mean_tokens
        units = (self.stretch_units or 0) / self.config.keep
        window = units * free
        sample, most = self.measured[:probes], self._most(plan) if most is None else most
        learning = self.model.fit_flops(sample, most) + self.model.score_flops(mean * probes)
        scoring = self.model.score_flops(window) + self.config.diversity.flops(units, window)
        checked = min(self.config.agreement, probes) if how != "step" and times else 0
        checking = sum(measuring_flops(plan, self.reference, self.pool.lengths()[sample[:checked]], order)
                       for order in ("step", how)) if checked else 0.0
        measuring = measuring_flops(plan, self.reference, self.pool.lengths()[sample], how)
        return times * (measuring + learning) + chosen * scoring + checking

    def metrics(self) -> dict[str, float]:
        if not self.stages:
            return {}
        return {"influence_spearman": self.stages[-1]["spearman"],
                "selectivity": self.stages[-1].get("selectivity", 0.0)}

    def report(self) -> dict[str, Any]:
        return {"trained_on": int(self.free.sum()), "held_back": int((~self.free).sum()), "flops": dict(self.flops),
                "stages": self.stages}

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "learned": self.learned, "stages": self.stages,
                "flops": dict(self.flops)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.learned, self.flops = state["learned"], dict(state["flops"])
        self.stages = [dict(one) for one in state["stages"]]
