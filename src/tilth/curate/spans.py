"""Character spans of documents: lists of {start, end}, half open, in code points, sorted and apart."""

from collections.abc import Sequence

import numpy as np
import polars as pl
import pyarrow as pa

SPANS = pl.List(pl.Struct({"start": pl.UInt32, "end": pl.UInt32}))


def span_lists(rows: int, row_of: np.ndarray, starts: np.ndarray, ends: np.ndarray, touching: bool = True) -> pl.Series:
    """A list of spans for each of `rows` documents; spans that overlap (`touching`: or touch) become one."""
    order = np.lexsort((starts, row_of))
    row_of, starts, ends = row_of[order].astype(np.int64), starts[order].astype(np.int64), ends[order].astype(np.int64)
    # The furthest end so far within a document: documents are moved apart, so that one running maximum serves all.
    apart = int(ends.max(initial=0)) + 2
    reach = np.maximum.accumulate(row_of * apart + ends) if len(ends) else ends
    first = np.ones(len(starts), bool)
    first[1:] = (row_of * apart + starts)[1:] > reach[:-1] - (not touching)
    last = np.append(first[1:], True) if len(first) else first
    counts = np.bincount(row_of[first], minlength=rows)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    values = pa.StructArray.from_arrays([pa.array(starts[first].astype(np.uint32)),
                                         pa.array((reach - row_of * apart)[last].astype(np.uint32))], ["start", "end"])
    lists = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values)
    return pl.Series("spans", pl.from_arrow(lists), dtype=SPANS)


def flat(spans: pl.Series) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, start and end of every span."""
    counts = spans.list.len().to_numpy()
    values = spans.filter(pl.Series(counts > 0)).explode().struct.unnest()
    return (np.repeat(np.arange(len(spans)), counts), values["start"].to_numpy().astype(np.int64),
            values["end"].to_numpy().astype(np.int64))


def union(columns: list[pl.Series]) -> pl.Series:
    """The union of several columns of spans, row by row."""
    row_of, starts, ends = (np.concatenate(part) for part in zip(*map(flat, columns), strict=True))
    return span_lists(len(columns[0]), row_of, starts, ends)


def covered(spans: pl.Series) -> np.ndarray:
    """Characters in the spans of each document."""
    row_of, starts, ends = flat(spans)
    return np.bincount(row_of, weights=ends - starts, minlength=len(spans)).astype(np.int64)


def without(texts: pl.Series, spans: pl.Series) -> pl.Series:
    """The texts with their spans taken out."""
    touched = spans.list.len() > 0
    if not touched.any():
        return texts
    rows = touched.arg_true()
    row_of, starts, ends = flat(spans.filter(touched))
    content, offsets = utf8(texts.gather(rows))
    characters = np.flatnonzero((content & 0xC0) != 0x80)  # the first byte of each
    places = np.append(characters, len(content))
    begin = np.searchsorted(characters, offsets[:-1])
    steps = np.zeros(len(content) + 1, np.int8)
    np.add.at(steps, places[begin[row_of] + starts], 1)
    np.add.at(steps, places[begin[row_of] + ends], -1)
    stays = np.cumsum(steps[:-1], dtype=np.int8) == 0
    left = np.concatenate([[0], np.cumsum(stays)])[offsets]
    cut = pa.LargeStringArray.from_buffers(len(rows), pa.py_buffer(left.astype(np.int64)),
                                           pa.py_buffer(content[stays].tobytes()))
    return texts.scatter(rows, pl.Series(pl.from_arrow(cut), dtype=pl.String))


def replaced(texts: pl.Series, row_of: np.ndarray, starts: np.ndarray, ends: np.ndarray,
             by: Sequence[str]) -> pl.Series:
    """The texts with each span replaced by its string of `by`; of spans that overlap the first to begin, of
    those that begin together the longest, is replaced.

    Every byte outside the spans stays as it is. The loop is over spans, and touches nothing between them.
    """
    order = np.lexsort((-ends, starts, row_of))
    rows = pl.Series(np.unique(row_of), dtype=pl.UInt32)
    content, offsets = utf8(texts.gather(rows))
    begin = offsets[np.searchsorted(rows.to_numpy(), row_of)]
    places = np.append(np.flatnonzero((content & 0xC0) != 0x80), len(content))  # the first byte of each character
    base = np.searchsorted(places, begin)
    first, last = places[base + starts][order].tolist(), places[base + ends][order].tolist()
    pieces: list[bytes] = []
    grown = np.zeros(len(content) + 1, np.int64)  # at the end of a span: how much longer what stands for it is
    raw, done = content.tobytes(), 0
    for at, to, place in zip(first, last, order.tolist(), strict=True):
        if at >= done:
            new = by[place].encode()
            pieces += [raw[done:at], new]
            grown[to] += len(new) - (to - at)
            done = to
    pieces.append(raw[done:])
    moved = offsets + np.cumsum(grown)[offsets]
    made = pa.LargeStringArray.from_buffers(len(rows), pa.py_buffer(moved.astype(np.int64)),
                                            pa.py_buffer(b"".join(pieces)))
    return texts.scatter(rows, pl.Series(pl.from_arrow(made), dtype=pl.String)) if len(rows) else texts


def utf8(texts: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of all texts end to end, and where each begins and the last ends."""
    array = pa.array(texts.to_arrow(compat_level=pl.CompatLevel.oldest()), pa.large_string())
    offsets = np.frombuffer(array.buffers()[1], np.int64)[array.offset:array.offset + len(array) + 1]
    content = np.frombuffer(array.buffers()[2] or b"", np.uint8)[offsets[0]:offsets[-1]]
    return content, offsets - offsets[0]
