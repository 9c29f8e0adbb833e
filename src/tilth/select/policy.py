"""The policy: mixture x selector x weigher over one pool, with one state that is saved and restored.

A pass sees every selected unit once. The selector says which of the units not yet drawn may come now; the mixture how
the tokens of the stretch divide between sources; a source that the mixture needs more of than it has starts over, and
that is counted. Which units come in which order is a pure function of seed, stretch and state.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from tilth.data.batch import Batch
from tilth.data.pool import Pool
from tilth.data.seeding import generator
from tilth.recipe import BadInput, Config, one_of
from tilth.select.drawing import pack_mask, unpack_mask
from tilth.select.mixtures import MIXTURES, Natural
from tilth.select.protocols import Mixture, MixtureConfig, Plan, Selector, SelectorConfig, Weigher, WeigherConfig
from tilth.select.selectors import SELECTORS, All
from tilth.select.weighers import WEIGHERS, Uniform

STRETCH_UNITS = 65_536  # enough to pack with almost no padding, few enough to choose anew a few hundred times a run


class Policy:
    """Draws units for the stream, weighs them, and listens to what was learned.

    pool: what to draw from; seed: of the run; stretch_units: units in a stretch at most (about, where the mixture
    sets tokens by source).
    """

    def __init__(self, pool: Pool, mixture: Mixture, selector: Selector, weigher: Weigher, seed: int,
                 stretch_units: int = STRETCH_UNITS):
        self.pool, self.seed, self.stretch_units = pool, seed, stretch_units
        self.mixture, self.selector, self.weigher = mixture, selector, weigher
        for part in self._parts().values():
            part.stretch_units = stretch_units
        self.tokens = pool.lengths("tokens")
        self.source = np.asarray(pool.source)
        sources = len(pool.sources)
        self.drawn = np.zeros(len(pool), bool)  # in the current pass
        self.passes = np.zeros(sources, np.int64)  # passes that each source has finished
        self.owed = np.zeros(sources)  # tokens that the mixture still owes each source
        self.budget = 0.0  # tokens of a stretch under a mixture, set at its first draw
        self.units_drawn, self.tokens_drawn = np.zeros(sources, np.int64), np.zeros(sources, np.int64)
        self.plan_until(None, -1)

    @property
    def needs_losses(self) -> bool:
        return self.weigher.needs_losses

    def bind(self, probe: Any) -> None:
        for part in self._parts().values():
            part.bind(probe)

    def draw(self, stretch: int) -> np.ndarray:
        """Units of the coming stretch, rows of the pool, int64 (n,), n > 0, in the order drawn."""
        rng = generator(self.seed, "draw", stretch)
        chosen = self._select(stretch, None)
        shares = self._shares(stretch)
        units = self._draw_pass(chosen, rng) if shares is None else self._draw_shares(chosen, shares, stretch, rng)
        self.units_drawn += np.bincount(self.source[units], minlength=len(self.passes))
        self.tokens_drawn += np.bincount(self.source[units], self.tokens[units], len(self.passes)).astype(np.int64)
        return units

    def weights(self, batch: Batch, losses: torch.Tensor | None) -> torch.Tensor:
        """Weight of each unit of the batch, float32 (U,); see `Weigher.weights`."""
        weights = self.weigher.weights(batch, losses)
        if weights.shape != batch["unit_id"].shape:
            raise BadInput(f"{type(self.weigher).__name__} gave weights of shape {tuple(weights.shape)} for "
                           f"{len(batch['unit_id'])} units; it must give one a unit.")
        return weights

    def observe(self, unit_id: np.ndarray, loss: np.ndarray) -> None:
        for part in self._parts().values():
            part.observe(unit_id, loss)

    @property
    def stretch_tokens(self) -> float:
        """Tokens of a stretch, about."""
        return max(min(self.stretch_units * float(self.tokens.mean()), float(self.tokens.sum())), 1.0)

    def plan(self, steps: int, rows: int, length: int, flops_per_row: float, stretches: int | None = None) -> Plan:
        """What a run of so many steps asks of its parts; stretches: how often it can pay for choosing."""
        natural = math.ceil(steps * rows * length / self.stretch_tokens)
        return Plan(steps, rows, length, flops_per_row, natural if stretches is None else stretches)

    def planned_flops(self, plan: Plan) -> float:
        """FLOPs of choosing, over a whole run."""
        return sum(part.planned_flops(plan) for part in self._parts().values())

    def tell_plan(self, plan: Plan) -> None:
        """Let every part know what the run is about to do; the same whenever it goes on."""
        for part in self._parts().values():
            part.plan = plan

    def plan_until(self, last_stretch: int | None, planned_at: int) -> None:
        """Nothing new is asked of the model after `last_stretch`: the budget does not pay for it."""
        self.last_stretch, self.planned_at = last_stretch, planned_at
        for part in self._parts().values():
            part.last_stretch = last_stretch

    def metrics(self) -> dict[str, float]:
        """Figures of the last step from all parts, for its line of the metrics."""
        return {name: value for part in self._parts().values() for name, value in part.metrics().items()}

    def _shares(self, stretch: int) -> np.ndarray | None:
        shares = self.mixture.weights(stretch)
        if shares is None:
            return None
        shares = np.asarray(shares, np.float64)
        if shares.shape != self.passes.shape or not np.isfinite(shares).all() or (shares < 0).any() or (
                not shares.sum() > 0):
            raise BadInput(f"{type(self.mixture).__name__} must give a share >= 0 to each of the {len(self.passes)} "
                           f"sources, not all 0; it gave {shares.tolist()}.")
        return shares / shares.sum()

    def _parts(self) -> dict[str, Mixture | Selector | Weigher]:
        return {"mixture": self.mixture, "selector": self.selector, "weigher": self.weigher}

    def _select(self, stretch: int, source: int | None) -> np.ndarray:
        """What may be drawn now (of one source, if given); where that is nothing, the pass ends and another begins."""
        within = np.ones(len(self.drawn), bool) if source is None else self.source == source
        chosen = self._ask(np.flatnonzero(~self.drawn & within), stretch, source)
        if len(chosen) == 0:
            self.drawn[within] = False
            self.passes[slice(None) if source is None else source] += 1
            chosen = self._ask(np.flatnonzero(within), stretch, source)
        if len(chosen) == 0:
            what = "" if source is None else f" of source '{self.pool.sources[source]}', which the mixture needs"
            raise BadInput(f"The selector selects no unit{what}; there is nothing to train on.")
        return chosen

    def _ask(self, candidates: np.ndarray, stretch: int, source: int | None) -> np.ndarray:
        if len(candidates) == 0:
            return candidates
        numbers = (stretch,) if source is None else (stretch, source, int(self.passes[source]))
        chosen = np.asarray(self.selector.select(candidates, stretch, generator(self.seed, "select", *numbers)))
        chosen = chosen.astype(np.int64)
        # Masks rather than sorts: a pool can have a hundred million units.
        free, taken = np.zeros(len(self.drawn), bool), np.zeros(len(self.drawn), bool)
        free[candidates] = True
        if len(chosen) and (chosen.min() < 0 or chosen.max() >= len(free) or not free[chosen].all()):
            raise BadInput(f"{type(self.selector).__name__} selected a unit that was not among the candidates.")
        taken[chosen] = True
        return np.flatnonzero(taken)

    def _draw_pass(self, chosen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """An even part of what the pass still holds, so that its last stretch is not a few units that pack badly."""
        parts = -(-len(chosen) // self.stretch_units)
        units = rng.permutation(chosen)[:-(-len(chosen) // parts)]
        self.drawn[units] = True
        return units

    def _draw_shares(self, chosen: np.ndarray, shares: np.ndarray, stretch: int,
                     rng: np.random.Generator) -> np.ndarray:
        """Tokens of each source by its share, to within half a unit, which is carried to the next stretch."""
        if not self.budget:  # every unit is a candidate the first time, so a stretch is at most one pass
            self.budget = min(self.stretch_units * float(self.tokens.mean()), float(self.tokens[chosen].sum()))
        parts: list[np.ndarray] = []
        while not parts:  # a budget below half a unit of every source needs another turn
            self.owed += shares * self.budget
            parts = self._pay(chosen, shares, stretch, rng)
        return rng.permutation(np.concatenate(parts))

    def _pay(self, chosen: np.ndarray, shares: np.ndarray, stretch: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Units of each source for the tokens it is owed."""
        parts = []
        for source in np.flatnonzero(shares > 0):
            queue = rng.permutation(chosen[self.source[chosen] == source])
            while self.owed[source] > 0:
                if len(queue) == 0:
                    queue = rng.permutation(self._select(stretch, int(source)))
                upto = np.cumsum(self.tokens[queue])
                # The unit that crosses what is owed is taken if more than half of it is owed.
                take = int(np.searchsorted(upto - self.tokens[queue] / 2, self.owed[source]))
                if take == 0:
                    break
                parts.append(queue[:take])
                self.drawn[queue[:take]] = True
                self.owed[source] -= upto[take - 1]
                queue = queue[take:]
        return parts

    def report(self) -> dict[str, Any]:
        """What was drawn so far: by source units, tokens and finished passes (repeats), and each part's figures."""
        sources = [{"source": name, "units": int(self.units_drawn[index]), "tokens": int(self.tokens_drawn[index]),
                    "passes": int(self.passes[index])} for index, name in enumerate(self.pool.sources)]
        return {"sources": sources, **{name: part.report() for name, part in self._parts().items()}}

    def state_dict(self) -> dict[str, Any]:
        return {"version": 1, "units": len(self.drawn), "drawn": pack_mask(self.drawn), "passes": self.passes.tolist(),
                "owed": self.owed.tolist(), "budget": self.budget, "units_drawn": self.units_drawn.tolist(),
                "tokens_drawn": self.tokens_drawn.tolist(),
                "last_stretch": self.last_stretch, "planned_at": self.planned_at,
                **{name: part.state_dict() for name, part in self._parts().items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state.get("version") != 1 or state["units"] != len(self.drawn) or (
                len(state["passes"]) != len(self.passes)):
            raise BadInput(f"The state of the policy is of another pool than {self.pool.folder} "
                           f"({state.get('units')} units, not {len(self.drawn)}) or of another version.")
        self.drawn = unpack_mask(state["drawn"], len(self.drawn))
        self.passes, self.owed = np.array(state["passes"], np.int64), np.array(state["owed"], np.float64)
        self.budget = state["budget"]
        self.units_drawn = np.array(state["units_drawn"], np.int64)
        self.tokens_drawn = np.array(state["tokens_drawn"], np.int64)
        self.plan_until(state.get("last_stretch"), state.get("planned_at", -1))
        for name, part in self._parts().items():
            part.load_state_dict(state[name])


class PolicyConfig(Config):
    """Which units the model sees and how much they count: three choices that work together.

    stretch_units: units drawn at once, about; a policy that learns while training chooses anew after so many.
    """

    mixture: one_of(MixtureConfig, MIXTURES) = Natural()  # type: ignore[valid-type]
    selector: one_of(SelectorConfig, SELECTORS) = All()  # type: ignore[valid-type]
    weigher: one_of(WeigherConfig, WEIGHERS) = Uniform()  # type: ignore[valid-type]
    stretch_units: int = Field(STRETCH_UNITS, ge=1)

    def build(self, pool: Pool, seed: int, stretch_units: int | None = None) -> Policy:
        return Policy(pool, self.mixture.build(pool, seed), self.selector.build(pool, seed),
                      self.weigher.build(pool, seed), seed, stretch_units or self.stretch_units)

    def files(self) -> list[Path]:
        return [*self.mixture.files(), *self.selector.files(), *self.weigher.files()]
