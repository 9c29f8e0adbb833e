"""Learning to predict the values of a function from examples of it, all prefixes of a sequence at once."""

from typing import Any

import torch
from torch import Tensor

from tilth.objectives.loss import Batch, Loss, Objective


class InContextRegression(Objective):
    """Squared error of each value given the points and values before it (Garg et al. 2022, arXiv 2208.01066, eq. 2).

    A batch has `x (B, K, d)` and `y (B, K)`; each sequence is a unit of K predictions.
    """

    kind: str = "in_context_regression"

    def __call__(self, model: Any, batch: Batch, rng: torch.Generator, state: dict[str, Any]) -> Loss:
        errors_BK = (model(batch["x"], batch["y"]) - batch["y"]).square()
        return Loss(errors_BK.sum(1), self.count(batch))

    def count(self, batch: Batch) -> Tensor:
        return batch["y"].new_full((len(batch["y"]),), batch["y"].shape[1])
