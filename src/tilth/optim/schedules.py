"""Learning-rate schedules: a multiplier of the peak rate as a function of the step."""

import math
from typing import Literal

from pydantic import Field

from tilth.recipe.frame import Config, one_of


class Schedule(Config):
    """`multiplier(step, steps)`: the share of the peak rate used by the 0-based `step` of `steps`."""

    kind: str = ""
    warmup: float = Field(0.02, ge=0, description="share of the run (below 1) or number of steps (1 and above)")

    def multiplier(self, step: int, steps: int) -> float:
        warm = in_steps(self.warmup, steps)
        return (step + 1) / warm if step < warm else self.after_warmup(step - warm, max(steps - warm, 1))

    def after_warmup(self, step: int, steps: int) -> float:
        raise TypeError(f"{type(self).__name__} does not define after_warmup.")


class Constant(Schedule):
    """The peak rate to the end."""

    kind: str = "constant"

    def after_warmup(self, step: int, steps: int) -> float:
        return 1.0


class Cosine(Schedule):
    """Half a cosine from 1 to `floor` (a share of the peak; Loshchilov and Hutter 2017)."""

    kind: str = "cosine"
    floor: float = Field(0.1, ge=0, le=1)

    def after_warmup(self, step: int, steps: int) -> float:
        # The last step (steps - 1) reaches the floor.
        progress = min(step / max(steps - 1, 1), 1.0)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * progress))


class WSD(Schedule):
    """Warm-up, stable, decay (Hu et al. 2024): constant, then over the last `decay` down to `floor`."""

    kind: str = "wsd"
    decay: float = Field(0.3, ge=0, description="share of what follows the warm-up (up to 1) or number of steps")
    shape: Literal["linear", "one_minus_sqrt", "cosine"] = "linear"
    floor: float = Field(0.0, ge=0, le=1)

    def after_warmup(self, step: int, steps: int) -> float:
        length = min(in_steps(self.decay, steps) if self.decay != 1 else steps, steps)
        into = step - (steps - length)
        if into < 0 or length == 0:
            return 1.0
        # Step `steps - 1` is the last: one past it would reach the floor, so that no step is wasted at rate 0.
        progress = min((into + 1) / (length + 1), 1.0)
        fall = {"linear": progress, "one_minus_sqrt": math.sqrt(progress),
                "cosine": 0.5 * (1 - math.cos(math.pi * progress))}[self.shape]
        return 1 - (1 - self.floor) * fall


def in_steps(amount: float, steps: int) -> int:
    """A share (below 1) or a number of steps, as steps."""
    return round(amount * steps) if amount < 1 else int(amount)


SCHEDULES: dict[str, type[Schedule] | str] = {"constant": Constant, "cosine": Cosine, "wsd": WSD}
ScheduleChoice = one_of(Schedule, SCHEDULES)
