"""Rotary positions (Su et al. 2021, https://arxiv.org/abs/2104.09864), in the half-split layout of Llama checkpoints.

Feature i of the first half of a head turns together with feature i of the second half, by position x theta^(-2 i / E).
Shapes: B rows, L positions, H heads, E head width.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Rotation(NamedTuple):
    """Cosines, and sines with the sign of their half (-, +), of all positions of a batch: (B or 1, L, 1, E)."""

    cos: Tensor
    sin: Tensor


def rotation(positions: Tensor, head_width: int, theta: float, dtype: torch.dtype) -> Rotation:
    """Angles in float32 for `positions` (B or 1, L), then cosines and sines in `dtype`.

    Made anew in each forward pass: it costs nothing beside one layer, and there is no table to move, cast or outgrow.
    """
    pairs = torch.arange(0, head_width, 2, dtype=torch.float32, device=positions.device)
    angles = positions[..., None, None].float() * (1.0 / theta ** (pairs / head_width))
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return Rotation(torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1))


class _Rotate(torch.autograd.Function):
    """A rotation's gradient is the rotation back; said so, it takes half the memory passes that autograd would."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return torch.roll(x, x.shape[-1] // 2, -1).mul_(sin).addcmul_(x, cos)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _Rotate.apply(grad, cos, -sin), None, None


def rotate(x_BLHE: Tensor, by: Rotation) -> Tensor:
    """Turn each pair of features by its angle; same shape and type."""
    if type(x_BLHE) is Tensor and not torch.compiler.is_compiling():
        return _Rotate.apply(x_BLHE, by.cos, by.sin)
    return x_BLHE * by.cos + torch.roll(x_BLHE, x_BLHE.shape[-1] // 2, -1) * by.sin
