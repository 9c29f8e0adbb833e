"""How the scale and zero of each group are kept: exactly, in 16 bits, or quantized a second time (SpQR).

Shapes: O output features, G groups of a row, T tiles of `rows` output features (the last may be shorter).
"""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from tilth.precision.affine import dequantize, fit, quantize


class Statistics(Protocol):
    """Takes the statistics of one group of every row as they are fitted, (O,) each, keeps them in its own form, and
    returns what they decode to; `tensors` is all of it, as it is stored."""

    integer_zero: bool

    def keep(self, scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]: ...
    def tensors(self) -> dict[str, Tensor]: ...


@dataclass
class Exact:
    """As fitted: what quantizers are tested against."""

    integer_zero: bool = False
    kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def keep(self, scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
        self.kept.append((scale, zero))
        return scale, zero

    def tensors(self) -> dict[str, Tensor]:
        scales, zeros = zip(*self.kept, strict=True)
        return {"scale": torch.stack(scales, 1), "zero": torch.stack(zeros, 1)}


@dataclass
class Half:
    """Scales in 16 bits; zeros as codes of the weights' width (integer_zero) or in 16 bits too."""

    integer_zero: bool = True
    kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def keep(self, scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
        half = scale.half(), zero.to(torch.uint8) if self.integer_zero else zero.half()
        self.kept.append(half)
        return half[0].float(), half[1].float()

    def tensors(self) -> dict[str, Tensor]:
        scales, zeros = zip(*self.kept, strict=True) if self.kept else ((), ())
        return {"scale": torch.stack(scales, 1), "zero": torch.stack(zeros, 1)} if scales else {}


@dataclass
class TwoLevel:
    """Scales, and likewise zeros, of `rows` neighbouring output features are quantized to `scale_bits` and `zero_bits`
    with 16-bit statistics of their own (SpQR, https://arxiv.org/abs/2306.03078, section 4.2)."""

    rows: int = 16
    scale_bits: int = 3
    zero_bits: int = 3
    integer_zero: bool = False
    kept: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    def keep(self, scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
        scale_codes, scale_second, scale = second_level(scale, self.rows, self.scale_bits)
        zero_codes, zero_second, zero = second_level(zero, self.rows, self.zero_bits)
        self.kept.append((scale_codes, zero_codes, torch.cat([scale_second, zero_second])))
        return scale, zero

    def tensors(self) -> dict[str, Tensor]:
        """scale_codes, zero_codes uint8 (O, G); second float16 (4, T, G): scale and zero of scales, then of zeros."""
        if not self.kept:
            return {}
        scales, zeros, seconds = zip(*self.kept, strict=True)
        return {"scale_codes": torch.stack(scales, 1), "zero_codes": torch.stack(zeros, 1),
                "second": torch.stack(seconds, 2)}


def second_level(values: Tensor, rows: int, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (O,), 16-bit scales and zeros (2, T), and what they decode to (O,), of one statistic (O,)."""
    tiled = tiles(values, rows)
    scale, zero = fit(tiled.amin(1), tiled.amax(1), bits)
    # Rounded first, so that codes make up for it as far as they can.
    scale, zero = scale.half(), zero.half()
    codes = quantize(tiled, scale.float()[:, None], zero.float()[:, None], bits)
    back = dequantize(codes, scale.float()[:, None], zero.float()[:, None])
    count = len(values)
    return codes.reshape(-1)[:count], torch.stack([scale, zero]), back.reshape(-1)[:count]


def tiles(values: Tensor, rows: int) -> Tensor:
    """(O,) -> (T, rows); the last value fills up the last tile, which widens no range."""
    short = -len(values) % rows
    return torch.cat([values, values[-1:].expand(short)]).view(-1, rows)


def settle_constants(scale: Tensor, constant: Tensor, rows: int) -> Tensor:
    """Scales (O,) where those of constant groups (any scale will do for them) are the mean of the others of their
    tile, so that they do not widen its range."""
    tiled, known = tiles(scale, rows), ~tiles(constant, rows)
    mean = (tiled * known).sum(1) / known.sum(1).clamp(min=1)
    filled = torch.where(known | ~known.any(1, keepdim=True), tiled, mean[:, None])
    return filled.reshape(-1)[: len(scale)]
