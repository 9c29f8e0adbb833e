"""Eight-bit floating point: one scale a tensor, one scale a group of 16, or a group of 128 whose range is expanded.

Formats (Micikevicius et al. 2022, arXiv 2209.05433): E4M3 (largest 448, smallest 2^-9) for weights, activations and
moments, E5M2 (largest 57344, smallest 2^-16) for gradients. Dynamic range expansion is that of COAT (Xi et al. 2025,
arXiv 2410.19313): within a group of a moment, the largest magnitude is about 1e1 to 1e3 times the smallest, while E4M3
spans 229,376. A power spreads the group over the whole format:

    f(x) = sign(x) |x|^k,   k = log(229376) / log(max|x| / min|x|),   q = E4M3(448 f(x) / max|f(x)|)

Here |x| is divided by the group's largest magnitude before the power rather than after it, which is the same number
without overflow, gives that largest magnitude back to the bit, and leaves two scalars a group to store: it, and k.

Entries that are not finite come back as NaN, and do not disturb the others of their group.
Shapes: n numbers along the last axis, G = ceil(n / size) groups of it; the last group may be shorter.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
LARGEST = {E4M3: 448.0, E5M2: 57344.0}
MOMENT_GROUP, ACTIVATION_GROUP = 128, 16
# The ratio that k spreads a group to: that of the format (the paper), or a little less, with k rounded down to
# sixteenths (the authors' implementation).
FULL_RANGE, CODE_RANGE = 448.0 * 2**9, 448.0**2 / 2
LEAST_EXPONENT, LARGEST_EXPONENT = 1 / 16, 32.0

Exponent = Literal["exact", "sixteenths"]


class Moment(NamedTuple):
    """A moment in groups: codes (n,) E4M3, the largest magnitude of each group (G,) float32, and the exponent of each
    group (G,) float32, or None where ranges were not expanded."""

    codes: Tensor
    largest: Tensor
    exponent: Tensor | None


class Scaled(NamedTuple):
    """Codes in an FP8 format and what to multiply them with: a scalar, or one number a group of the last axis."""

    codes: Tensor
    scale: Tensor


def grouped(x: Tensor, size: int) -> Tensor:
    """(..., n) as (..., G, size), filled up with zeros."""
    groups = -(-x.shape[-1] // size)
    if short := groups * size - x.shape[-1]:
        x = torch.cat([x, x.new_zeros(*x.shape[:-1], short)], -1)
    return x.reshape(*x.shape[:-1], groups, size)


def to_fp8(x: Tensor, dtype: torch.dtype = E4M3) -> Tensor:
    """Round to the nearest, ties to even; beyond the largest number, that. What is not finite becomes NaN (backends
    differ in what their casts make of infinity)."""
    return torch.where(x.isfinite(), x.clamp(-LARGEST[dtype], LARGEST[dtype]), torch.nan).to(dtype)


def finite_magnitude(x: Tensor) -> Tensor:
    """|x|, and 0 where x is not finite."""
    return torch.nan_to_num(x.abs(), nan=0.0, posinf=0.0)


def exponents(largest: Tensor, least: Tensor, rule: Exponent = "exact") -> Tensor:
    """k of groups whose magnitudes lie in [least, largest]: above 1 exactly where the group is narrower than E4M3.

    1 for groups of one magnitude, or of zeros, which any k stores exactly; else within 1/16 to 32.
    """
    ratio = torch.where(largest > 0, largest / least, 1.0)
    if rule == "exact":
        k = math.log2(FULL_RANGE) / torch.log2(ratio)
    else:
        k = torch.floor(16 * math.log2(CODE_RANGE) / torch.log2(ratio)) / 16
    return torch.where(ratio > 1, k.clamp(LEAST_EXPONENT, LARGEST_EXPONENT), 1.0)


def quantize_moment(x: Tensor, expansion: Exponent | None = "exact", size: int = MOMENT_GROUP) -> Moment:
    """Store a flat tensor (n,) of any float type; expansion None keeps the magnitudes as they are."""
    x_GS = grouped(x.float(), size)
    magnitude_GS = finite_magnitude(x_GS)
    largest = magnitude_GS.amax(-1)
    share_GS = x_GS.abs() / torch.where(largest > 0, largest, 1.0)[:, None]
    k = None
    if expansion is not None:
        # A zero says nothing of the range: with it, k would be 0 and all others would become one number.
        least = torch.where(magnitude_GS > 0, magnitude_GS, torch.inf).amin(-1)
        k = exponents(largest, least, expansion)
        share_GS = torch.exp2(torch.log2(share_GS) * k[:, None])
    codes = to_fp8(torch.copysign(share_GS * LARGEST[E4M3], x_GS))
    return Moment(codes.view(-1)[: x.numel()], largest, k)


def dequantize_moment(moment: Moment, size: int = MOMENT_GROUP) -> Tensor:
    """The stored numbers, (n,) float32."""
    q_GS = grouped(moment.codes, size)
    k_G1 = None if moment.exponent is None else moment.exponent[:, None]
    return dequantize_numbers(q_GS, moment.largest[:, None], k_G1).view(-1)[: moment.codes.numel()]


def dequantize_numbers(codes: Tensor, largest: Tensor, exponent: Tensor | None) -> Tensor:
    """Stored numbers of any shape, float32, given the scalars of their groups, broadcastable to it."""
    q = codes.float()
    share = q.abs() / LARGEST[E4M3]
    if exponent is not None:
        share = torch.exp2(torch.log2(share) / exponent)
    return torch.copysign(share * largest, q)


def largest_magnitude(x: Tensor, size: int = ACTIVATION_GROUP) -> Tensor:
    """max |x| over finite entries, a scalar, in two stages: over pieces of the last axis (which the kernel before can
    leave behind), then over the pieces. 0 for an empty tensor."""
    if not x.numel():
        return x.new_zeros(())
    return finite_magnitude(grouped(x, size)).amax(-1).amax()


def quantize_tensor(x: Tensor, dtype: torch.dtype = E4M3) -> Scaled:
    """One float32 scale for the whole tensor, max|x| / the format's largest; 1 where that is 0."""
    scale = largest_magnitude(x).float() / LARGEST[dtype]
    scale = torch.where(scale > 0, scale, 1.0)
    return Scaled(to_fp8(x.float() / scale, dtype), scale)


def quantize_groups(x: Tensor, size: int = ACTIVATION_GROUP) -> Scaled:
    """E4M3 codes like x (..., n), and a bfloat16 scale for each group of the last axis (..., G):
    (max|x| + 1e-10) / 448."""
    x_GS = grouped(x, size)
    scale = ((finite_magnitude(x_GS).amax(-1).float() + 1e-10) / LARGEST[E4M3]).to(torch.bfloat16)
    codes = to_fp8(x_GS.float() / scale.float()[..., None])
    return Scaled(codes.flatten(-2)[..., : x.shape[-1]].contiguous(), scale)


def dequantize(stored: Scaled, dtype: torch.dtype = torch.float32, size: int = ACTIVATION_GROUP) -> Tensor:
    """The stored numbers in `dtype`: of one scale, or of one a group of `size`."""
    if not stored.scale.ndim:
        return (stored.codes.float() * stored.scale).to(dtype)
    x_GS = grouped(stored.codes.float(), size) * stored.scale.float()[..., None]
    return x_GS.flatten(-2)[..., : stored.codes.shape[-1]].to(dtype)
