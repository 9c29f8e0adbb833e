"""Held-out bits per byte: what the model needs to write the held-out text down, by byte of that text.

Every token of every document is scored exactly once, its end-of-text token too (a code must say where a document
ends), while the bytes are those of the text alone. Documents are independent, units of a document are not: standard
errors are over documents.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tilth.evaluate.likelihood import Likelihood, Request, windows
from tilth.evaluate.statistics import ratio
from tilth.recipe import BadInput, Progress


class HeldOut(Protocol):
    """What is asked of a held-out pool (tilth.data.pool.Pool): units in document order, with their columns."""

    def __len__(self) -> int: ...
    def get(self, field: str, index: int) -> np.ndarray: ...
    def column(self, name: str) -> Any: ...
    @property
    def sources(self) -> list[str]: ...
    @property
    def source(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Document:
    """A whole document of the pool: `tokens` int64 (n,) with its end-of-text token, `bytes` of its text."""

    record_id: str
    source: str
    tokens: np.ndarray
    bytes: int


@dataclass(frozen=True)
class HeldOutBits:
    """Nats (float64) and bytes (int64) of each document, (D,); `record_id` and `source` name them."""

    record_id: list[str]
    source: list[str]
    nats: np.ndarray
    bytes: np.ndarray
    tokens: np.ndarray

    @property
    def bits(self) -> np.ndarray:
        """Code length of each document in bits: give these and `bytes` to `paired_difference`."""
        return self.nats / np.log(2)

    def bits_per_byte(self) -> dict[str, Any]:
        """{value, stderr, n, bytes, tokens} of the whole text; n counts documents."""
        return self._ratio(np.ones(len(self.nats), bool))

    def by_source(self) -> dict[str, dict[str, Any]]:
        names = np.array(self.source)
        return {name: self._ratio(names == name) for name in sorted(set(self.source))}

    def _ratio(self, rows: np.ndarray) -> dict[str, Any]:
        return ratio(self.bits[rows], self.bytes[rows]) | {
            "bytes": int(self.bytes[rows].sum()), "tokens": int(self.tokens[rows].sum())}


def documents(pool: HeldOut) -> list[Document]:
    """The pool's units put together again, document by document, in the pool's order."""
    units: dict[str, list[int]] = {}
    for index, record_id in enumerate(_list(pool.column("record_id"))):
        units.setdefault(record_id, []).append(index)
    sizes = _list(pool.column("bytes"))
    return [Document(record_id, pool.sources[int(pool.source[rows[0]])],
                     np.concatenate([pool.get("tokens", row) for row in rows]).astype(np.int64),
                     int(sum(sizes[row] for row in rows)))
            for record_id, rows in units.items()]


def _list(column: Any) -> list[Any]:
    """A column as Python values, whether it is an Arrow array, a NumPy array or a Polars series."""
    for convert in ("to_pylist", "tolist", "to_list"):
        if hasattr(column, convert):
            return getattr(column, convert)()
    return list(column)


def held_out_bits(likelihood: Likelihood, pool: HeldOut, end_of_text: int, *, stride: int | None = None,
                  quiet: bool = True) -> HeldOutBits:
    """Score all documents of `pool`, each after an end-of-text token, in windows of `likelihood.length` positions.

    `stride` is the number of new tokens a window (None: the length; half the length costs twice and gives every token
    more context). Raises BadInput for a pool without text.
    """
    found = [document for document in documents(pool) if document.bytes]
    if not found:
        raise BadInput("The held-out text is empty: there is nothing to measure bits per byte on.")
    requests: list[Request] = []
    owner: list[int] = []
    for number, document in enumerate(found):
        sequence = np.concatenate([[end_of_text], document.tokens])
        pieces = windows(sequence, 1, likelihood.length, stride or likelihood.length)
        requests += pieces
        owner += [number] * len(pieces)
    nats = np.zeros(len(found))
    total = sum(request.inputs for request in requests)
    progress = None if quiet else Progress("held-out text", total, "tokens").update
    np.add.at(nats, owner, [scored.nats.sum() for scored in likelihood.score(requests, progress)])
    return HeldOutBits([document.record_id for document in found], [document.source for document in found], nats,
                       np.array([document.bytes for document in found], np.int64),
                       np.array([len(document.tokens) for document in found], np.int64))
