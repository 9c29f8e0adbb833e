"""One token times a compressed matrix on a GPU: a Triton kernel that reads each packed weight once.

`available()` says whether it can run here; `multiply` is equal to `matrix.decode() @ x` up to rounding of sums. It is
tested on a CPU through Triton's interpreter (TRITON_INTERPRET=1) and compiled for compute capability 9.0; it has not
been run on a GPU, and no speed is claimed for it.

Shapes: O output features, I input features (in stored order), G groups of a row, T tiles of rows.
"""

import importlib
import importlib.util
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tilth.precision.matrix import CompressedMatrix
from tilth.recipe import BadInput

ROWS, COLUMNS = 16, 128  # of a program, and of one step of its walk along the rows
triton: Any = None
tl: Any = None
_code: Any = None
_statistic: Any = None


@cache
def available() -> bool:
    """Whether Triton is installed (GPU builds of PyTorch bring it)."""
    return importlib.util.find_spec("triton") is not None


def multiply(matrix: CompressedMatrix, x: Tensor) -> Tensor:
    """y (O,) float32 of x (I,), given in the matrix's stored order of columns, on x's device."""
    if not available():
        raise BadInput("The kernel for compressed weights needs Triton: pip install 'triton>=3.6,<3.10'.")
    layout, parts = matrix.layout, matrix.tensors
    y = torch.empty(layout.rows, dtype=torch.float32, device=x.device)
    if not layout.rows or not layout.columns:
        return y.zero_()
    nothing = parts["codes"][:0]
    kernel()[(-(-layout.rows // ROWS),)](
        x.float().contiguous(), y, parts["codes"], parts["scale"], parts["zero"], parts.get("second", nothing),
        parts.get("outlier_values", nothing), _signed(parts.get("outlier_columns", nothing)),
        _signed(parts.get("outlier_rows", nothing)), layout.rows, layout.columns, layout.groups, layout.tiles,
        layout.unit, bits=layout.bits, group=layout.group, tile_rows=layout.tile_rows or 0,
        scale_bits=layout.scale_bits, zero_bits=layout.zero_bits, outliers=matrix.outliers > 0, ROWS=ROWS,
        COLUMNS=COLUMNS)
    return y


def _signed(index: Tensor) -> Tensor:
    """uint16 indices as int16 of the same bits, which Triton reads; the kernel masks the sign away."""
    return index.view(torch.int16) if index.dtype == torch.uint16 else index


@cache
def kernel() -> Any:
    """The kernel, with Triton imported. Triton looks names up in the module: they become global here, not at import."""
    global triton, tl, _code, _statistic
    triton, tl = importlib.import_module("triton"), importlib.import_module("triton.language")

    @triton.jit
    def _code(pointer, index, bits: tl.constexpr, seen):
        """Code number `index` of a packed stream; two neighbouring bytes hold it."""
        first = index * bits
        place, shift = first >> 3, (first & 7).to(tl.int32)
        low = tl.load(pointer + place, mask=seen, other=0).to(tl.int32)
        high = tl.load(pointer + place + 1, mask=seen & (shift + bits > 8), other=0).to(tl.int32)
        return ((low | (high << 8)) >> shift) & ((1 << bits) - 1)

    @triton.jit
    def _statistic(pointer, second, which: tl.constexpr, row, at, groups, tiles, bits: tl.constexpr,
                   tile_rows: tl.constexpr, seen):
        """Scale (which 0) or zero (which 1) of group `at` of `row`."""
        if bits == 16:
            return tl.load(pointer + row * groups + at, mask=seen, other=0).to(tl.float32)
        else:
            code = _code(pointer, row.to(tl.int64) * groups + at, bits, seen).to(tl.float32)
            if tile_rows == 0:
                return code
            else:
                tile = second + (2 * which * tiles + row // tile_rows) * groups + at
                scale = tl.load(tile, mask=seen, other=0).to(tl.float32)
                zero = tl.load(tile + tiles * groups, mask=seen, other=0).to(tl.float32)
                return scale * (code - zero)

    @triton.jit
    def _matvec(x, y, codes, scales, zeros, second, values, columns, ends, height, width, groups, tiles,
                unit,
                bits: tl.constexpr, group: tl.constexpr, tile_rows: tl.constexpr, scale_bits: tl.constexpr,
                zero_bits: tl.constexpr, outliers: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
        rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        real = rows < height
        total = tl.zeros([ROWS], dtype=tl.float32)
        for start in range(0, width, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            seen = real[:, None] & (column < width)[None, :]
            row, at = rows[:, None], (column // group)[None, :]
            code = _code(codes, row.to(tl.int64) * width + column[None, :], bits, seen).to(tl.float32)
            scale = _statistic(scales, second, 0, row, at, groups, tiles, scale_bits, tile_rows, seen)
            zero = _statistic(zeros, second, 1, row, at, groups, tiles, zero_bits, tile_rows, seen)
            inputs = tl.load(x + column, mask=column < width, other=0)
            total += tl.sum(tl.where(seen, tl.maximum(scale, 1.1754943508222875e-38) * (code - zero), 0.0)
                            * inputs[None, :], axis=1)
        if outliers:
            first = tl.load(ends + rows, mask=real, other=0).to(tl.int32)
            last = tl.load(ends + rows + 1, mask=real, other=0).to(tl.int32)
            if ends.dtype.element_ty == tl.int16:
                first, last = first & 0xFFFF, last & 0xFFFF
            for step in range(tl.max(last - first, axis=0)):
                seen = real & (first + step < last)
                column = tl.load(columns + first + step, mask=seen, other=0).to(tl.int32)
                if columns.dtype.element_ty == tl.int16:
                    column = column & 0xFFFF
                value = tl.load(values + first + step, mask=seen, other=0).to(tl.float32)
                # An outlier stands in place of its code, whose part is taken off again.
                code = _code(codes, rows.to(tl.int64) * width + column, bits, seen).to(tl.float32)
                scale = _statistic(scales, second, 0, rows, column // group, groups, tiles, scale_bits, tile_rows, seen)
                zero = _statistic(zeros, second, 1, rows, column // group, groups, tiles, zero_bits, tile_rows, seen)
                inputs = tl.load(x + column, mask=seen, other=0)
                decoded = tl.maximum(scale, 1.1754943508222875e-38) * (code - zero)
                total += tl.where(seen, value - decoded, 0.0) * inputs
        tl.store(y + rows, total * unit, mask=real)

    return _matvec
