"""Triton kernels of the FP8 quantizers and of the FP8 AdamW step; `tilth.precision.fp8` and `tilth.optim.coat` define
what they compute. Compiled for compute capability 9.0 and run in Triton's interpreter by the tests; untested on a GPU.

Triton is imported when a kernel is first asked for. FP8 numbers are packed and unpacked here by integer arithmetic, as
bytes: Triton's interpreter rounds its own float32 to float8 casts wrongly where rounding carries into the exponent.
"""

from __future__ import annotations  # `tl.constexpr` below is looked up by Triton, not by Python

import importlib
import importlib.util
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tilth.precision.fp8 import (
    ACTIVATION_GROUP,
    CODE_RANGE,
    E4M3,
    E5M2,
    FULL_RANGE,
    LARGEST,
    LARGEST_EXPONENT,
    LEAST_EXPONENT,
    MOMENT_GROUP,
    Exponent,
    Moment,
    Scaled,
)
from tilth.recipe.errors import BadInput

triton: Any = None
tl: Any = None
KERNELS: list[Callable[..., Any]] = []
# Mantissa bits and exponent bias of the formats; in both, 0x7F is a NaN.
LAYOUT = {E4M3: (3, 7), E5M2: (2, 15)}
EXPANSION = {None: 0, "exact": 1, "sixteenths": 2}
BLOCK_GROUPS = 8  # groups of 128 of one program


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a function that Triton compiles once `load` was called."""
    KERNELS.append(function)
    return function


@cache
def available() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


@cache
def load() -> None:
    """Import Triton and hand it the kernels; BadInput where it is not installed."""
    global triton, tl
    if not available():
        raise BadInput("The FP8 kernels need Triton: pip install 'triton>=3.6,<3.10'.")
    triton, tl = importlib.import_module("triton"), importlib.import_module("triton.language")
    for function in KERNELS:
        globals()[function.__name__] = triton.jit(function)


@kernel
def pack(x, MANTISSA: tl.constexpr, BIAS: tl.constexpr):
    """The byte of the FP8 number nearest to x (float32, in the format's range), ties to even; NaN if not finite."""
    bits = x.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    exponent = magnitude >> 23
    # Normal: drop the lower mantissa bits after adding half a step (less one where the last kept bit is 0).
    cut: tl.constexpr = 23 - MANTISSA
    rounded = magnitude + ((1 << (cut - 1)) - 1) + ((magnitude >> cut) & 1)
    normal = (rounded >> cut) - ((127 - BIAS) << MANTISSA)
    # Subnormal: the mantissa with its leading bit, shifted to multiples of the smallest number.
    shift = tl.minimum(cut + (128 - BIAS) - exponent, 30)
    shift = tl.maximum(shift, 1)
    mantissa = (magnitude & 0x7FFFFF) | 0x800000
    subnormal = (mantissa + ((1 << (shift - 1)) - 1) + ((mantissa >> shift) & 1)) >> shift
    code = tl.where(exponent < 128 - BIAS, subnormal, normal)
    code = tl.where(exponent == 255, 0x7F, code)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@kernel
def unpack(code, MANTISSA: tl.constexpr, BIAS: tl.constexpr):
    """The float32 of an E4M3 byte."""
    code = code.to(tl.int32)
    magnitude = code & 0x7F
    normal = ((magnitude << (23 - MANTISSA)) + ((127 - BIAS) << 23)).to(tl.float32, bitcast=True)
    subnormal = magnitude.to(tl.float32) * (2.0 ** (1 - BIAS - MANTISSA))
    value = tl.where(magnitude < (1 << MANTISSA), subnormal, normal)
    value = tl.where(magnitude == 0x7F, float("nan"), value)
    return tl.where(code >= 0x80, -value, value)


@kernel
def finite_size(x):
    """|x|, and 0 where x is not finite."""
    size = tl.abs(x)
    return tl.where(size < float("inf"), size, 0.0)


@kernel
def read_moment(codes, largest, exponent, EXPANSION: tl.constexpr):
    """(G, S) bytes and (G,) scalars to float32."""
    q = unpack(codes, 3, 7)
    share = tl.abs(q) * (1.0 / 448.0)
    if EXPANSION > 0:
        share = tl.exp2(tl.log2(share) / exponent[:, None])
    size = share * largest[:, None]
    return tl.where(q < 0, -size, size)


@kernel
def store_moment(x, codes_ptr, largest_ptr, exponent_ptr, at, inside, group, group_inside, FULL: tl.constexpr,
                 LEAST: tl.constexpr, MOST: tl.constexpr, EXPANSION: tl.constexpr):
    """(G, S) float32 to memory."""
    size = finite_size(x)
    largest = tl.max(size, 1)
    share = tl.abs(x) / tl.where(largest > 0, largest, 1.0)[:, None]
    if EXPANSION > 0:
        least = tl.min(tl.where(size > 0, size, float("inf")), 1)
        ratio = tl.where(largest > 0, largest / least, 1.0)
        width = tl.where(ratio > 1, tl.log2(ratio), 1.0)
        if EXPANSION == 1:
            k = FULL / width
        else:
            k = tl.floor(16 * FULL / width) / 16
        k = tl.where(ratio > 1, tl.minimum(tl.maximum(k, LEAST), MOST), 1.0)
        share = tl.exp2(tl.log2(share) * k[:, None])
        tl.store(exponent_ptr + group, k, mask=group_inside)
    value = share * 448.0
    tl.store(codes_ptr + at, pack(tl.where(x < 0, -value, value), 3, 7), mask=inside)
    tl.store(largest_ptr + group, largest, mask=group_inside)


@kernel
def adamw_kernel(flat_ptr, grad_ptr, m_codes_ptr, m_largest_ptr, m_exponent_ptr, v_codes_ptr, v_largest_ptr,
                 v_exponent_ptr, update_ptr, n, groups, keep, lr, beta1, beta2, correction1, correction2, eps,
                 FULL: tl.constexpr, LEAST: tl.constexpr, MOST: tl.constexpr, EXPANSION: tl.constexpr,
                 SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK groups a program: read, step, store; each number is read and written once."""
    group = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    group_inside = group < groups
    at = group[:, None].to(tl.int64) * SIZE + tl.arange(0, SIZE)[None, :]
    inside = at < n
    m_largest = tl.load(m_largest_ptr + group, mask=group_inside, other=0.0)
    v_largest = tl.load(v_largest_ptr + group, mask=group_inside, other=0.0)
    m_exponent = tl.load(m_exponent_ptr + group, mask=group_inside, other=1.0) if EXPANSION > 0 else m_largest
    v_exponent = tl.load(v_exponent_ptr + group, mask=group_inside, other=1.0) if EXPANSION > 0 else v_largest
    grad = tl.load(grad_ptr + at, mask=inside, other=0.0).to(tl.float32)
    m = read_moment(tl.load(m_codes_ptr + at, mask=inside, other=0), m_largest, m_exponent, EXPANSION)
    v = read_moment(tl.load(v_codes_ptr + at, mask=inside, other=0), v_largest, v_exponent, EXPANSION)
    m = m + (1 - beta1) * (grad - m)
    v = v * beta2 + (1 - beta2) * grad * grad
    update = (m / correction1) / (tl.sqrt(v / correction2) + eps)
    old = tl.load(flat_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(flat_ptr + at, old * keep - lr * update, mask=inside)
    tl.store(update_ptr + tl.program_id(0), tl.max(tl.max(tl.where(inside, tl.abs(update), 0.0), 1), 0))
    store_moment(m, m_codes_ptr, m_largest_ptr, m_exponent_ptr, at, inside, group, group_inside, FULL, LEAST, MOST,
                 EXPANSION)
    store_moment(v, v_codes_ptr, v_largest_ptr, v_exponent_ptr, at, inside, group, group_inside, FULL, LEAST, MOST,
                 EXPANSION)


@kernel
def groups_kernel(x_ptr, codes_ptr, scale_ptr, n, groups, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """E4M3 codes with a bfloat16 scale for each group."""
    group = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at = group[:, None].to(tl.int64) * SIZE + tl.arange(0, SIZE)[None, :]
    x = tl.load(x_ptr + at, mask=at < n, other=0.0).to(tl.float32)
    # Rounded to bfloat16 by hand, since Triton's interpreter cuts.
    bits = ((tl.max(finite_size(x), 1) + 1e-10) / 448.0).to(tl.int32, bitcast=True)
    half = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    scaled = x / (half << 16).to(tl.float32, bitcast=True)[:, None]
    scaled = tl.where(tl.abs(scaled) < float("inf"), tl.minimum(tl.maximum(scaled, -448.0), 448.0), scaled)
    tl.store(codes_ptr + at, pack(scaled, 3, 7), mask=at < n)
    tl.store(scale_ptr + group, half.to(tl.int16), mask=group < groups)


@kernel
def pieces_kernel(x_ptr, piece_ptr, n, pieces, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """The largest finite magnitude of each piece: the first of the two stages of a tensor's scale."""
    piece = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at = piece[:, None].to(tl.int64) * SIZE + tl.arange(0, SIZE)[None, :]
    x = tl.load(x_ptr + at, mask=at < n, other=0.0).to(tl.float32)
    tl.store(piece_ptr + piece, tl.max(finite_size(x), 1), mask=piece < pieces)


@kernel
def tensor_kernel(x_ptr, codes_ptr, scale_ptr, n, TOP: tl.constexpr, MANTISSA: tl.constexpr, BIAS: tl.constexpr,
                  BLOCK: tl.constexpr):
    """Codes of x / scale."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    scaled = tl.load(x_ptr + at, mask=at < n, other=0.0).to(tl.float32) / tl.load(scale_ptr)
    scaled = tl.where(tl.abs(scaled) < float("inf"), tl.minimum(tl.maximum(scaled, -TOP), TOP), scaled)
    tl.store(codes_ptr + at, pack(scaled, MANTISSA, BIAS), mask=at < n)


def adamw_step(flat: Tensor, grad: Tensor, first: Moment, second: Moment, *, number: int, lr: float,
               betas: tuple[float, float], eps: float, decay: float, expansion: Exponent | None) -> Tensor:
    """As `tilth.optim.coat.adamw_step`, in one kernel."""
    load()
    groups = len(first.largest)
    programs = -(-groups // BLOCK_GROUPS)
    largest = torch.zeros(max(programs, 1), device=flat.device)
    if groups:
        parts = [part for codes, top, k in (first, second) for part in (codes.view(torch.uint8), top, top if k is None
                                                                        else k)]
        adamw_kernel[(programs,)](  # type: ignore[index]
            flat, grad.contiguous(), *parts, largest, len(flat), groups, 1 - lr * decay, lr, betas[0], betas[1],
            1 - betas[0]**number, 1 - betas[1]**number, eps, LEAST=LEAST_EXPONENT,
            FULL=math.log2(CODE_RANGE if expansion == "sixteenths" else FULL_RANGE),
            MOST=LARGEST_EXPONENT, EXPANSION=EXPANSION[expansion], SIZE=MOMENT_GROUP, BLOCK=BLOCK_GROUPS)
    return largest.amax()


def quantize_groups(x: Tensor) -> Scaled:
    """As `tilth.precision.fp8.quantize_groups` with groups of 16, for x whose last axis is a multiple of 16."""
    load()
    if x.shape[-1] % ACTIVATION_GROUP:
        raise ValueError(f"The kernel takes whole groups of {ACTIVATION_GROUP}, not a last axis of {x.shape[-1]}.")
    x = x.contiguous()
    groups = x.numel() // ACTIVATION_GROUP
    codes = torch.empty(x.shape, dtype=torch.uint8, device=x.device)
    scale = torch.empty(*x.shape[:-1], x.shape[-1] // ACTIVATION_GROUP, dtype=torch.int16, device=x.device)
    if groups:
        groups_kernel[(-(-groups // 64),)](x, codes, scale, x.numel(), groups,  # type: ignore[index]
                                           SIZE=ACTIVATION_GROUP, BLOCK=64)
    return Scaled(codes.view(E4M3), scale.view(torch.bfloat16))


def quantize_tensor(x: Tensor, dtype: torch.dtype = E4M3) -> Scaled:
    """As `tilth.precision.fp8.quantize_tensor`: the maxima of pieces, the maximum of those, the codes."""
    load()
    x = x.contiguous()
    pieces = -(-x.numel() // 1024)
    codes, most = torch.empty(x.shape, dtype=torch.uint8, device=x.device), torch.zeros(max(pieces, 1), device=x.device)
    if pieces:
        pieces_kernel[(pieces,)](x, most, x.numel(), pieces, SIZE=1024, BLOCK=1)  # type: ignore[index]
    scale = most.amax() / LARGEST[dtype]
    scale = torch.where(scale > 0, scale, 1.0)
    if pieces:
        mantissa, bias = LAYOUT[dtype]
        tensor_kernel[(pieces,)](x, codes, scale, x.numel(), TOP=LARGEST[dtype],  # type: ignore[index]
                                 MANTISSA=mantissa, BIAS=bias, BLOCK=1024)
    return Scaled(codes.view(dtype), scale)
