"""Rotary positions (Su et al. 2021, https://arxiv.org/abs/2104.09864), in the half-split layout of Llama checkpoints.

Feature i of the first half of a head turns together with feature i of the second half, by position x theta^(-2 i / E).
Shapes: B rows, L positions, H heads, E head width, F = E / 2 pairs.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Rotation(NamedTuple):
    """Cosines and sines of all positions of a batch: (B or 1, L, 1, F)."""

    cos: Tensor
    sin: Tensor


def rotation(positions: Tensor, head_width: int, theta: float, dtype: torch.dtype) -> Rotation:
    """Angles in float32 for `positions` (B or 1, L), then cosines and sines in `dtype`.

    Made anew in each forward pass: it costs nothing beside one layer, and there is no table to move, cast or outgrow.
    """
    pairs = torch.arange(0, head_width, 2, dtype=torch.float32, device=positions.device)
    angles = positions[..., None, None].float() * (1.0 / theta ** (pairs / head_width))
    return Rotation(angles.cos().to(dtype), angles.sin().to(dtype))


def rotate(x_BLHE: Tensor, by: Rotation) -> Tensor:
    """Turn each pair of features by its angle; same shape and type."""
    first, second = x_BLHE.chunk(2, dim=-1)
    return torch.cat((first * by.cos - second * by.sin, second * by.cos + first * by.sin), dim=-1)
