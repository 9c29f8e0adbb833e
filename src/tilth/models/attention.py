"""Attention: who sees whom, decided once for each forward pass, and the multi-head attention that obeys it.

Shapes: B rows, L query positions, S key positions, D width, H query heads, K key-value heads, E head width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilth.models.cache import Cache
from tilth.models.config import Pattern, TransformerConfig
from tilth.models.context import ContextGroup
from tilth.models.norms import RMSNorm
from tilth.models.parametrization import factors
from tilth.models.rotary import Rotation, rotate
from tilth.precision.activations import Linear


@dataclass(frozen=True)
class Sight:
    """Who sees whom: one of everything, `causal`, `runs` (lengths of pieces of the flattened batch, each on its own)
    or `mask` (broadcastable to (B, H, L, S); True where seen). `causal` also says so of each run. `context`: brings
    the keys and values of whole rows together, where their positions are divided over processes."""

    causal: bool = False
    runs: tuple[int, ...] | None = None
    mask: Tensor | None = None
    context: ContextGroup | None = None


def sight(pattern: Pattern, segments: Tensor | None, prefix: Tensor | None, length: int, past: int,
          device: torch.device) -> Sight:
    """Decide once for a whole forward pass what all layers share.

    `segments` (B, L): equal values of a row stand side by side and see nothing outside; padding (-1) is a segment
    like any other, so that no query is left without a key. `prefix` (B, L) bool: the first positions of each segment,
    which see each other whatever their order. `past`: positions already in the cache, seen by all.
    """
    if pattern == "prefix" and prefix is None and not past:
        raise ValueError("A prefix decoder needs `prefix`: (B, L) bool, true on the positions that see each other.")
    causal = pattern != "bidirectional"
    if past:
        order = torch.arange(past, past + length, device=device)[:, None] >= torch.arange(past + length, device=device)
        return Sight(mask=order) if length > 1 else Sight()
    if segments is not None and device.type == "cpu" and pattern != "prefix" and not torch.compiler.is_compiling():
        runs = run_lengths(segments)
        if len(runs) == len(segments):
            return Sight(causal)
        # Each run alone costs the sum of squares, not the square of the sum; calls on tiny runs would cost more.
        if sum(runs) >= 16 * len(runs):
            return Sight(causal, runs)
    if segments is None and pattern != "prefix":
        return Sight(causal)
    return Sight(mask=_mask(pattern, segments, prefix, length, device))


def sight_of_part(pattern: Pattern, segments: Tensor | None, prefix: Tensor | None, length: int,
                  context: ContextGroup, device: torch.device) -> Sight:
    """The same for a process that holds `length` positions of each row; `segments` and `prefix` are those of its part.
    Keys behind the last query of a causal row are left out."""
    start, whole = context.start(length), length * context.world
    segments = None if segments is None else context.gather(segments)
    prefix = None if prefix is None else context.gather(prefix)
    keys = whole if pattern != "causal" else start + length
    mask = _mask(pattern, segments, prefix, whole, device)[..., start:start + length, :keys]
    return Sight(mask=mask, context=context)


def _mask(pattern: Pattern, segments: Tensor | None, prefix: Tensor | None, length: int,
          device: torch.device) -> Tensor:
    """(B or 1, 1, L, L) bool, true where the query (third axis) sees the key (last axis)."""
    seen = torch.ones(1, length, length, dtype=torch.bool, device=device)
    if pattern != "bidirectional":
        seen = seen.tril()
    if pattern == "prefix" and prefix is not None:
        seen = seen | (prefix[:, :, None] & prefix[:, None, :])
    if segments is not None:
        seen = seen & (segments[:, :, None] == segments[:, None, :])
    return seen[:, None]


def run_lengths(segments: Tensor) -> tuple[int, ...]:
    """Lengths of the runs of equal values along the flattened rows; a run ends with its row."""
    starts = torch.ones_like(segments, dtype=torch.bool)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    at = starts.flatten().nonzero().flatten()
    return tuple(torch.diff(at, append=at.new_tensor([segments.numel()])).tolist())


def attend(q_BLHE: Tensor, k_BSKE: Tensor, v_BSKE: Tensor, seen: Sight) -> Tensor:
    """Scaled dot-product attention under `seen`; returns (B, L, H, E)."""
    if seen.runs is None:
        return _attend(q_BLHE, k_BSKE, v_BSKE, seen.causal, seen.mask)
    pieces = (x.flatten(0, 1).split(seen.runs) for x in (q_BLHE, k_BSKE, v_BSKE))
    out = [_attend(q[None], k[None], v[None], seen.causal, None)[0] for q, k, v in zip(*pieces, strict=True)]
    return torch.cat(out).view_as(q_BLHE)


def _attend(q_BLHE: Tensor, k_BSKE: Tensor, v_BSKE: Tensor, causal: bool, mask: Tensor | None) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q_BLHE, k_BSKE, v_BSKE))
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)
    return out.transpose(1, 2)


class Attention(nn.Module):
    """Multi-head attention with grouped key-value heads, over the row itself or over a memory (`source` features)."""

    def __init__(self, config: TransformerConfig, source: int | None = None):
        super().__init__()
        s, bias = config.sizes(), config.biases
        self.head_width = s.head_width
        self.query_factor = factors(config).query
        self.query = Linear(config.width, s.heads * s.head_width, bias=bias)
        self.key = Linear(source or config.width, s.kv_heads * s.head_width, bias=bias)
        self.value = Linear(source or config.width, s.kv_heads * s.head_width, bias=bias)
        self.out = Linear(s.heads * s.head_width, config.width, bias=bias)
        self.query_norm = RMSNorm(s.head_width, config.norm_epsilon) if config.qk_norm else None
        self.key_norm = RMSNorm(s.head_width, config.norm_epsilon) if config.qk_norm else None

    def forward(self, x_BLD: Tensor, seen: Sight, rotation: Rotation | None = None, memory_BSD: Tensor | None = None,
                cache: Cache | None = None, layer: int = 0) -> Tensor:
        """Returns (B, L, D), to be added to the residual stream."""
        source = x_BLD if memory_BSD is None else memory_BSD
        q = self._heads(self.query(x_BLD), self.query_norm)
        k = self._heads(self.key(source), self.key_norm)
        v = self._heads(self.value(source), None)
        if self.query_factor != 1:
            q = q * self.query_factor
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if cache is not None:
            k, v = cache.append(layer, k, v)
        if seen.context is not None:
            k, v = (seen.context.gather(x)[:, :seen.mask.shape[-1]] for x in (k, v))  # type: ignore[union-attr]
        return self.out(attend(q, k, v, seen).flatten(2))

    def _heads(self, x: Tensor, norm: nn.Module | None) -> Tensor:
        x = x.unflatten(-1, (-1, self.head_width))
        return x if norm is None else norm(x)
