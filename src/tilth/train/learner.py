"""The learner: everything the loop knows about what is being trained.

A new objective, architecture or modality is a new learner (or the default one with other parts), never a change in the
loop. The default learner trains one model with one objective by one update a step; others override what differs.
"""

from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tilth.objectives.loss import Batch, Loss, Objective, penalties_of
from tilth.optim.optimizers import ParameterGroup, group_parameters


class FirstPass(Protocol):
    """A step in two passes: look at the whole global batch without gradient, then train on it.

    `first` sees each micro-batch in turn; `between` sees all its results (in order) and returns, for each micro-batch,
    tensors that join it before the second pass: weights of units, or embeddings gathered over the global batch.
    Both passes of a micro-batch get equal random numbers. One that has an attribute `starts` is left out, and costs
    nothing, in the steps before it.
    """

    def first(self, learner: "Learner", update: str, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]: ...

    def between(self, results: list[dict[str, Tensor]], batches: list[Batch]) -> list[dict[str, Tensor]]: ...


class Learner:
    """One model, one objective, one update a step.

    modules: everything with parameters, trained, frozen or averaged, by name. state: persistent tensors that are not
    parameters (queues, counters), by name; both are saved and restored. updates: the named updates of a step, in order.
    """

    updates: tuple[str, ...] = ("main",)
    first_pass: FirstPass | None = None

    def __init__(self, model: nn.Module, objective: Objective, flops_per_row: float | None = None):
        self.modules = nn.ModuleDict({"model": model})
        self.objective = objective
        self.state: dict[str, Tensor] = {}
        self.flops_per_row = flops_per_row
        if (first := getattr(objective, "first_pass", lambda: None)()) is not None:
            self.first_pass = first

    def parameter_groups(self, update: str) -> list[ParameterGroup]:
        """The parameters that `update` changes; the updates of a learner own disjoint parameters."""
        return group_parameters(self.modules["model"])

    def loss(self, update: str, batch: Batch, rng: torch.Generator) -> Loss:
        """What the objective says, and the penalties that the model adds to any objective."""
        loss = self.objective(self.modules["model"], batch, rng, self.state)
        terms, figures = penalties_of(self.modules["model"])
        return replace(loss, terms={**loss.terms, **terms}, figures={**loss.figures, **figures})

    def count(self, update: str, batch: Batch) -> Tensor:
        """(U,) predictions of each unit under `update`, from the batch alone."""
        return self.objective.count(batch)

    def before_update(self, update: str, step: int) -> None:
        """Called before the passes of `update` (freeze a part, refresh a target)."""

    def after_step(self, step: int) -> None:
        """Called after all updates of a step (move an average, push a queue)."""

    def flops(self, batch: Batch) -> float | None:
        """Training FLOPs (forward and backward) of all updates on a micro-batch; None where nobody has counted them."""
        return None if self.flops_per_row is None else self.flops_per_row * rows_of(batch)

    def to(self, device: torch.device) -> None:
        self.modules.to(device)
        self.state = {name: tensor.to(device) for name, tensor in self.state.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"modules": self.modules.state_dict(), "state": dict(self.state)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.modules.load_state_dict(state["modules"])
        for name, tensor in state["state"].items():
            self.state[name] = tensor.to(self.state[name].device) if name in self.state else tensor


def rows_of(batch: Batch) -> int:
    """B: the leading size of the batch's rows (`unit_index`), or its number of units where each unit is a row."""
    return batch["unit_index"].shape[0] if "unit_index" in batch else batch["unit_id"].shape[0]
