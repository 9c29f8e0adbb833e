"""Muon: momentum whose update of each matrix is orthogonalised (Jordan et al. 2024).

Beside torch's own: matrices of one shape are orthogonalised together, and in the type that the device is fast in
(torch's always uses bfloat16, which costs twice the time of float32 on a CPU without bf16 matrix units).
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from tilth.optim.spread import local, spread_like, whole

# Quintic iteration of Jordan et al. 2024: X <- a X + (b A + c A A) X with A = X X^T; singular values end in 0.7..1.2.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def orthogonalize(matrices: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly: (n, rows, columns) in and out, any scale."""
    a, b, c = COEFFICIENTS
    wide = matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices
    x = wide / wide.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if matrices.shape[-2] > matrices.shape[-1] else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, scaled by 0.2 sqrt(max(rows, columns)) so that the root mean square of an
    update is that of AdamW's (Liu et al. 2025, arXiv 2502.16982, equation 4); decoupled weight decay.

    parameters: groups of two-dimensional tensors. dtype: of the orthogonalisation.
    """

    def __init__(self, parameters: Iterable[Any], lr: float, momentum: float = 0.95, weight_decay: float = 0.1,
                 dtype: torch.dtype = torch.float32):
        self.dtype = dtype
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in by_shape.items():
                # A matrix that is spread over processes is orthogonalised whole, by each of them alike.
                moved = torch.stack([whole(self._momentum(parameter, group["momentum"])) for parameter in parameters])
                updates = orthogonalize(moved.to(self.dtype)).to(parameters[0].dtype)
                parts = [local(spread_like(update, parameter))
                         for update, parameter in zip(updates.unbind(), parameters, strict=True)]
                mine = [local(parameter) for parameter in parameters]
                scale = 0.2 * max(shape) ** 0.5
                torch._foreach_mul_(mine, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(mine, parts, alpha=-group["lr"] * scale)

    def _momentum(self, parameter: Tensor, momentum: float) -> Tensor:
        """The Nesterov step: gradient + momentum x buffer, after the buffer took the gradient in."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer, gradient = state["momentum_buffer"], parameter.grad
        assert gradient is not None
        buffer.lerp_(gradient, 1 - momentum)
        return torch.lerp(gradient, buffer, momentum)
