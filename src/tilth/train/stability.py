"""A guard against spikes: a step whose loss or gradient norm is far above those of the steps before it is not taken.

Far above: more than `deviations` median absolute deviations over the median of the last `window` steps. Median and
deviation do not move for a few spikes, and follow within half a window where the level really changes. A step that is
not finite always counts as a spike.
"""

import math
from collections import deque
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field

from tilth.recipe.console import say
from tilth.recipe.errors import Diverged
from tilth.recipe.frame import Config

if TYPE_CHECKING:
    from tilth.train.loop import Loop

LEAST_DEVIATION = 1e-3  # of the median: a curve that is almost constant has no spikes of a thousandth


class Stability(Config):
    """skip: leave the weights as they were; rollback: put back weights and optimizer of an earlier, calm step (the data
    goes on, so the batches in between are not seen again; Chowdhery et al. 2022, arXiv 2204.02311, section 5.1); warn:
    take the step. All are counted and explained in the metrics."""

    action: Literal["skip", "rollback", "warn"] = "skip"
    window: int = Field(128, ge=8, description="steps behind median and deviation")
    deviations: float = Field(6.0, gt=0)
    begin: int = Field(32, ge=4, description="steps to watch before the first judgement")
    snapshot_steps: int = Field(64, ge=1, description="rollback: steps between copies of the state in memory")
    patience: int = Field(16, ge=1, description="so many spikes on end end the run")

    def build(self) -> "Guard":
        return Guard(self)


class Guard:
    """The `judge` of a loop. Its state, copies of weights included, is saved with every checkpoint."""

    def __init__(self, config: Stability):
        self.config = config
        self.seen: dict[str, deque[float]] = {}
        self.judged = self.spikes = self.on_end = self.since = 0
        self.snapshot: dict[str, Any] | None = None
        self.said: str | None = None

    def allows(self, loop: "Loop", update: str, loss: float, gradient_norm: float) -> bool:
        """Whether the optimizer may take this step; where not, and by recipe, the loop is put back."""
        if update == loop.learner.updates[0]:
            self._begin_step(loop)
        reasons = [reason for name, value in (("loss", loss), ("gradient norm", gradient_norm))
                   if (reason := self._watch(f"{update} {name}", name, value))]
        if not reasons:
            return True
        self._count(loop, " and ".join(reasons))
        if self.config.action == "warn":
            return True
        if self.config.action == "rollback" and self.snapshot is not None:
            self._put_back(loop)
        return False

    def figures(self) -> dict[str, Any]:
        """Of the last step, for its line of the metrics."""
        return {"spikes": self.spikes, "spike_rate": self.spikes / max(self.judged, 1),
                **({"spike": self.said} if self.said else {})}

    def _begin_step(self, loop: "Loop") -> None:
        if self.said is None:
            self.on_end, self.since = 0, self.since + 1
        self.judged, self.said = self.judged + 1, None
        due = loop.at.step % self.config.snapshot_steps == 0 and (self.since >= self.config.snapshot_steps
                                                                  or self.snapshot is None)
        if self.config.action == "rollback" and due:
            self.snapshot = copied({"step": loop.at.step, "learner": loop.learner.state_dict(), "optimizers": {
                name: optimizer.state_dict() for name, optimizer in loop.optimizers.items()}})

    def _watch(self, key: str, name: str, value: float) -> str | None:
        """Why `value` is a spike, or None; it joins the history either way, if it is finite."""
        past = self.seen.setdefault(key, deque(maxlen=self.config.window))
        reason = None
        if not math.isfinite(value):
            return f"{name} {value}"
        if len(past) >= self.config.begin:
            middle, spread = middle_and_spread(past)
            limit = middle + self.config.deviations * spread
            if value > limit:
                reason = (f"{name} {value:.4g} > {limit:.4g} (median {middle:.4g} + {self.config.deviations:g} x "
                          f"{spread:.3g} of {len(past)} steps)")
        past.append(value)
        return reason

    def _count(self, loop: "Loop", reason: str) -> None:
        first = self.said is None
        self.spikes, self.on_end, self.since = self.spikes + first, self.on_end + first, 0
        where = f"to step {self.snapshot['step']}" if self.snapshot else "impossible yet, skipped"
        done = {"skip": "skipped", "warn": "taken", "rollback": f"rolled back {where}"}[self.config.action]
        self.said = f"{reason}; {done}"
        say(f"  step {loop.at.step + 1}: spike: {self.said}")
        if self.on_end > self.config.patience:
            raise Diverged(f"Step {loop.at.step + 1} is the {self.on_end}th spike on end ({reason}). The weights "
                           f"before are in the newest checkpoint; lower the learning rate, look at the data of these "
                           f"steps (tilth trace), or raise `stability.patience`.")

    def _put_back(self, loop: "Loop") -> None:
        state = copied(self.snapshot)
        loop.learner.load_state_dict(state["learner"])
        for name, optimizer in loop.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])

    def state_dict(self) -> dict[str, Any]:
        return {"seen": {key: list(values) for key, values in self.seen.items()}, "judged": self.judged,
                "spikes": self.spikes, "on_end": self.on_end, "since": self.since, "said": self.said,
                "snapshot": self.snapshot}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = {key: deque(values, maxlen=self.config.window) for key, values in state["seen"].items()}
        for name in ("judged", "spikes", "on_end", "since", "said", "snapshot"):
            setattr(self, name, state[name])


def middle_and_spread(values: "deque[float] | list[float]") -> tuple[float, float]:
    """Median and median absolute deviation (at least a thousandth of the median)."""
    middle = median(values)
    return middle, max(median(abs(value - middle) for value in values), LEAST_DEVIATION * abs(middle))


def copied(value: Any) -> Any:
    """A deep copy of a state in which no tensor shares memory with the original."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied(item) for item in value)
    return value
