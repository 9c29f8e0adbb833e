"""Logit sharpness: how much the loss can rise when the logits move within a small box.

The measure of Keskar et al. 2017 (arXiv 1609.04836, equation 4), phi = 100 (max f(x + y) - f(x)) / (1 + f(x)) over
|y_i| <= epsilon (|x_i| + 1), taken in the space of the output logits, as Lee et al. 2024 (arXiv 2405.18710) do: x are
the logits of one prediction, f its cross-entropy. Cross-entropy falls in the logit of the target and rises in all
others, so the maximum over the box is a corner: no search is needed. The measure depends on the level of the loss
through f, so the loss of the same text stands beside it.
"""

from typing import Any, Protocol

import torch
from pydantic import Field
from torch import Tensor

from tilth.data.held_out import EvalRows
from tilth.data.pool import Pool
from tilth.recipe import BadInput, Config
from tilth.train.device import autocast

CHUNK = 2**22  # logits at a time in float64: 32 MiB


class Sharpness(Config):
    """Measures logit sharpness while training, always on the same held-out text. every: a share of the run (below 1),
    or steps; epsilon: the box (Keskar et al. use 1e-3 and 5e-4)."""

    every: float = Field(0.1, gt=0)
    tokens: int = Field(2048, ge=1, description="of held-out text")
    epsilon: float = Field(5e-4, gt=0)

    def steps(self, of: int) -> int:
        """Steps between two measurements in a run of `of` steps."""
        return max(1, round(self.every * of) if self.every < 1 else int(self.every))


def sharpness(logits: Tensor, targets: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """phi and cross-entropy (nats) of each prediction, both float64 (N,), from logits (N, V) and targets (N,) int64.

    In float64 throughout: at a loss of 0.17 and epsilon 5e-4 the difference is 3e-4. Logits that are not finite give
    NaN.
    """
    z = logits.double()
    at = targets[:, None]
    before = torch.logsumexp(z, 1) - z.gather(1, at).squeeze(1)
    move = epsilon * (z.abs() + 1)
    corner = z + move
    corner.scatter_(1, at, (z - move).gather(1, at))
    after = torch.logsumexp(corner, 1) - corner.gather(1, at).squeeze(1)
    return 100 * (after - before) / (1 + before), before


class Trained(Protocol):
    """What the hook needs of a loop."""

    learner: Any
    settings: Any


class SharpnessHook:
    """A loop hook: mean sharpness and loss over the first rows of held-out text, with `tokens` tokens or a few more."""

    def __init__(self, config: Sharpness, pool: Pool, length: int):
        self.config, self.rows = config, EvalRows(pool, length, limit_tokens=config.tokens)

    def __call__(self, loop: Trained) -> dict[str, Any]:
        phi, loss = self.measure(loop.learner.modules["model"], loop.settings.precision, loop.settings.device,
                                 loop.settings.micro_rows)
        return {"sharpness": {"phi": phi, "loss": loss, "epsilon": self.config.epsilon}}

    @torch.no_grad()
    def measure(self, model: Any, precision: str, device: torch.device, rows: int) -> tuple[float, float]:
        """Means over the predicted tokens."""
        if not (hasattr(model, "hidden") and hasattr(model, "head")):
            raise BadInput("`sharpness` needs a model that gives logits for `tokens` (hidden and head).")
        sums, count = torch.zeros(2, dtype=torch.float64), 0
        training = model.training
        model.eval()
        for batch in self.rows.batches(rows):
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            with autocast(precision, device):
                hidden = model.hidden(batch["tokens"], segments=batch["unit_index"], positions=batch["positions"])
            kept = batch["targets"] != -100
            for part, targets in zip(*_chunks(hidden[kept], batch["targets"][kept], model.output_weight.shape[0]),
                                     strict=True):
                phi, loss = sharpness(model.head(part), targets, self.config.epsilon)
                sums += torch.stack([phi.sum(), loss.sum()]).cpu()
                count += len(targets)
            if count >= self.config.tokens:
                break
        model.train(training)
        phi, loss = (sums / max(count, 1)).tolist()
        return phi, loss


def _chunks(hidden: Tensor, targets: Tensor, vocabulary: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    size = max(1, CHUNK // vocabulary)
    return hidden.split(size), targets.split(size)
