"""Held-out text as batches in which every token is predicted exactly once.

The units of one record are joined again, and read through windows of L positions that move on by `stride` tokens, so
that a token far inside a document is predicted from at least L - stride tokens before it (the first L of a record
from all that there are).
"""

from collections.abc import Iterator

import numpy as np

from tilth.data.batch import Batch, Pieces, build_batch
from tilth.data.packing import pack
from tilth.data.pool import Pool
from tilth.recipe import BadInput


class EvalRows:
    """The windows of a pool's records, packed best fit into rows of `row_length`.

    stride: new tokens a window (None: row_length, so no overlap). A batch is as in training, `targets` -100 where a
    token is context only; `unit_id` is the first unit of the record. limit_tokens: take whole records, spread evenly
    over the pool, up to about this many tokens. Process `rank` of `world` reads every world-th row.
    """

    def __init__(self, pool: Pool, row_length: int, stride: int | None = None, limit_tokens: int | None = None,
                 rank: int = 0, world: int = 1):
        stride = row_length if stride is None else stride
        if not 1 <= stride <= row_length:
            raise ValueError(f"stride must be from 1 to the row length {row_length}, not {stride}")
        self.pool, self.row_length = pool, row_length
        first, last = record_bounds(pool)
        chosen = spread(np.diff(np.append(pool.offsets("tokens")[first], pool.offsets("tokens")[-1])), limit_tokens)
        first, last = first[chosen], last[chosen]
        self.records = len(first)
        self._pieces, self.rows = windows(pool, first, last, row_length, stride)
        self._mine = np.arange(rank, self.rows, world)
        self._units = np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)] or [first])

    @property
    def tokens(self) -> int:
        """Tokens predicted, over all processes."""
        return int((self._pieces.length - self._pieces.skip).sum())

    @property
    def bytes_by_source(self) -> np.ndarray:
        """UTF-8 bytes of the text that is predicted, over all processes, int64 (sources,). BadInput if the pool was
        made from tokens without their tokenizer."""
        counts = self.pool.column("bytes")[self._units]
        if (counts < 0).any():
            raise BadInput(f"The pool {self.pool.folder} does not know how many bytes of text its tokens stand for; "
                           f"make it again with the tokenizer that made the tokens.")
        totals = np.zeros(len(self.pool.sources), np.int64)
        np.add.at(totals, self.pool.source[self._units], counts)
        return totals

    def batches(self, rows: int) -> Iterator[Batch]:
        """Batches of at most `rows` rows (the last may have fewer)."""
        for at in range(0, len(self._mine), rows):
            parts = self._mine[at:at + rows]
            low, high = np.searchsorted(self._pieces.row, parts), np.searchsorted(self._pieces.row, parts + 1)
            index = np.concatenate([np.arange(a, b) for a, b in zip(low, high, strict=True)])
            row = np.repeat(np.arange(len(parts)), high - low)
            pieces = self._pieces
            yield build_batch(self.pool, Pieces(pieces.unit[index], pieces.begin[index], pieces.length[index], row,
                                                pieces.offset[index], pieces.skip[index]), len(parts), self.row_length)


def record_bounds(pool: Pool) -> tuple[np.ndarray, np.ndarray]:
    """First unit of each record and one past its last, int64 (records,) each."""
    record = np.asarray(pool.column("record"))
    first = np.flatnonzero(np.diff(record, prepend=-1))
    return first, np.append(first[1:], len(record))


def spread(tokens: np.ndarray, limit: int | None) -> np.ndarray:
    """Records to take: all, or evenly spaced ones that make about `limit` of their `tokens` (records,)."""
    total = int(tokens.sum())
    if limit is None or total <= limit:
        return np.arange(len(tokens))
    count = max(1, round(len(tokens) * limit / total))
    return np.floor((np.arange(count) + 0.5) * len(tokens) / count).astype(np.int64)


def windows(pool: Pool, first: np.ndarray, last: np.ndarray, row_length: int, stride: int) -> tuple[Pieces, int]:
    """Windows over the tokens of records (units first..last-1), packed: the pieces and the number of rows."""
    offsets = np.asarray(pool.offsets("tokens"))
    begin, tokens = offsets[first], offsets[last] - offsets[first]
    count = 1 + np.maximum(0, -(-(tokens - row_length) // stride))
    count[tokens == 0] = 0
    record = np.repeat(np.arange(len(first)), count)
    nth = np.arange(len(record)) - np.repeat(np.cumsum(count) - count, count)
    stop = np.minimum(row_length + nth * stride, tokens[record])  # tokens of the record predicted after this window
    done = np.where(nth == 0, 0, row_length + (nth - 1) * stride)  # ... and before it
    start = np.maximum(0, stop - row_length)
    packed = pack(stop - start, row_length)
    order = packed.item
    return Pieces(first[record][order], (begin[record] + start)[order], packed.length, packed.row, packed.offset,
                  (done - start)[order]), packed.rows
