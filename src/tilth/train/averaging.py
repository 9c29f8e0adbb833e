"""Averages of weights over a run, which at a constant rate above all often score better than the last weights.

ema: an exponential moving average, moved after every step (Polyak and Juditsky 1992; Tarvainen and Valpola 2017, arXiv
1703.01780). checkpoints: the plain mean of the last kept checkpoints (Izmailov et al. 2018, arXiv 1803.05407; Kaddour
2022, arXiv 2209.14981).
"""

import copy
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor

from tilth.objectives.loss import Objective
from tilth.optim.spread import local
from tilth.recipe.frame import Config, one_of
from tilth.train.learner import Learner

if TYPE_CHECKING:
    from tilth.train.loop import Loop


class Average(Config):
    """use: whether the average is the stage's model, which later stages evaluate and export (the last weights are then
    kept in `last/`); if false it is kept beside it, in `averaged/`."""

    kind: str = ""
    use: bool = True


class Ema(Average):
    """An exponential moving average of the weights, moved after every step.

    average <- d average + (1 - d) weights, with d = min(decay, (1 + n) / (10 + n)) after n steps, so that the initial
    weights are soon forgotten.
    """

    kind: str = "ema"
    decay: float = Field(0.999, gt=0, lt=1)


class LastCheckpoints(Average):
    """The mean of the last `count` checkpoints at multiples of `checkpoint.keep_every`."""

    kind: str = "checkpoints"
    count: int = Field(5, ge=2)


AVERAGES: dict[str, type[Average] | str] = {"ema": Ema, "checkpoints": LastCheckpoints}
AverageChoice = one_of(Average, AVERAGES)


class MovingAverage:
    """A hook after every step. Its only state is the averaged copy of the model, a module of the learner (`average`),
    and so is saved, restored, rolled back and spread over processes with it."""

    def __init__(self, learner: Learner, config: Ema):
        self.learner, self.config = learner, config
        learner.modules["average"] = copy.deepcopy(learner.modules["model"]).requires_grad_(False)

    def as_learner(self, objective: Objective) -> Learner:
        """The averaged model under `objective`, to be evaluated."""
        return Learner(self.learner.modules["average"], objective)

    @torch.no_grad()
    def __call__(self, loop: "Loop") -> None:
        decay = min(self.config.decay, (1 + loop.at.step) / (10 + loop.at.step))  # a branch goes on with its average
        average, model = (self.learner.modules[name].state_dict() for name in ("average", "model"))
        ours, theirs = ([local(state[name]) for name in average] for state in (average, model))
        torch._foreach_lerp_(ours, theirs, 1 - decay)


def mean_of(states: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of equally named tensors, summed in float64 one state at a time."""
    total: dict[str, Any] = {}
    kinds, count = {}, 0
    for state in states:
        kinds, count = {name: tensor.dtype for name, tensor in state.items()}, count + 1
        total = {name: total.get(name, 0.0) + tensor.double() for name, tensor in state.items()}
    return {name: (tensor / count).to(kinds[name]) for name, tensor in total.items()}
