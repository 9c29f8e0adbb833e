"""Tensors that are spread over processes (DTensor), and plain ones, by the same few functions.

torch.distributed.tensor takes most of a second to import: what is not there yet has spread nothing, and is not asked.
"""

import math
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def is_spread(tensor: Any) -> bool:
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a spread tensor, sharing its memory; any other as it is."""
    return tensor.to_local() if is_spread(tensor) else tensor  # type: ignore[attr-defined]


def whole(tensor: Tensor) -> Tensor:
    """The whole of a spread tensor (every process must ask); any other as it is."""
    return tensor.full_tensor() if is_spread(tensor) else tensor  # type: ignore[attr-defined]


def spread_like(tensor: Tensor, model: Tensor) -> Tensor:
    """A whole tensor, spread as `model` is; every process holds the whole, so nothing is sent."""
    if not is_spread(model):
        return tensor
    from torch.distributed.tensor import distribute_tensor
    return distribute_tensor(tensor, model.device_mesh, model.placements, src_data_rank=None)  # type: ignore[attr-defined]


def empty_like(model: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Room for a tensor of `shape`, spread as `model` is if their shapes are equal; plain otherwise."""
    if is_spread(model) and model.shape == shape:
        return torch.empty_like(model, dtype=dtype)
    return torch.empty(shape, dtype=dtype)


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """The module's state with whole tensors, on the CPU; every process must ask."""
    return {name: whole(tensor).detach().cpu() for name, tensor in module.state_dict().items()}


def clip_gradients(parameters: list[Tensor], limit: float) -> float:
    """Scale the gradients so that their common norm is at most `limit`; returns the norm before."""
    if not any(map(is_spread, parameters)):
        return float(nn.utils.clip_grad_norm_(parameters, limit))
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = spread_norm(gradients)
    if norm > limit:
        torch._foreach_mul_([local(gradient) for gradient in gradients], limit / (norm + 1e-6))
    return norm


def spread_norm(gradients: list[Tensor]) -> float:
    """The Euclidean norm of whole and spread tensors together; one exchange for each way in which they are spread."""
    groups: dict[Any, list[Tensor]] = {}
    for gradient in gradients:
        spread = (gradient.device_mesh, gradient.placements) if is_spread(gradient) else None  # type: ignore
        groups.setdefault(spread, []).append(local(gradient))
    square = 0.0
    for spread, parts in groups.items():
        one = torch.stack(torch._foreach_norm(parts)).double().square().sum()
        for axis, placement in enumerate(spread[1] if spread else ()):
            if placement.is_partial():
                raise RuntimeError(f"a gradient is placed as {placement}: its parts are not summed yet")
            if not placement.is_replicate():
                dist.all_reduce(one, group=spread[0].get_group(axis))
        square += float(one)
    return math.sqrt(square)
