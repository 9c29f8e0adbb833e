"""The layout of SpQR's own inference library (`spqr_quant`), which `transformers` loads: 64-bit words of one tile row.

A matrix is cut into tiles of 16 x 16, tile rows first. Each row of a tile is one 64-bit word, lowest bits first: the
3-bit code of its scale, that of its zero, sixteen 3-bit weights, and at bit 54 one byte of the tile's 64 bits of
second-level statistics (byte k stands in rows 2 k and 2 k + 1): float16 scale of the scales, scale of the zeros, zero
of the scales, zero of the zeros. Outliers are compressed sparse rows of 32-bit words, column below, float16 above, and
are *added* to what the codes say. `in_perm` packs two 16-bit columns into a word.

Shapes: O output features, I input features, N outliers.
"""

import torch
from torch import Tensor

from tilth.precision.affine import unpack
from tilth.precision.matrix import CompressedMatrix, Layout

SIDE = 16
LARGEST = 2**15  # columns are signed 16-bit numbers there


def misfit(layout: Layout) -> str | None:
    """Why the layout cannot hold a matrix; None where it can."""
    wanted = {"bits": 3, "group": SIDE, "tile_rows": SIDE, "scale_bits": 3, "zero_bits": 3}
    for name, value in wanted.items():
        if getattr(layout, name) != value:
            return f"{name} is {getattr(layout, name)}, and it holds only {value}"
    if layout.rows % SIDE or layout.columns % SIDE:
        return f"the shape {layout.rows} x {layout.columns} is not a multiple of {SIDE}"
    return f"{layout.columns} columns are more than {LARGEST}" if layout.columns > LARGEST else None


def to_words(matrix: CompressedMatrix) -> dict[str, Tensor]:
    """dense_weights int64 (O I / 16,), row_offsets int32 (O + 1,), col_vals int32 (N,), in_perm int32 (I / 2,) or (0,).

    The matrix must have no `misfit`.
    """
    layout = matrix.layout
    rows, groups = layout.rows, layout.groups
    scale = unpack(matrix.tensors["scale"], 3, rows * groups).view(rows, groups).long()
    zero = unpack(matrix.tensors["zero"], 3, rows * groups).view(rows, groups).long()
    codes = matrix.codes().long().view(rows, groups, SIDE)
    words = scale | (zero << 3) | (codes << (6 + 3 * torch.arange(SIDE))).sum(2)
    words = words.view(-1, SIDE, groups).transpose(1, 2)  # (tiles, groups, 16)
    second = _second(matrix)  # (4, tiles, groups)
    whole = sum(second[place].view(torch.int16).long().bitwise_and(0xFFFF) << (16 * at)
                for at, place in enumerate((0, 2, 1, 3)))
    fragments = (whole[..., None] >> (8 * (torch.arange(SIDE) // 2))) & 0xFF  # type: ignore[index]
    dense = (words | (fragments << 54)).reshape(-1)
    offsets, col_vals = torch.zeros(rows + 1, dtype=torch.int32), torch.zeros(0, dtype=torch.int32)
    if matrix.outliers:
        places, columns = matrix.outlier_places()
        # Added to the codes, whose part is taken off here, as half arithmetic makes it there.
        value = matrix.tensors["outlier_values"].float() * layout.unit - dense_values(matrix)[places, columns].float()
        col_vals = ((value.half().view(torch.int16).int() << 16) | columns.int())
        offsets = matrix.tensors["outlier_rows"].int()
    order = matrix.tensors.get("order")
    perm = torch.zeros(0, dtype=torch.int32)
    if order is not None:
        pairs = order.int().view(-1, 2)
        perm = pairs[:, 0] | (pairs[:, 1] << 16)
    return {"dense_weights": dense, "row_offsets": offsets, "col_vals": col_vals, "in_perm": perm}


def dense_values(matrix: CompressedMatrix) -> Tensor:
    """What the codes say, (O, I) float16, each operation rounded to float16 as the library's kernel does."""
    layout = matrix.layout
    rows, groups = layout.rows, layout.groups
    second = _second(matrix).repeat_interleave(SIDE, 1)
    scale = second[0] * (unpack(matrix.tensors["scale"], 3, rows * groups).view(rows, groups).half() - second[1])
    zero = second[2] * (unpack(matrix.tensors["zero"], 3, rows * groups).view(rows, groups).half() - second[3])
    scale, zero = scale.repeat_interleave(SIDE, 1), zero.repeat_interleave(SIDE, 1)
    return scale * (matrix.codes().half() - zero)


def _second(matrix: CompressedMatrix) -> Tensor:
    """Second-level statistics (4, tiles, groups) float16, the matrix's unit taken into the scale of the scales."""
    second = matrix.tensors["second"].clone()
    second[0] = (second[0].float() * matrix.layout.unit).half()
    return second
