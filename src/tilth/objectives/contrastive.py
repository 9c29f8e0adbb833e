"""Telling apart which caption belongs to which image of a batch."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from tilth.objectives.loss import Batch, Couples, Loss, Objective


class Contrastive(Objective):
    """The mean of the cross-entropies of an image among the captions of the batch and of a caption among its images
    (Radford et al. 2021, arXiv 2103.00020, figure 3; InfoNCE, van den Oord et al. 2018).

    A batch has `pixels`, `tokens` and `held` (true where a token stands). Pairs with the same caption are no negatives
    of each other: the target is spread evenly over them (Yang et al. 2022, arXiv 2204.03610, eq. 3), which without
    repeats is the loss of the paper. A pair's loss depends on the others, so a batch is never split and no single unit
    can be probed.
    """

    couples: ClassVar[Couples] = "batch"
    kind: str = "contrastive"

    def __call__(self, model: Any, batch: Batch, rng: torch.Generator, state: dict[str, Any]) -> Loss:
        logits_BB = model(batch["pixels"], batch["tokens"], batch["held"])
        tokens = torch.where(batch["held"], batch["tokens"], -1)
        same_BB = (tokens[:, None] == tokens[None]).all(-1).float()
        target_BB = same_BB / same_BB.sum(1, keepdim=True)  # symmetric: equal captions have equally many equals
        by_image = F.cross_entropy(logits_BB, target_BB, reduction="none")
        by_text = F.cross_entropy(logits_BB.T, target_BB, reduction="none")
        with torch.no_grad():
            right = same_BB.gather(1, logits_BB.argmax(1, keepdim=True)).mean()
        return Loss((by_image + by_text) / 2, self.count(batch), figures={"matched": right, "scale": model.scale()},
                    couples=self.couples)

    def count(self, batch: Batch) -> Tensor:
        return torch.ones(len(batch["unit_id"]), device=batch["unit_id"].device)
