"""The asymmetric min-max quantizer of a group, and packing of its codes into bytes.

A group with range [low, high] and codes of b bits: scale s = (high - low) / (2^b - 1), zero z = -low / s, code
q = clamp(round(w / s + z), 0, 2^b - 1), value s (q - z). z stays real, or is rounded where it is stored as a code.
"""

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
    whole = -(-count // 8) * bits
    data = torch.zeros(whole, dtype=torch.uint8, device=packed.device)
    data[: len(packed)] = packed
    if bits == 8:
        return data[:count].clone()
    if bits == 4:  # the common width needs no wide words
        return torch.stack([data & 15, data >> 4], dim=1).reshape(-1)[:count]
    columns = data.view(-1, bits).to(torch.int32 if bits < 4 else torch.int64)
    word = columns[:, 0].clone()
    for place in range(1, bits):
        word |= columns[:, place] << (8 * place)
    out = torch.empty(len(word), 8, dtype=torch.uint8, device=packed.device)
    for place in range(8):
        out[:, place] = (word >> (bits * place)) & (2**bits - 1)
    return out.reshape(-1)[:count]
