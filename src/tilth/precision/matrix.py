"""A compressed matrix as it is stored: packed codes, statistics, outliers by row, and the order of its columns.

Shapes: O output features (rows), I input features (columns, in stored order), g columns of a group, G = ceil(I / g)
groups of a row, T tiles of rows with statistics of their own, N outliers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from tilth.precision.affine import dequantize, pack, packed_bytes, unpack
from tilth.recipe import Config

PIECE = 1 << 18  # weights that are decoded at once: a MiB of float32


class Layout(Config):
    """What the bytes of a matrix mean. unit: a power of two that all values are multiplied by when decoded, so that
    16-bit statistics neither overflow nor vanish. tile_rows: rows that share second-level statistics; None: scales
    are float16, and zeros codes of zero_bits, or float16 where zero_bits is 16."""

    rows: int
    columns: int
    bits: int
    group: int
    unit: float = 1.0
    tile_rows: int | None = None
    scale_bits: int = 16
    zero_bits: int = 16

    @property
    def groups(self) -> int:
        return -(-self.columns // self.group) if self.columns else 0

    @property
    def tiles(self) -> int:
        return -(-self.rows // self.tile_rows) if self.tile_rows else 0


PARTS = ("codes", "scale", "zero", "second", "outlier_values", "outlier_columns", "outlier_rows", "order")


@dataclass(frozen=True)
class CompressedMatrix:
    """`tensors`, by part; absent where a method has no such part:

    codes uint8: `pack` of (O, I); scale, zero: float16 (O, G), or uint8 `pack` of (O, G) codes; second float16
    (4, T, G): scale and zero of the scales, scale and zero of the zeros; outlier_values float16 (N,),
    outlier_columns (N,) and outlier_rows (O + 1,): compressed sparse rows, an outlier stands in place of its code;
    order (I,): the column of the layer's input that each stored column reads, absent: their own order. Indices have
    the smallest of uint8, uint16, int32 that holds them.
    """

    layout: Layout
    tensors: dict[str, Tensor]

    @classmethod
    def build(cls, layout: Layout, codes: Tensor, statistics: dict[str, Tensor], outliers: Tensor, values: Tensor,
              order: Tensor | None) -> Self:
        """From codes uint8 (O, I), statistics as `tilth.precision.statistics` names them, outliers bool (O, I),
        values (O, I) of which outliers are kept, and the order (I,) of the columns."""
        tensors = {"codes": pack(codes, layout.bits)}
        if layout.tile_rows:
            tensors["scale"] = pack(statistics["scale_codes"], layout.scale_bits)
            tensors["zero"] = pack(statistics["zero_codes"], layout.zero_bits)
            tensors["second"] = statistics["second"].contiguous()
        else:
            tensors["scale"] = statistics["scale"].contiguous()
            zero = statistics["zero"]
            tensors["zero"] = pack(zero, layout.zero_bits) if layout.zero_bits < 16 else zero.contiguous()
        if bool(outliers.any()):
            rows, columns = outliers.nonzero(as_tuple=True)
            ends = torch.zeros(len(outliers) + 1, dtype=torch.int64, device=outliers.device)
            ends[1:] = outliers.sum(1).cumsum(0)
            tensors |= {"outlier_values": values[rows, columns].half(), "outlier_columns": smallest(columns),
                        "outlier_rows": smallest(ends)}
        if order is not None and not torch.equal(order, torch.arange(len(order), device=order.device)):
            tensors["order"] = smallest(order)
        return cls(layout, tensors)

    @property
    def outliers(self) -> int:
        return len(self.tensors["outlier_values"]) if "outlier_values" in self.tensors else 0

    def statistics(self) -> tuple[Tensor, Tensor]:
        """(scale, zero), each (O, G) float32, as they decode."""
        layout, shape = self.layout, (self.layout.rows, self.layout.groups)
        count = shape[0] * shape[1]
        if layout.tile_rows:
            second = self.tensors["second"].float().repeat_interleave(layout.tile_rows, 1)[:, : layout.rows]
            scale = dequantize(unpack(self.tensors["scale"], layout.scale_bits, count).view(shape), *second[:2])
            zero = dequantize(unpack(self.tensors["zero"], layout.zero_bits, count).view(shape), *second[2:])
        else:
            scale, zero = self.tensors["scale"].float(), self.tensors["zero"]
            zero = unpack(zero, layout.zero_bits, count).view(shape).float() if layout.zero_bits < 16 else zero.float()
        return scale.clamp(min=torch.finfo(torch.float32).tiny), zero

    def codes(self) -> Tensor:
        """uint8 (O, I)."""
        layout = self.layout
        return unpack(self.tensors["codes"], layout.bits, layout.rows * layout.columns).view(layout.rows,
                                                                                            layout.columns)

    def pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """Some rows at a time, few enough for a processor's cache: (which rows, their values float32 (n, I)), columns
        in stored order."""
        layout = self.layout
        scale, zero = self.statistics()
        scale = scale * layout.unit  # a power of two: the same numbers as if the values were multiplied
        # Rows by the eight begin on a byte, whatever the width of a code.
        step = max(8, PIECE // max(layout.columns, 1) // 8 * 8)
        rows, columns = self.outlier_places() if self.outliers else (None, None)
        ends = self.tensors["outlier_rows"].tolist() if self.outliers else []
        for first in range(0, layout.rows, step):
            last = min(first + step, layout.rows)
            begin, end = (packed_bytes(row * layout.columns, layout.bits) for row in (first, last))
            codes = unpack(self.tensors["codes"][begin:end], layout.bits, (last - first) * layout.columns)
            values = self._scaled(codes.float().view(last - first, layout.columns), scale[first:last], zero[first:last])
            if rows is not None and columns is not None and ends[last] > ends[first]:
                some = slice(ends[first], ends[last])
                values[rows[some] - first, columns[some]] = self.tensors["outlier_values"][some].float() * layout.unit
            yield slice(first, last), values

    def _scaled(self, codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """codes (n, I) in place to scale x (codes - zero), by groups."""
        whole = self.layout.columns // self.layout.group * self.layout.group
        if whole:
            grouped = codes[:, :whole].unflatten(1, (-1, self.layout.group))
            count = grouped.shape[1]
            grouped.sub_(zero[:, :count, None]).mul_(scale[:, :count, None])
        if whole < self.layout.columns:
            codes[:, whole:].sub_(zero[:, -1:]).mul_(scale[:, -1:])
        return codes

    def decode(self) -> Tensor:
        """The matrix (O, I) in stored order of columns, float32."""
        values = torch.empty(self.layout.rows, self.layout.columns, device=self.tensors["codes"].device)
        for rows, piece in self.pieces():
            values[rows] = piece
        return values

    def outlier_places(self) -> tuple[Tensor, Tensor]:
        """Row and stored column of each outlier, int64 (N,)."""
        ends = self.tensors["outlier_rows"].long()
        rows = torch.arange(self.layout.rows, device=ends.device).repeat_interleave(ends.diff())
        return rows, self.tensors["outlier_columns"].long()

    def weight(self) -> Tensor:
        """The matrix (O, I) in the layer's own order of columns, float32."""
        stored = self.decode()
        if "order" not in self.tensors:
            return stored
        weight = torch.empty_like(stored)
        weight[:, self.tensors["order"].long()] = stored
        return weight

    def bytes(self) -> dict[str, int]:
        """Bytes of each part, as stored."""
        return {part: tensor.numel() * tensor.element_size() for part, tensor in self.tensors.items()}


