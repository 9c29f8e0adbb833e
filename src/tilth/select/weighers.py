"""Weighers: how much each unit of a batch counts; all the same, or by a function of its own current loss.

Loss-based reweighting after Sow et al. 2025 ("Dynamic Loss-Based Sample Reweighting for Improved Large Language Model
Pretraining", ICLR, https://arxiv.org/abs/2502.06733). l_i is the mean loss a token of unit i of the GLOBAL batch of B
units, without gradient, and d = 1:

    h_i = 2 d (l_i - l_min) / D - d,  D = max(l_max - l_min, 1e-6)          in [-d, d]
    linupper  f = min(h + d, d)       0 for the easiest, flat from the middle up
    quadratic f = 1 - h^2 / d^2       favours the middle, drops both ends
    extremes  f = |h|                 favours both ends, a contrast
    w_i = exp((f_i - f_max) / r) / sum_j exp((f_j - f_max) / r)

which is the solution of max_w sum_i w_i f_i - r KL(w || uniform). The step minimises
sum_i w_i n_i l_i / sum_i w_i n_i for units of n_i tokens: with equal lengths sum_i w_i l_i, with unequal ones the same
with `uniform` meaning uniform over tokens, so that r -> infinity is always plain maximum likelihood.

The method cannot tell hard from corrupt: a share of broken text draws the weights (see docs/selection.md).
"""

from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor

from tilth.data.batch import Batch
from tilth.data.pool import Pool
from tilth.recipe import Config
from tilth.select.protocols import Plan, Weigher, WeigherConfig

SMALLEST_RANGE = 1e-6  # equal losses: every h is the same, so every weight is


class Ones(Weigher):
    """Every unit counts the same."""

    def weights(self, batch: Batch, losses: Tensor | None) -> Tensor:
        return torch.ones_like(batch["weight"])


class ByLoss(Weigher):
    """Weights exp(f(h) / r), averaging one, of the units of a global batch from step `starts` (0-based) on."""

    needs_losses = True

    def __init__(self, strength: Callable[[Tensor], Tensor], temperature: float, starts: int, trim: float = 0.0):
        self.strength, self.temperature, self.starts, self.trim = strength, temperature, starts, trim
        self._figures: dict[str, float] = {}

    def weights(self, batch: Batch, losses: Tensor | None) -> Tensor:
        assert losses is not None
        share = torch.softmax(self.strength(normalised(losses.detach(), self.trim)) / self.temperature, 0)
        # Kish: the batch of equally weighted units whose mean gradient is as noisy.
        self._figures = {"effective_units": 1 / float(share.square().sum()), "batch_units": float(len(share)),
                         "weight_max": float(share.max()) * len(share)}
        return (share * len(share)).float()

    def planned_flops(self, plan: Plan) -> float:
        return max(plan.steps - self.starts, 0) * plan.rows * plan.flops_per_row / 3

    def metrics(self) -> dict[str, float]:
        return self._figures


def normalised(losses: Tensor, trim: float = 0.0) -> Tensor:
    """h (B,) in [-1, 1], float64; `trim`: the share of losses at either end that take the value of the next one in."""
    losses = losses.double()
    low, high = torch.quantile(losses, torch.tensor([trim, 1 - trim], dtype=torch.float64, device=losses.device))
    return 2 * (losses.clamp(low, high) - low) / (high - low).clamp(min=SMALLEST_RANGE) - 1


def linupper(h: Tensor) -> Tensor:
    return (h + 1).clamp(max=1)


def quadratic(h: Tensor) -> Tensor:
    return 1 - h.square()


class Uniform(WeigherConfig):
    """No reweighting: plain maximum likelihood."""

    kind: str = "uniform"

    def build(self, pool: Pool, seed: int) -> Weigher:
        return Ones()


class ByLossConfig(WeigherConfig):
    """What the weighers by loss share; each costs one more forward pass a step, counted in the FLOPs."""

    temperature: float = Field(1.0, gt=0, description="r; large is uniform")
    warmup: int = Field(0, ge=0, description="steps without reweighting (and without its forward pass)")
    trim: float = Field(0.0, ge=0, lt=0.5, description="share of the losses at either end that do not set the range "
                                                      "(0 as published, where one outlier squeezes all others)")


class LinUpper(ByLossConfig):
    """Down-weights units that are easy for the current model, linearly up to the middle of the batch's losses."""

    kind: str = "linupper"

    def build(self, pool: Pool, seed: int) -> Weigher:
        return ByLoss(linupper, self.temperature, self.warmup, self.trim)


class Quadratic(ByLossConfig):
    """Favours units in the middle of the batch's losses."""

    kind: str = "quadratic"

    def build(self, pool: Pool, seed: int) -> Weigher:
        return ByLoss(quadratic, self.temperature, self.warmup, self.trim)


class Extremes(ByLossConfig):
    """Favours the easiest and the hardest units: a contrast, not a recommendation."""

    kind: str = "extremes"

    def build(self, pool: Pool, seed: int) -> Weigher:
        return ByLoss(torch.abs, self.temperature, self.warmup, self.trim)


WEIGHERS: dict[str, type[Config] | str] = {"uniform": Uniform, "linupper": LinUpper, "quadratic": Quadratic,
                                           "extremes": Extremes}
