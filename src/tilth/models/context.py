"""Context parallelism: the positions of each row are divided over processes, each of which computes its own queries
against the keys and values of all, gathered for every layer (as Llama 3 was trained, Dubey et al. 2024, arXiv
2407.21783, section 3.3.2).

A process keeps activations for L / processes positions; keys and values of whole rows live for one layer at a time.
Shapes: B rows, l positions of this process, L = l x processes.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class ContextGroup:
    """This process among those that share each row: it holds the positions from `start(l)` on."""

    def __init__(self, rank: int, world: int, group: Any):
        self.rank, self.world, self.group = rank, world, group

    def start(self, length: int) -> int:
        """The place in the row of the first of this process's `length` positions."""
        return self.rank * length

    def gather(self, part: Tensor) -> Tensor:
        """(B, l, ...) of every process as (B, L, ...), in the order of positions; gradients go back where they came
        from, summed."""
        return _Gather.apply(part, self)

    def slice(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch with this process's positions of each tensor of shape (B, L, ...), by the shape of its
        `unit_index`; L must be divisible."""
        rows, length = batch["unit_index"].shape
        part = length // self.world
        mine = slice(self.rank * part, (self.rank + 1) * part)
        return {name: tensor[:, mine] if tensor.shape[:2] == (rows, length) else tensor
                for name, tensor in batch.items()}


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, context: ContextGroup) -> Tensor:
        ctx.context, ctx.length = context, part.shape[1]
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(context.world)]
        dist.all_gather(parts, part.contiguous(), group=context.group)
        return torch.cat(parts, dim=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        grad = grad.contiguous()
        dist.all_reduce(grad, group=ctx.context.group)
        start = ctx.context.start(ctx.length)
        return grad[:, start:start + ctx.length], None
