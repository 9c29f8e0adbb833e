"""Next-token prediction over packed rows."""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tilth.objectives.loss import Batch, Loss, Objective, sum_by_unit, units_of


class Causal(Objective):
    """Cross-entropy of each token given those before it in its unit, plus an optional z-loss.

    z-loss: `z_loss * mean(logsumexp(logits)^2)` over predicted tokens (PaLM, Chowdhery et al. 2022, section 5), keeps
    the softmax normaliser near 0 so that low precision does not drift.
    """

    kind: str = "causal"
    z_loss: float = Field(0.0, ge=0)

    def __call__(self, model: nn.Module, batch: Batch, rng: torch.Generator, state: dict[str, Any]) -> Loss:
        logits = model(batch["tokens"], segments=batch["unit_index"], positions=batch["positions"])
        targets = batch["targets"]
        nll = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100, reduction="none")
        total = sum_by_unit(nll, batch["unit_index"], units_of(batch))
        terms = {}
        if self.z_loss:
            predicted = targets != -100
            z = torch.logsumexp(logits[predicted].float(), dim=-1)
            terms["z_loss"] = self.z_loss * z.square().mean()
        return Loss(total, self.count(batch), terms)

    def count(self, batch: Batch) -> Tensor:
        return sum_by_unit((batch["targets"] != -100).float(), batch["unit_index"], units_of(batch))
