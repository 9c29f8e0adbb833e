"""The asymmetric min-max quantizer of a group, and packing of its codes into bytes.

A group with range [low, high] and codes of b bits: scale s = (high - low) / (2^b - 1), zero z = -low / s, code
q = clamp(round(w / s + z), 0, 2^b - 1), value s (q - z). z stays real, or is rounded where it is stored as a code.
"""

from functools import cache

import torch
from torch import Tensor

# A range this small beside its values is a constant: z = -low / s would leave what 16 bits hold.
CONSTANT = 1e-3


def fit(low: Tensor, high: Tensor, bits: int, integer_zero: bool = False) -> tuple[Tensor, Tensor]:
    """(scale, zero) of groups with ranges [low, high], any equal shapes.

    A constant c is kept exactly, with scale |c| (1 for 0) and zero -sign(c). (Published code gives it the range
    [-1, 1], where an unrounded zero makes 0 decode as 1 / (2^b - 1).) integer_zero: the range is widened to hold 0, and
    the zero is one of the codes.
    """
    top = 2**bits - 1
    if integer_zero:
        low, high = low.clamp(max=0), high.clamp(min=0)
    constant = high - low <= CONSTANT * torch.maximum(low.abs(), high.abs())
    size = torch.where(high == 0, torch.ones_like(high), high.abs())
    scale = torch.where(constant, size, (high - low) / top)
    zero = torch.where(constant, -high.sign(), -low / torch.where(constant, size, scale))
    return scale, zero.round() if integer_zero else zero


def quantize(values: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Codes 0 .. 2^bits - 1 as uint8, in the shape of `values`; halves round to even."""
    return (values / scale + zero).round().clamp(0, 2**bits - 1).to(torch.uint8)


def dequantize(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """The values that codes stand for."""
    return scale * (codes.to(scale.dtype) - zero)


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `pack` makes of `count` codes."""
    return -(-count * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes (any shape, uint8) as a stream of bits: code i is bits i b to (i + 1) b, the lowest of each byte first."""
    flat = codes.reshape(-1)
    padded = torch.zeros(-(-len(flat) // 8) * 8, dtype=torch.int64, device=flat.device)
    padded[: len(flat)] = flat.to(torch.int64)
    # Eight codes make exactly `bits` bytes.
    shifts = torch.arange(8, device=flat.device) * bits
    words = (padded.view(-1, 8) << shifts).sum(1)
    out = (words[:, None] >> (8 * torch.arange(bits, device=flat.device))) & 255
    return out.to(torch.uint8).reshape(-1)[: packed_bytes(len(flat), bits)].contiguous()


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` codes of `pack`'s bytes, uint8 (count,)."""
    if bits == 8:
        return packed[:count].clone()
    unit = {2: 1, 3: 3, 4: 1}.get(bits, bits)  # bytes that hold whole codes
    data = packed
    if len(packed) % unit:
        data = torch.zeros(-(-len(packed) // unit) * unit, dtype=torch.uint8, device=packed.device)
        data[: len(packed)] = packed
    if bits in (2, 4):
        return _runs(bits, 8 // bits, data.device).index_select(0, data.int()).view(torch.uint8)[:count]
    if bits == 3:  # three bytes are two runs of four codes
        first, second, third = data.view(-1, 3).int().unbind(1)
        runs = torch.stack([first | ((second & 15) << 8), (second >> 4) | (third << 4)], 1).view(-1)
        return _runs(3, 4, data.device).index_select(0, runs).view(torch.uint8)[:count]
    columns = data.view(-1, unit).long()
    word = (columns << (8 * torch.arange(unit, device=packed.device))).sum(1)
    codes = (word[:, None] >> (bits * torch.arange(8, device=packed.device))) & (2**bits - 1)
    return codes.to(torch.uint8).reshape(-1)[:count]


@cache
def _runs(bits: int, length: int, device: torch.device) -> Tensor:
    """For each run of `length` codes, an integer whose bytes are those codes, the first lowest: looking runs up is
    several times faster than shifting and masking code by code."""
    run = torch.arange(2 ** (length * bits), dtype=torch.int64, device=device)
    codes = (run[:, None] >> (bits * torch.arange(length, device=device))) & (2**bits - 1)
    return codes.to(torch.uint8).view({2: torch.int16, 4: torch.int32}[length]).view(-1)
