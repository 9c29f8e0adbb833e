"""The shared blocks of a transformer: feed-forward maps and the pre-norm block.

Shapes: B rows, L positions, S memory positions, D width, F hidden width.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tilth.models.attention import Attention, Sight
from tilth.models.cache import Cache
from tilth.models.config import TransformerConfig
from tilth.models.experts import MixtureOfExperts
from tilth.models.norms import build_norm
from tilth.models.parametrization import factors
from tilth.models.remember import Remember, remembering
from tilth.models.rotary import Rotation
from tilth.precision.activations import InMode, Linear, kept_in_fp8


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up."""
    return F.silu(gate) * up


class SwiGLU(nn.Module, InMode):
    """down(silu(gate(x)) * up(x)) (Shazeer 2020, https://arxiv.org/abs/2002.05202)."""

    def __init__(self, width: int, hidden: int, bias: bool):
        super().__init__()
        self.gate = Linear(width, hidden, bias=bias)
        self.up = Linear(width, hidden, bias=bias)
        self.down = Linear(hidden, width, bias=bias)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.down(kept_in_fp8(self.mode, gated, (self.gate(x_BLD), self.up(x_BLD))))


class GELU(nn.Module, InMode):
    """down(gelu(up(x))), with the exact Gaussian error linear unit."""

    def __init__(self, width: int, hidden: int, bias: bool):
        super().__init__()
        self.up = Linear(width, hidden, bias=bias)
        self.down = Linear(hidden, width, bias=bias)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.down(kept_in_fp8(self.mode, F.gelu, (self.up(x_BLD),)))


FEED_FORWARD = {"swiglu": SwiGLU, "gelu": GELU}


class Block(nn.Module):
    """One layer: x + attention(norm x), then memory if the model cross-attends, then x + feed_forward(norm x).

    remember: what is kept for the backward pass; how a block runs, not what it is.
    """

    remember: Remember = "all"

    def __init__(self, config: TransformerConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.factor = factors(config).residual
        sizes = config.sizes()
        self.attention_norm = build_norm(config)
        self.attention = Attention(config)
        if config.cross_attention:
            self.cross_attention_norm = build_norm(config)
            self.cross_attention = Attention(config, sizes.memory_width)
        self.feed_forward_norm = build_norm(config)
        kind = FEED_FORWARD[config.activation]
        self.feed_forward = kind(config.width, sizes.feed_forward, config.biases) if config.experts is None else (
            MixtureOfExperts(config, kind))

    def forward(self, x_BLD: Tensor, seen: Sight, rotation: Rotation | None, cache: Cache | None = None,
                memory_BSD: Tensor | None = None, memory_seen: Sight | None = None,
                used_BL: Tensor | None = None) -> Tensor:
        """The residual stream after this layer, (B, L, D). used_BL: where experts are asked (default: everywhere)."""
        return remembering(self.remember, self._forward, x_BLD, seen, rotation, cache, memory_BSD, memory_seen, used_BL)

    def compiled_parts(self) -> list[nn.Module]:
        """The modules that `torch.compile` takes one by one: no shape in them depends on how units fall into rows, or
        tokens to experts."""
        routed = isinstance(self.feed_forward, MixtureOfExperts)
        return [self.attention_norm, self.feed_forward_norm, *([] if routed else [self.feed_forward])]

    def tensor_plan(self) -> dict[str, Any]:
        """How tensor parallelism splits the matrices (Shoeybi et al. 2019): the first of each branch by heads or hidden
        features, the second by its inputs."""
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel
        branches = ["attention", *(["cross_attention"] if hasattr(self, "cross_attention") else [])]
        plan: dict[str, Any] = {f"{branch}.{name}": ColwiseParallel() for branch in branches
                                for name in ("query", "key", "value")}
        plan |= {f"{branch}.out": RowwiseParallel() for branch in branches}
        plan |= {f"feed_forward.{name}": ColwiseParallel() for name in ("gate", "up")
                 if hasattr(self.feed_forward, name)}
        return {**plan, "feed_forward.down": RowwiseParallel()}

    def _forward(self, x_BLD: Tensor, seen: Sight, rotation: Rotation | None, cache: Cache | None,
                 memory_BSD: Tensor | None, memory_seen: Sight | None, used_BL: Tensor | None) -> Tensor:
        branch = self.attention(self.attention_norm(x_BLD), seen, rotation, cache=cache, layer=self.layer)
        x_BLD = self._add(x_BLD, branch)
        if memory_BSD is not None and memory_seen is not None:
            branch = self.cross_attention(self.cross_attention_norm(x_BLD), memory_seen, memory_BSD=memory_BSD)
            x_BLD = self._add(x_BLD, branch)
        inputs = self.feed_forward_norm(x_BLD)
        routed = isinstance(self.feed_forward, MixtureOfExperts)
        return self._add(x_BLD, self.feed_forward(inputs, used_BL) if routed else self.feed_forward(inputs))

    def _add(self, x_BLD: Tensor, branch_BLD: Tensor) -> Tensor:
        return x_BLD + branch_BLD if self.factor == 1 else x_BLD + self.factor * branch_BLD
