"""A learner whose linear layers round as a recipe's `simulated` says."""

from typing import Any

import torch

from tilth.precision.simulated import Simulated
from tilth.train import Learner


class SimulatedLearner(Learner):
    """`learner` with the linear layers of its model exchanged. The step it stands at is part of its state, so that
    what looks at the model before the next step (a probe, after a resumption) sees the layers as they were."""

    def __init__(self, learner: Learner, simulated: Simulated):
        model = learner.modules["model"]
        self.simulation = simulated.apply(model)
        super().__init__(model, learner.objective, learner.flops_per_row)
        self.state["simulated_step"] = torch.zeros((), dtype=torch.int64)

    def before_update(self, update: str, step: int) -> None:
        self.state["simulated_step"] = torch.tensor(step)
        self.simulation.at(step)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.simulation.at(int(self.state["simulated_step"]))
