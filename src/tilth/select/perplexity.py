"""The perplexity band: units that the current model finds neither trivial nor hopeless.

After Wenzek et al. 2020 (CCNet, https://arxiv.org/abs/1911.00359) and Marion et al. 2023 ("When Less is More",
https://arxiv.org/abs/2309.04564), with the model being trained, or any file of losses, as the judge.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from tilth.data.pool import Pool
from tilth.recipe import BadInput
from tilth.select.drawing import pack_mask, unpack_mask
from tilth.select.protocols import Plan, Selector, SelectorConfig
from tilth.select.selectors import Chosen, read_scores


class Perplexity(SelectorConfig):
    """Units whose mean loss a token lies between two quantiles of the pool's.

    path: losses from a file (columns unit_id and score, nats a token), used from the beginning. Without it the model
    being trained is asked, by a forward pass over the whole pool, at the beginning of stretch `start`, and again every
    `every` stretches; the stretches before see everything, so give the policy `stretch_units` well below the pool's.
    """

    kind: str = "perplexity"
    low: float = Field(0.25, ge=0, lt=1, description="quantile below which a unit is too easy")
    high: float = Field(0.75, gt=0, le=1, description="quantile above which a unit is too hard")
    path: Path | None = None
    start: int = Field(1, ge=0)
    every: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> "Perplexity":
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        return self

    def files(self) -> list[Path]:
        return [] if self.path is None else [self.path]

    def build(self, pool: Pool, seed: int) -> Selector:
        if self.path is not None:
            return Chosen(band(read_scores(self.path, pool), self.low, self.high))
        return Band(pool, self)


class Band(Selector):
    """Asks the probe at its stretches and remembers the answer."""

    def __init__(self, pool: Pool, config: Perplexity):
        self.pool, self.config = pool, config
        self.probe: Any = None
        self.mask: np.ndarray | None = None
        self.asked = -1  # the stretch of the mask

    def bind(self, probe: Any) -> None:
        self.probe = probe

    def planned_flops(self, plan: Plan) -> float:
        stretches = max(plan.stretches - self.config.start, 0)
        times = -(-stretches // self.config.every) if self.config.every else min(stretches, 1)
        return times * plan.forward(int(self.pool.lengths().sum()))

    def select(self, candidates: np.ndarray, stretch: int, rng: np.random.Generator) -> np.ndarray:
        if stretch < self.config.start:
            return candidates
        due = self.config.every is not None and stretch - self.asked >= self.config.every
        if stretch != self.asked and (self.mask is None or (due and self.paid(stretch))):
            if self.probe is None:
                raise BadInput("The perplexity selector asks the model being trained, and there is none here; give it "
                               "`path`, a file of losses.")
            losses = self.probe.losses(np.arange(len(self.pool)))
            self.mask, self.asked = band(losses, self.config.low, self.config.high), stretch
        assert self.mask is not None
        return candidates[self.mask[candidates]]

    def state_dict(self) -> dict[str, Any]:
        return {"asked": self.asked, "mask": None if self.mask is None else pack_mask(self.mask)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.asked = state["asked"]
        self.mask = None if state["mask"] is None else unpack_mask(state["mask"], len(self.pool))

    def report(self) -> dict[str, Any]:
        return {} if self.mask is None else {"units": len(self.mask), "selected": int(self.mask.sum()),
                                             "asked_at_stretch": self.asked}


def band(losses: np.ndarray, low: float, high: float) -> np.ndarray:
    """Mask of the losses from quantile `low` to quantile `high`, both included."""
    bottom, top = np.quantile(losses, [low, high])
    return (losses >= bottom) & (losses <= top)
