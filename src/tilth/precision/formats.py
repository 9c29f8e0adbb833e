"""Simulated number formats: EeMm of any exponent and mantissa width, exactly, on any device.

A format has a sign, `e` exponent and `m` mantissa bits, the exponent biased by 2^(e-1) - 1, subnormals always. IEEE 754
keeps the top exponent for infinities and NaN: E8M7 is bfloat16, E5M10 float16, E5M2 the wider of the two 8-bit types.
The `fn` types of the Open Compute Project (OFP8, 2023) have no infinities and give up one code alone, for NaN: E4M3fn
ends at 448, where E4M3 would end at 240. E8M3 keeps bfloat16's range and is not E4M3.

A simulated value is a carrier float (float32, or float64) that the format can represent. Rounding divides by the
spacing of the format's grid at the value, a power of two, rounds to an integer and multiplies back: each step is exact
in the carrier, so nothing is rounded twice, and a GPU and a CPU agree to the bit. Do not switch on
`torch.set_flush_denormal`: grids below 2^-126 are then lost.
"""

import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from tilth.recipe.errors import BadInput

Rounding = Literal["nearest", "truncate"]
Overflow = Literal["saturate", "infinite"]
Scaling = Literal["none", "tensor"]

NAMED = {"bf16": "E8M7", "fp16": "E5M10"}
# Of a carrier: the integer type of the same size, the bits of its exponent, its largest exponent.
CARRIERS = {torch.float32: (torch.int32, 0x7F800000, 127), torch.float64: (torch.int64, 0x7FF0000000000000, 1023)}


@dataclass(frozen=True)
class NumberFormat:
    """exponent_bits 2 to 8, mantissa_bits 1 to 23; finite_only: an `fn` type, without infinities."""

    exponent_bits: int
    mantissa_bits: int
    finite_only: bool = False

    def __post_init__(self) -> None:
        if not (2 <= self.exponent_bits <= 8 and 1 <= self.mantissa_bits <= 23):
            raise BadInput(f"{self} is not a format that can be simulated: 2 to 8 exponent and 1 to 23 mantissa bits.")
        if self.finite_only and self.exponent_bits == 8:
            raise BadInput(f"{self} would reach beyond float32, which carries simulated numbers.")

    @classmethod
    def parse(cls, text: str) -> "NumberFormat":
        """`E4M3`, `E4M3fn`, `bf16` or `fp16`; BadInput for anything else."""
        found = re.fullmatch(r"E(\d+)M(\d+)(fn)?", NAMED.get(text, text))
        if found is None:
            raise BadInput(f"'{text}' is no number format: write E and M with their bits, such as E8M3, E5M2 or E4M3fn "
                           f"(no infinities), or {' or '.join(NAMED)}.")
        return cls(int(found[1]), int(found[2]), found[3] is not None)

    def __str__(self) -> str:
        return f"E{self.exponent_bits}M{self.mantissa_bits}{'fn' if self.finite_only else ''}"

    @property
    def bits(self) -> int:
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def lowest_exponent(self) -> int:
        """Of the smallest normal number, which is 2 to this power."""
        return 2 - 2 ** (self.exponent_bits - 1)

    @property
    def highest_exponent(self) -> int:
        """Of the largest number."""
        return 2 ** (self.exponent_bits - 1) - (0 if self.finite_only else 1)

    @cached_property
    def max(self) -> float:
        """The largest finite number."""
        below_two = 2 ** (1 - self.mantissa_bits) if self.finite_only else 2**-self.mantissa_bits
        return (2 - below_two) * 2.0**self.highest_exponent

    @property
    def min_normal(self) -> float:
        return 2.0**self.lowest_exponent

    @property
    def min_subnormal(self) -> float:
        """The smallest positive number, and the spacing of all subnormals."""
        return 2.0 ** (self.lowest_exponent - self.mantissa_bits)

    def values(self) -> Tensor:
        """All finite numbers from 0 up, float64 (N,), in ascending order."""
        codes = torch.arange(2 ** (self.exponent_bits + self.mantissa_bits), dtype=torch.int64)
        exponent, mantissa = codes >> self.mantissa_bits, (codes & (2**self.mantissa_bits - 1)).double()
        power = (exponent.clamp(min=1) - 1 + self.lowest_exponent).double()
        numbers = (mantissa + (exponent > 0) * 2.0**self.mantissa_bits) * torch.exp2(power - self.mantissa_bits)
        return numbers[numbers <= self.max]


