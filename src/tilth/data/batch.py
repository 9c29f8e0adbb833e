"""Batches of packed text: spans of a pool's tokens laid out in rows, as tensors.

Every span starts from the end-of-text token and predicts each of its tokens, so that packing n tokens takes n
positions and no token is left unpredicted.

Shapes: B rows, L positions, U units (pieces) of a batch, P pieces.
"""

from dataclasses import dataclass

import numpy as np
import torch

from tilth.data.packing import Packed
from tilth.data.pool import Pool

Batch = dict[str, torch.Tensor]
IGNORED = -100  # the target of a position that predicts nothing; torch's cross entropy leaves it out


@dataclass(frozen=True)
class Pieces:
    """Spans of tokens and their places in rows, int64 (P,) each, sorted by (row, offset).

    unit: row of the pool; begin: first token in the pool's token file; length: tokens; row, offset: place;
    skip: leading tokens that are context only (not predicted).
    """

    unit: np.ndarray
    begin: np.ndarray
    length: np.ndarray
    row: np.ndarray
    offset: np.ndarray
    skip: np.ndarray

    def rows(self, first: int, last: int) -> "Pieces":
        """The pieces of rows first..last-1, rows counted from 0 again."""
        low, high = np.searchsorted(self.row, [first, last])
        part = slice(low, high)
        return Pieces(self.unit[part], self.begin[part], self.length[part], self.row[part] - first,
                      self.offset[part], self.skip[part])

    def shifted(self, rows: int) -> "Pieces":
        """The same pieces `rows` rows further down."""
        return Pieces(self.unit, self.begin, self.length, self.row + rows, self.offset, self.skip)


def join(parts: list[Pieces]) -> Pieces:
    """All pieces of `parts`, which follow one another by row."""
    names = ("unit", "begin", "length", "row", "offset", "skip")
    return Pieces(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def build_batch(pool: Pool, pieces: Pieces, rows: int, row_length: int) -> Batch:
    """The batch of `pieces`: see the design for its fields. Weights are all one."""
    tokens, count = pool.values("tokens"), len(pieces.unit)
    end_of_text = pool.end_of_text
    inputs = np.full(rows * row_length, end_of_text, np.int64)
    targets = np.full(rows * row_length, IGNORED, np.int64)
    unit_index = np.full(rows * row_length, -1, np.int64)
    positions = np.zeros(rows * row_length, np.int64)
    # One flat index over all tokens of the batch instead of a loop over units.
    within = np.arange(int(pieces.length.sum())) - np.repeat(np.cumsum(pieces.length) - pieces.length, pieces.length)
    place = np.repeat(pieces.row * row_length + pieces.offset, pieces.length) + within
    flat = np.asarray(tokens[np.repeat(pieces.begin, pieces.length) + within], np.int64)
    predicted = within >= np.repeat(pieces.skip, pieces.length)
    follows = within[1:] > 0
    inputs[place[1:][follows]] = flat[:-1][follows]
    targets[place[predicted]] = flat[predicted]
    unit_index[place] = np.repeat(np.arange(count), pieces.length)
    positions[place] = within
    shape = (rows, row_length)
    return {
        "tokens": torch.from_numpy(inputs.reshape(shape)), "targets": torch.from_numpy(targets.reshape(shape)),
        "unit_index": torch.from_numpy(unit_index.reshape(shape)),
        "positions": torch.from_numpy(positions.reshape(shape)),
        "unit_id": torch.from_numpy(pieces.unit.astype(np.int64)),
        "source": torch.from_numpy(np.asarray(pool.source[pieces.unit], np.int64)), "weight": torch.ones(count),
    }


def place_pieces(pool: Pool, units: np.ndarray, packed: Packed) -> Pieces:
    """The packed items, which are the units `units` (n,), as spans of the pool's tokens."""
    unit = units[packed.item]
    begin = np.asarray(pool.offsets("tokens")[unit]) + packed.start
    return Pieces(unit, begin, packed.length, packed.row, packed.offset, np.zeros_like(begin))
