"""A run within a budget of FLOPs, what its policy spends on choosing included."""

import math
from typing import TYPE_CHECKING

from tilth.data.stream import PackedStream
from tilth.select.planning import affordable
from tilth.select.policy import Policy
from tilth.select.protocols import Plan

if TYPE_CHECKING:
    from tilth.train import Loop


class Paying:
    """Plans the steps that a budget pays for, and plans them anew after each draw, whose cost is then known.

    flops: of the whole run, what was spent before it included; flops_per_row: of training. The plan is part of the
    state of the loop (its steps) and of the policy, so that a run that was stopped ends where it would have.
    """

    def __init__(self, policy: Policy, flops: float, rows: int, length: int, flops_per_row: float,
                 most: int | None = None, stretches: int | None = None):
        self.policy, self.flops, self.rows, self.length, self.flops_per_row = policy, flops, rows, length, flops_per_row
        self.most, self.stretches = most, stretches  # steps, by what else limits the run; stretches first planned

    def plan(self, flops: float) -> tuple[int, int]:
        """Steps and stretches that so many FLOPs pay for, before the first draw."""
        return self._affordable(flops, 0, 0, self.policy.stretch_tokens / self.length / self.rows, 0.0)

    def bind(self, loop: "Loop", stream: PackedStream) -> None:
        """Plan anew whenever the stream has drawn."""
        self.stream, loop.replan = stream, self.replan

    def replan(self, loop: "Loop") -> None:
        stretch, stream = self.stream.stretch, self.stream
        if stretch == self.policy.planned_at:
            return
        done = loop.at.step - loop.settings.first_step
        in_hand = (stream.stretch_rows - stream.row) / self.rows + 1  # the step at hand has its rows already
        # No more stretches than first planned: what each may spend is a share of the run that was divided by them.
        most = None if self.stretches is None else self.stretches - stretch - 1
        steps, stretches = self._affordable(self.flops - loop.at.flops, done, stretch + 1,
                                            stream.stretch_rows / self.rows, in_hand, most)
        steps = done + max(steps, 1)
        loop.settings.steps = loop.settings.first_step + (min(steps, self.most) if self.most else steps)
        self.policy.plan_until(stretch + stretches, stretch)

    def _affordable(self, flops: float, done: int, drawn: int, a_stretch: float, in_hand: float,
                    most: int | None = None) -> tuple[int, int]:
        a_stretch = max(a_stretch, 1e-9)

        def choosing(steps: int, stretches: int) -> float:
            beyond = max(0, math.ceil((steps - in_hand) / a_stretch - stretches - 1e-9))
            return self._choosing(done + steps, drawn + stretches, beyond) - self._choosing(done, drawn)

        return affordable(flops, self.rows * self.flops_per_row or 1.0, choosing, a_stretch, in_hand, most)

    def _choosing(self, steps: int, stretches: int, beyond: int = 0) -> float:
        return self.policy.planned_flops(Plan(steps, self.rows, self.length, self.flops_per_row, stretches, beyond))
