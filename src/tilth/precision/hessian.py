"""What a layer's inputs say about its weights: the Hessian of its output error, and the factor that solvers use.

Shapes: N tokens, I input features, O output features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tilth.recipe import BadInput


class Hessian:
    """H = (2 / samples) sum x x^T over the tokens of all samples (rows of calibration text), a running mean over the
    samples (Frantar et al. 2022, https://arxiv.org/abs/2210.17323); float64, (I, I)."""

    def __init__(self, features: int, device: torch.device | str = "cpu"):
        self.matrix = torch.zeros(features, features, dtype=torch.float64, device=device)
        self.samples = 0
        self.tokens = 0

    def add(self, x_NI: Tensor, samples: int) -> None:
        """The inputs of `samples` more rows of text, flattened to tokens."""
        x_NI = x_NI.float()
        total = self.samples + samples
        self.matrix *= self.samples / total
        self.matrix += (x_NI.T @ x_NI).double() * (2 / total)
        self.samples, self.tokens = total, self.tokens + len(x_NI)


@dataclass(frozen=True)
class Factor:
    """`upper` (I, I) float32: the upper Cholesky factor U of H^-1, columns in `order` (I,) int64; `dead` (I,) bool:
    columns, in that order, whose input is always 0; `damping`: what was used, as a share of mean(diag H)."""

    upper: Tensor
    order: Tensor
    dead: Tensor
    damping: float

    @classmethod
    def identity(cls, features: int, device: torch.device | str = "cpu") -> "Factor":
        """No knowledge of the inputs: all features alike, in their own order (rounding to nearest)."""
        return cls(torch.eye(features, device=device), torch.arange(features, device=device),
                   torch.zeros(features, dtype=torch.bool, device=device), 0.0)


def factorize(hessian: Tensor, damping: float = 0.01, act_order: bool = True, name: str = "the layer") -> Factor:
    """The factor of a Hessian (I, I).

    act_order: columns by falling diag(H), equal ones in their own order. damping x mean(diag H) is added to the
    diagonal, ten times more each time that the matrix is still not positive definite (too few tokens of calibration).
    Dead columns get H_jj = 1; their weights are to be 0. Raises BadInput where H is not finite.
    """
    matrix = hessian.double()
    if not bool(torch.isfinite(matrix).all()):
        raise BadInput(f"The inputs of {name} are not all finite numbers on the calibration text; the model overflows "
                       f"there, or its weights are damaged.")
    features = len(matrix)
    diagonal = matrix.diagonal()
    order = torch.arange(features, device=matrix.device)
    if act_order:
        order = torch.argsort(diagonal, descending=True, stable=True)
    matrix = matrix[order][:, order].clone()
    dead = matrix.diagonal() == 0
    mean = float(matrix.diagonal().mean()) if features else 0.0
    for _ in range(12):
        damped = matrix.clone()
        damped.diagonal().add_(damping * mean)
        damped.diagonal()[dead] = 1.0
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not int(failed):
                return Factor(upper.float(), order, dead, damping)
        damping = max(10 * damping, 1e-6)
    raise BadInput(f"The Hessian of {name} could not be inverted; calibrate on more text.")
