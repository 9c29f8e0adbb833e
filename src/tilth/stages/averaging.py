"""Averaged weights as part of a pretrain stage: what the loop calls, and what is written at the end."""

from pathlib import Path
from typing import Any

from torch import Tensor

from tilth.objectives import Objective
from tilth.recipe.errors import BadInput
from tilth.stages.held_out import HeldOutHook
from tilth.train.averaging import Average, Ema, LastCheckpoints, MovingAverage, mean_of
from tilth.train.checkpoint import Checkpoints, load_state
from tilth.train.learner import Learner
from tilth.train.protocols import Every


def moving_average(average: Average | None, learner: Learner) -> MovingAverage | None:
    """The hook of an exponential moving average, its copy of the model within `learner`; None for other averages."""
    return MovingAverage(learner, average) if isinstance(average, Ema) else None


def hooks(moving: MovingAverage | None, objective: Objective, held_out: tuple[int, HeldOutHook] | None) -> list[Every]:
    """Move the average after each step; look at held-out text with it as often as (steps) another hook does."""
    if moving is None:
        return []
    if held_out is None:
        return [Every(1, moving)]
    steps, hook = held_out
    return [Every(1, moving), Every(steps, hook.of(moving.as_learner(objective), "held_out_average"))]


def averaged_steps(average: LastCheckpoints, keep_every: int | None, first: int, last: int) -> list[int]:
    """The steps of the checkpoints to average; BadInput where a run from `first` to `last` keeps fewer."""
    if keep_every is None:
        raise BadInput("`average.kind` checkpoints takes checkpoints at fixed steps: set `checkpoint.keep_every`.")
    kept = [step for step in range(first + 1, last + 1) if step % keep_every == 0]
    if len(kept) < average.count:
        raise BadInput(f"`average.count` is {average.count}, but a run of {last - first} steps keeps {len(kept)} "
                       f"checkpoints (`checkpoint.keep_every` {keep_every}). Keep more of them, or average fewer.")
    return kept[-average.count:]


def mean_of_checkpoints(folder: Path, steps: list[int]) -> dict[str, Tensor]:
    """The mean of the model's weights in kept checkpoints, each checked against its checksums."""
    kept = Checkpoints(folder, {})

    def weights(step: int) -> dict[str, Tensor]:
        modules: dict[str, Any] = load_state(kept.path(step))["learner"]["modules"]
        return {name.removeprefix("model."): tensor for name, tensor in modules.items() if name.startswith("model.")}

    return mean_of(map(weights, steps))
