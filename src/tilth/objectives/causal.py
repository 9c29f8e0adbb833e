"""Next-token prediction over packed rows."""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from tilth.models import token_losses
from tilth.objectives.loss import Batch, Loss, Objective, sum_by_unit, units_of


class Causal(Objective):
    """Cross-entropy of each token given those before it in its unit, plus an optional z-loss.

    z-loss: `z_loss * mean(logsumexp(logits)^2)` over predicted tokens (PaLM, Chowdhery et al. 2022, section 5), keeps
    the softmax normaliser near 0 so that low precision does not drift.
    """

    kind: str = "causal"
    z_loss: float = Field(0.0, ge=0)

    def __call__(self, model: Any, batch: Batch, rng: torch.Generator, state: dict[str, Any]) -> Loss:
        hidden = model.hidden(batch["tokens"], segments=batch["unit_index"], positions=batch["positions"])
        targets = batch["targets"]
        terms = {}
        if self.z_loss:
            logits = model.head(hidden).float()
            nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none")
            squares = torch.logsumexp(logits[targets != -100], dim=-1).square()
            terms["z_loss"] = self.z_loss * squares.sum() / max(squares.numel(), 1)
        else:  # never holds the logits of a whole batch
            nll = token_losses(hidden, model.output_weight, targets)
        return Loss(sum_by_unit(nll, batch["unit_index"], units_of(batch)), self.count(batch), terms)

    def count(self, batch: Batch) -> Tensor:
        return sum_by_unit((batch["targets"] != -100).float(), batch["unit_index"], units_of(batch))
