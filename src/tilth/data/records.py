"""Records as Arrow record batches, and the place where a record goes that cannot be used.

A record batch has the columns of `SCHEMA`, all strings: `id`, `text` and `source` are never null; `license`,
`attribution` and `metadata` (JSON text) may be. Batches stay near `BATCH_BYTES` of text, so that memory is bounded by
the batch (or by the largest single record), never by the file.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tilth import __version__
from tilth.recipe import BadInput
from tilth.recipe.files import append_json_line, writing

BATCH_BYTES = 32 << 20
BATCH_RECORDS = 100_000

COLUMNS = ("id", "text", "source", "license", "attribution", "metadata")
SCHEMA = pa.schema([pa.field(name, pa.string(), nullable=name not in ("id", "text", "source")) for name in COLUMNS],
                   metadata={"tilth_version": __version__})

Record = Mapping[str, str | None]


def record_batch(records: Iterable[Record]) -> pa.RecordBatch:
    """One batch from mappings that carry the columns of `SCHEMA` (missing ones become null)."""
    rows = list(records)
    arrays = [pa.array([row.get(name) for row in rows], pa.string()) for name in COLUMNS]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def in_batches(records: Iterable[Record], batch_bytes: int = BATCH_BYTES) -> Iterator[pa.RecordBatch]:
    """Group records into batches of at most `batch_bytes` UTF-8 bytes of text (a larger record travels alone)."""
    held: list[Record] = []
    size = 0
    for record in records:
        # A character is at most four bytes; counting exactly would encode every text twice.
        length = len(record["text"] or "") if (record["text"] or "").isascii() else len((record["text"] or "").encode())
        if held and (size + length > batch_bytes or len(held) >= BATCH_RECORDS):
            yield record_batch(held)
            held, size = [], 0
        held.append(record)
        size += length
    if held:
        yield record_batch(held)


def check_schema(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch itself if it has exactly the columns of records; an error naming the difference otherwise."""
    if batch.schema.names != list(COLUMNS) or any(not pa.types.is_string(field.type) for field in batch.schema):
        raise BadInput(f"A reader yielded a batch with columns {batch.schema.to_string()!r}; records have the string "
                       f"columns {', '.join(COLUMNS)}. Build batches with tilth.data.records.record_batch.")
    return batch


def read_records(path: Path | str) -> Iterator[pa.RecordBatch]:
    """Stream a Parquet file of records that Tilth wrote (`documents-*.parquet`, `held_out.parquet`)."""
    with open(path, "rb") as handle, pq.ParquetFile(handle) as file:
        for group in range(file.num_row_groups):
            # A row group is one written batch, hence bounded; this keeps its rows together.
            yield from file.read_row_group(group, columns=list(COLUMNS)).combine_chunks().to_batches()


def is_encodable(text: str) -> bool:
    """False for text with lone surrogates, which no UTF-8 file can hold."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Quarantine:
    """Where unusable records are written down: one JSON line each with path, line or record, and the reason.

    The file (if a path is given) is written anew and appears when the block ends well, so a rerun leaves the same
    bytes. `counts` holds the number of records for each reason.
    """

    def __init__(self, path: Path | str | None = None):
        self.counts: Counter[str] = Counter()
        self._writing = writing(path) if path is not None else None
        self._file: Any = None

    def __enter__(self) -> "Quarantine":
        self._file = self._writing.__enter__() if self._writing is not None else None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._writing is not None:
            self._writing.__exit__(kind, error, at)

    @property
    def total(self) -> int:
        return self.counts.total()

    def add(self, path: str, reason: str, *, line: int | None = None, record: int | str | None = None) -> None:
        """Count one record and write where it is: `line` counts from 1; `record` is a row from 0, or an id."""
        where: dict[str, Any] = {"line": line} if line is not None else {"record": record}
        self.counts[reason.partition(":")[0]] += 1  # what follows a colon is about this record alone
        if self._file is not None:
            append_json_line(self._file, {"path": plain(path), **where, "reason": reason})


def plain(text: str) -> str:
    """Text that can be written anywhere: undecodable parts of a file name become escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def metadata_text(fields: Mapping[str, Any]) -> str | None:
    """Compact JSON of a record's other fields, in their order; null if there are none.

    A field `metadata` that holds an object (or the JSON of one) is laid open, so that its keys are keys of the
    record's metadata. What JSON has no form for is written as a string (dates, decimals) or null (NaN).
    """
    inner = fields.get("metadata")
    if isinstance(inner, str) and inner.startswith("{"):
        try:
            inner = json.loads(inner)
        except ValueError:
            inner = None  # some other text, kept as it is
    if isinstance(inner, dict):
        fields = {**inner, **{key: value for key, value in fields.items() if key != "metadata"}}
    return _json(fields) if fields else None


def _json(value: Mapping[str, Any]) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_as_string, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"), default=_as_string)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _as_string(value: Any) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