def smallest(index: Tensor) -> Tensor:
    """Non-negative integers in the smallest of uint8, uint16 and int32 that holds them."""
    top = int(index.max()) if index.numel() else 0
    return index.to(torch.uint8 if top < 2**8 else torch.uint16 if top < 2**16 else torch.int32)


def expected_bytes(layout: Layout, outliers: int, ordered: bool) -> dict[str, int]:
    """What `CompressedMatrix.bytes` must come to: the exact accounting, from the layout alone."""
    def index(count: int, top: int) -> int:
        return count * (1 if top < 2**8 else 2 if top < 2**16 else 4)

    count, groups = layout.rows * layout.columns, layout.rows * layout.groups
    found = {"codes": packed_bytes(count, layout.bits), "scale": packed_bytes(groups, layout.scale_bits),
             "zero": packed_bytes(groups, layout.zero_bits)}
    if layout.tile_rows:
        found["second"] = 4 * 2 * layout.tiles * layout.groups
    if outliers:
        found |= {"outlier_values": 2 * outliers, "outlier_rows": index(layout.rows + 1, outliers)}
    if ordered:
        found["order"] = index(layout.columns, layout.columns - 1)
    return found


def nominal_bits(bits: int, scale_bits: int, zero_bits: int, columns: int, rows: int, outlier_share: float) -> float:
    """Bits a weight by the paper's formula: b + (b_s + b_z) / beta1 + 64 / (beta1 beta2) + 32 r_o. It leaves out row
    pointers and the order of columns, and takes 16-bit columns; `CompressedMatrix.bytes` counts what is stored."""
    return bits + (scale_bits + zero_bits) / columns + 64 / (columns * rows) + 32 * outlier_share
