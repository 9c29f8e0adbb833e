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
    repeats is the loss of the paper. A pair's loss depends on the others, so a batch is never split (see
    `contrastive_gathered`) and no single unit can be probed.
    """

    couples: ClassVar[Couples] = "batch"
    kind: str = "contrastive"

    def __call__(self, model: Any, batch: Batch, rng: torch.Generator, state: dict[str, Any]) -> Loss:
        logits_BB = model(batch["pixels"], batch["tokens"], batch["held"])
        total, right = pair_losses(logits_BB, batch["tokens"], batch["held"])
        return Loss(total, self.count(batch), figures={"matched": right, "scale": model.scale()}, couples=self.couples)

    def count(self, batch: Batch) -> Tensor:
        return torch.ones(len(batch["unit_id"]), device=batch["unit_id"].device)


def pair_losses(logits_BB: Tensor, tokens: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of each pair (B,) from the logits of every image with every text, and the share of images whose best
    text is right."""
    known = torch.where(held, tokens, -1)
    same_BB = (known[:, None] == known[None]).all(-1).float()
    target_BB = same_BB / same_BB.sum(1, keepdim=True)  # symmetric: equal captions have equally many equals
    by_image = F.cross_entropy(logits_BB, target_BB, reduction="none")
    by_text = F.cross_entropy(logits_BB.T, target_BB, reduction="none")
    with torch.no_grad():
        right = same_BB.gather(1, logits_BB.argmax(1, keepdim=True)).mean()
    return (by_image + by_text) / 2, right


class GatheredContrastive(Contrastive):
    """The same loss for a global batch whose parts need not fit in memory together.

    Gao et al. 2021, arXiv 2101.06983: a first pass without gradient embeds all pairs and works out the gradient of the
    loss in each embedding; the second embeds a part at a time and carries that gradient on into the weights. The
    gradient is that of the undivided batch; the first pass is counted. A pair of weight 0 stays a negative of the
    others, and learns nothing.
    """

    couples: ClassVar[Couples] = "global"
    kind: str = "contrastive_gathered"

    def first_pass(self) -> "EmbedAll":
        return EmbedAll()

    def __call__(self, model: Any, batch: Batch, rng: torch.Generator, state: dict[str, Any]) -> Loss:
        images, texts, scale = model.images(batch["pixels"]), model.texts(batch["tokens"], batch["held"]), model.scale()
        if "pair_loss" not in batch:  # nobody has looked: a probe of speed or memory, whose batch is all there is
            total, right = pair_losses(scale * images @ texts.T, batch["tokens"], batch["held"])
        else:
            carried = ((images * batch["image_gradient"]).sum(1) + (texts * batch["text_gradient"]).sum(1)
                       + scale * batch["scale_gradient"])
            total = batch["pair_loss"] + carried - carried.detach()  # the loss in value, `carried` in gradient
            right = batch["pair_matched"].mean()
        return Loss(total, self.count(batch), figures={"matched": right, "scale": scale}, couples=self.couples)


class EmbedAll:
    """The first pass: all embeddings of a global batch, and the gradient of its loss in each of them."""

    def first(self, learner: Any, update: str, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        model = learner.modules["model"]
        return {"image": model.images(batch["pixels"]), "text": model.texts(batch["tokens"], batch["held"]),
                "tokens": batch["tokens"], "held": batch["held"],
                "scale": model.scale().expand(len(batch["unit_id"]))}

    def between(self, results: list[dict[str, Tensor]], batches: list[Batch]) -> list[dict[str, Tensor]]:
        sizes = [len(result["image"]) for result in results]
        whole = {name: torch.cat([result[name] for result in results]) for name in results[0]}
        weight = torch.cat([batch["weight"] for batch in batches])
        with torch.enable_grad():
            image, text, scale = (whole[name].float().requires_grad_() for name in ("image", "text", "scale"))
            total, right = pair_losses(scale.mean() * image @ text.T, whole["tokens"], whole["held"])
            gradients = torch.autograd.grad((weight * total).sum(), (image, text, scale))
        # The step weighs each pair's loss; what it carries for the others must come through unweighted.
        share = torch.where(weight > 0, 1 / weight.clamp(min=1e-30), 0.0)
        parts = {"image_gradient": gradients[0] * share[:, None], "text_gradient": gradients[1] * share[:, None],
                 "scale_gradient": gradients[2] * share, "pair_loss": total.detach(),
                 "pair_matched": right.expand(len(weight))}
        split = {name: value.split(sizes) for name, value in parts.items()}
        return [{name: value[at] for name, value in split.items()} for at in range(len(sizes))]
