"""What a mixture, a selector and a weigher are, and the configuration each is built from.

A method is a `...Config` (what the recipe sets, with its `kind`) whose `build` returns an object with the methods
below; deriving from the base class supplies the hooks that it does not need. All three may learn while training:
`bind` brings the probe that asks the current model, `observe` the losses of what was trained, and whatever they
remember goes into `state_dict`, as JSON and tensors.

Everything here runs in every process alike and must choose alike: take randomness from the generator given.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tilth.data.batch import Batch
from tilth.data.pool import Pool
from tilth.recipe import Config


@dataclass(frozen=True)
class Plan:
    """What a run is about to do, for working out what choosing will cost. flops_per_row: of training, forward and
    backward; stretches: how often the policy will ask the model anew (about); beyond: how often it draws after that,
    by what it knows by then."""

    steps: int
    rows: int
    length: int
    flops_per_row: float
    stretches: int
    beyond: int = 0

    @property
    def training_flops(self) -> float:
        """FLOPs of the training steps alone."""
        return self.steps * self.rows * self.flops_per_row

    def forward(self, tokens: float) -> float:
        """FLOPs of a forward pass over so many tokens, packed into rows."""
        return tokens / self.length * self.flops_per_row / 3


class Part:
    """The hooks that mixture, selector and weigher share; none has to be overridden.

    Set by the policy: stretch_units, units drawn at once (about); plan, what the run is about to do; last_stretch, the
    last one for which a budget in FLOPs pays the model to be asked anew. None where there is none.
    """

    stretch_units: int | None = None
    plan: Plan | None = None
    last_stretch: int | None = None

    def paid(self, stretch: int) -> bool:
        """Whether the model may be asked anew for a stretch."""
        return self.last_stretch is None or stretch <= self.last_stretch

    def bind(self, probe: Any) -> None:
        """Called once before the first draw, with what asks the current model about units (None: no probe)."""

    def planned_flops(self, plan: Plan) -> float:
        """FLOPs that its choosing will take over the whole run, so that a budget in FLOPs can hold them."""
        return 0.0

    def observe(self, unit_id: np.ndarray, loss: np.ndarray) -> None:
        """Trained units, int64 (U,), and the mean loss of each in nats a token, float32 (U,), of a global batch."""

    def state_dict(self) -> dict[str, Any]:
        """What it remembers, as JSON and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""

    def metrics(self) -> dict[str, float]:
        """Figures of the last step, which join its line of the metrics."""
        return {}

    def report(self) -> dict[str, Any]:
        """Figures for the run's report, as JSON."""
        return {}


class Mixture(Part):
    """How much of each source the coming stretch holds."""

    def weights(self, stretch: int) -> np.ndarray | None:
        """Share of the stretch's tokens for each of the pool's sources, float64 (sources,), summing to one. None:
        draw the chosen units as they lie, each once in a pass over all of them."""
        raise NotImplementedError(f"{type(self).__name__} must give the weights of the sources.")


class Selector(Part):
    """Which units the next stretch sees."""

    def select(self, candidates: np.ndarray, stretch: int, rng: np.random.Generator) -> np.ndarray:
        """Those of `candidates` that may be drawn now: sorted rows of the pool, int64 (n,), a subset.

        `candidates` (sorted) were not drawn in the current pass yet. What is left out stays a candidate of later
        stretches; when nothing is left to choose, the pass ends and every unit is a candidate again.
        """
        raise NotImplementedError(f"{type(self).__name__} must say which units it selects.")


class Weigher(Part):
    """How much each unit of a batch counts."""

    needs_losses = False  # True: the loop runs a first pass over the whole global batch without gradient
    starts = 0  # with needs_losses: the first step that is weighted; the steps before it count every unit the same

    def weights(self, batch: Batch, losses: torch.Tensor | None) -> torch.Tensor:
        """Weight of each unit, float32 (U,), averaging one. `losses`: mean loss in nats a token, (U,), of the
        global batch if `needs_losses`, else None."""
        raise NotImplementedError(f"{type(self).__name__} must weigh the units of a batch.")


class PartConfig(Config):
    """What the three kinds of configuration share."""

    def files(self) -> list[Path]:
        """Local files that it reads; a change of one runs the stage again."""
        return []


class MixtureConfig(PartConfig):
    kind: str = "natural"

    def build(self, pool: Pool, seed: int) -> Mixture:
        raise NotImplementedError(f"{type(self).__name__} must build its mixture.")


class SelectorConfig(PartConfig):
    kind: str = "all"

    def build(self, pool: Pool, seed: int) -> Selector:
        raise NotImplementedError(f"{type(self).__name__} must build its selector.")


class WeigherConfig(PartConfig):
    kind: str = "uniform"

    def build(self, pool: Pool, seed: int) -> Weigher:
        raise NotImplementedError(f"{type(self).__name__} must build its weigher.")