def quantize(x: Tensor, number: NumberFormat, rounding: Rounding = "nearest", overflow: Overflow = "saturate",
             scaling: Scaling = "none") -> Tensor:
    """`x` (any shape, floating) rounded to numbers of the format, in the type of `x`; no gradient.

    rounding: nearest (ties to the even code), or truncate (towards 0, as a bit mask does: shrinks magnitudes).
    overflow: saturate makes what lies beyond the largest number, infinities included, the largest number; infinite
    makes what rounds beyond it infinite (NaN in a format without infinities), infinities included. NaN stays NaN.
    scaling: tensor multiplies by the largest power of two that keeps all of `x` in range, and divides after rounding
    (exact, so that scaling shifts the range and adds no error of its own); a tensor that is empty, all zero or not
    finite is not scaled. Half-precision inputs are worked on in float32 and must be able to hold the result: bfloat16
    for mantissas of at most 7 bits, float16 for exponents of at most 5 and mantissas of at most 10.
    """
    with torch.no_grad():
        if not holds(x.dtype, number):
            raise ValueError(f"{x.dtype} cannot hold all numbers of {number}; give quantize a float32 tensor.")
        wide = x if x.dtype in CARRIERS else x.float()
        if scaling == "none":
            return _round(wide, number, rounding, overflow).to(x.dtype)
        scale = power_of_two_scale(wide, number)
        return _round(wide * scale, number, rounding, overflow).div_(scale).to(x.dtype)


def holds(dtype: torch.dtype, number: NumberFormat) -> bool:
    """Whether every number of the format is one of `dtype`."""
    if dtype in CARRIERS:
        return True
    if dtype == torch.float16:
        return number.exponent_bits <= 5 and number.mantissa_bits <= 10 and not number.max > 65504
    return dtype == torch.bfloat16 and number.mantissa_bits <= 7


def power_of_two_scale(x: Tensor, number: NumberFormat) -> Tensor:
    """() in the type of x: the largest power of two that keeps all of `x` in range, 1 where there is none. It stays
    within 2^+-120, so that neither the scaled tensor nor the way back leaves the carrier's normal numbers."""
    one = torch.ones((), dtype=x.dtype, device=x.device)
    if x.numel() == 0:
        return one
    low, high = torch.aminmax(x)
    most = torch.maximum(high, -low)
    mantissa, exponent = torch.frexp(most)  # most = mantissa 2^exponent, mantissa in [1/2, 1)
    limit, top = math.frexp(number.max)
    k = (top - exponent - (mantissa > limit).int()).clamp_(-120, 120)
    return torch.where(torch.isfinite(most) & (most > 0), torch.ldexp(one, k), one)


def _round(x: Tensor, number: NumberFormat, rounding: Rounding, overflow: Overflow) -> Tensor:
    """A new tensor in the carrier's type; x: float32 or float64."""
    integer, exponent_mask, carrier_exponent = CARRIERS[x.dtype]
    saturate = overflow == "saturate"
    # Twice the largest power of two is beyond every format's largest number, and rounds to itself.
    beyond = number.max if saturate else 2.0 ** min(number.highest_exponent + 1, carrier_exponent)
    if saturate or number.highest_exponent < carrier_exponent:
        bounded = x.clamp(-beyond, beyond)
    else:
        bounded = x
    spacing = (bounded.view(integer) & exponent_mask).view(x.dtype)  # the power of two at or below |x|; NaN: infinity
    spacing = spacing.clamp_(min=number.min_normal).mul_(2.0**-number.mantissa_bits)
    rounded = bounded / spacing  # below 2^(m+1)
    rounded = (rounded.round_() if rounding == "nearest" else rounded.trunc_()).mul_(spacing)
    if saturate:
        return rounded
    infinite = torch.full((), torch.nan if number.finite_only else torch.inf, dtype=x.dtype, device=x.device)
    lost = (rounded.abs() > number.max) | x.isinf()
    return torch.where(lost, torch.copysign(infinite, x), rounded)
