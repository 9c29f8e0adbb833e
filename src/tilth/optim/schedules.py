"""Learning-rate schedules: the share of the peak rate at a moment of a run."""

import math
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from tilth.recipe.frame import Config, one_of

POWER_SEQUENCE = 4096  # tokens of a sequence in the paper of the power scheduler, whose batch is counted in sequences


@dataclass(frozen=True)
class Moment:
    """Where a run stands. step: 0-based; steps: of the whole run; tokens: of all earlier runs that this one continues
    (0 unless it branched from another); batch_tokens: positions of a step."""

    step: int
    steps: int
    batch_tokens: int = 1
    tokens_before: float = 0.0

    def tokens(self, step: int | None = None) -> float:
        """Tokens processed when `step` (default: this one) ends; above 0 from the first step on."""
        return self.tokens_before + ((self.step if step is None else step) + 1) * self.batch_tokens


class Schedule(Config):
    """`factor(moment, peak)`: the share of the peak rate at a moment. Schedules that are the same at any scale define
    `multiplier(step, steps)`; those that know absolute rates or tokens define `factor`."""

    kind: str = ""

    def factor(self, moment: Moment, peak: float) -> float:
        return self.multiplier(moment.step, moment.steps)

    def multiplier(self, step: int, steps: int) -> float:
        raise TypeError(f"{type(self).__name__} does not define multiplier.")


class Warmed(Schedule):
    """A linear warm-up to the peak, then what `after_warmup` says."""

    warmup: float = Field(0.02, ge=0, description="share of the run (below 1) or number of steps (1 and above)")

    def multiplier(self, step: int, steps: int) -> float:
        warm = in_steps(self.warmup, steps)
        return (step + 1) / warm if step < warm else self.after_warmup(step - warm, max(steps - warm, 1))

    def after_warmup(self, step: int, steps: int) -> float:
        raise TypeError(f"{type(self).__name__} does not define after_warmup.")


class Constant(Warmed):
    """The peak rate to the end: the stable phase from which decayed models branch (`pretrain.branch_from`)."""

    kind: str = "constant"

    def after_warmup(self, step: int, steps: int) -> float:
        return 1.0


class Cosine(Warmed):
    """Half a cosine from the peak to its share `floor`, or to the rate `floor_lr` (Loshchilov and Hutter 2017)."""

    kind: str = "cosine"
    floor: float = Field(0.1, ge=0, le=1)
    floor_lr: float | None = Field(None, ge=0, description="the last rate itself, instead of a share of the peak")

    def factor(self, moment: Moment, peak: float) -> float:
        if self.floor_lr is None:
            return self.multiplier(moment.step, moment.steps)
        floor = min(self.floor_lr / peak, 1.0)  # a peak below the floor stays where it is
        return self.model_copy(update={"floor": floor}).multiplier(moment.step, moment.steps)

    def after_warmup(self, step: int, steps: int) -> float:
        # The last step (steps - 1) reaches the floor.
        progress = min(step / max(steps - 1, 1), 1.0)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * progress))


class WSD(Warmed):
    """Warm-up, stable, decay (Hu et al. 2024): constant, then over the last `decay` down to `floor`.

    `exponential` halves the rate every so many steps, floor^(d / decay) at the d-th step of the decay: with a decay of
    200 steps and a floor of 1/16, as Yu et al. 2024 (MATES) decay their checkpoints, every 50.
    """

    kind: str = "wsd"
    decay: float = Field(0.3, ge=0, description="share of what follows the warm-up (up to 1) or number of steps")
    shape: Literal["linear", "one_minus_sqrt", "cosine", "exponential"] = "linear"
    floor: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _falls(self) -> "WSD":
        if self.shape == "exponential" and not self.floor:
            raise ValueError("an exponential decay never reaches 0: give a `floor`, such as 0.0625")
        return self

    def after_warmup(self, step: int, steps: int) -> float:
        length = decay_steps(self.decay, steps)
        into = step - (steps - length)
        if into < 0 or length == 0:
            return 1.0
        if self.shape == "exponential":
            return self.floor ** ((into + 1) / length)
        # Step `steps - 1` is the last: one past it would reach the floor, so that no step is wasted at rate 0.
        progress = min((into + 1) / (length + 1), 1.0)
        fall = {"linear": progress, "one_minus_sqrt": math.sqrt(progress),
                "cosine": 0.5 * (1 - math.cos(math.pi * progress))}[self.shape]
        return 1 - (1 - self.floor) * fall


class Power(Schedule):
    """A rate that is a power of the tokens seen, so that neither their total nor the batch need be known (Shen et al.
    2024, arXiv 2408.13359):

        eta(n) = min(lr, batch * a * n^b)    n: tokens seen; batch: in sequences of 4,096 tokens, batch_tokens / 4096
        n < warmup_tokens:   n / warmup_tokens * eta(warmup_tokens)
        in the decay:        f * eta(n at its start), f falling from 1 to `floor`

    The cap is the optimizer's `lr` (0.02 in the paper). The constants are for muP; with standard parameters only b
    carries over. The decay is exponential like the authors': with e = exp(1), over x in [0, 1],
    f(x) = (1 - floor) e / (e - 1) exp(-x) + (floor e - 1) / (e - 1).
    """

    kind: str = "power"
    a: float = Field(4.0, gt=0)
    b: float = Field(-0.51, lt=0)
    warmup_tokens: float = Field(1e9, ge=0)
    decay: float = Field(0.0, ge=0, description="share of the run (up to 1) or number of steps at its end")
    floor: float = Field(0.0, ge=0, le=1)

    def factor(self, moment: Moment, peak: float) -> float:
        length = decay_steps(self.decay, moment.steps)
        start = moment.steps - length
        into = moment.step - start
        if into < 0 or length == 0:
            return self.rate(moment.tokens(), moment.batch_tokens, peak) / peak
        held = self.rate(moment.tokens(start - 1), moment.batch_tokens, peak) / peak
        return held * exponential_fall(min((into + 1) / (length + 1), 1.0), self.floor)

    def rate(self, tokens: float, batch_tokens: float, cap: float) -> float:
        """eta after `tokens` tokens, with steps of `batch_tokens`, before any decay."""
        if tokens < self.warmup_tokens:
            return tokens / self.warmup_tokens * self.power(self.warmup_tokens, batch_tokens, cap)
        return self.power(tokens, batch_tokens, cap)

    def power(self, tokens: float, batch_tokens: float, cap: float) -> float:
        """min(cap, batch * a * n^b); at n = 0 the power is infinite, and the cap holds."""
        return cap if tokens <= 0 else min(cap, batch_tokens / POWER_SEQUENCE * self.a * tokens**self.b)


def exponential_fall(progress: float, floor: float) -> float:
    """1 at progress 0, `floor` at 1, exponential between (the authors' implementation of the power scheduler)."""
    e = math.e
    return (1 - floor) * e / (e - 1) * math.exp(-progress) + (floor * e - 1) / (e - 1)


def decay_steps(decay: float, steps: int) -> int:
    """A decay of a share (up to 1) or a number of steps, as steps, at most all."""
    return min(in_steps(decay, steps) if decay != 1 else steps, steps)


def in_steps(amount: float, steps: int) -> int:
    """A share (below 1) or a number of steps, as steps."""
    return round(amount * steps) if amount < 1 else int(amount)


SCHEDULES: dict[str, type[Schedule] | str] = {"constant": Constant, "cosine": Cosine, "wsd": WSD, "power": Power}
ScheduleChoice = one_of(Schedule, SCHEDULES)
