"""Parquet files of records, column by column; only rows that Arrow finds at fault are looked at in Python."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tilth.data import locations
from tilth.data.inputs import EMPTY, Input
from tilth.data.records import BATCH_BYTES, COLUMNS, SCHEMA, Quarantine, metadata_text, plain
from tilth.recipe import BadInput


class ColumnInput(Input):
    """What inputs share that come as Arrow tables: one batch of any schema becomes one batch of records."""

    def convert(self, batch: pa.RecordBatch, path: str, name: str, first: int,
                quarantine: Quarantine) -> pa.RecordBatch:
        """Records of a batch whose first row is row `first` of the file; rows without usable text are quarantined."""
        text, usable = self._texts(batch, path, first, quarantine)
        rows = pa.array(np.arange(first, first + len(batch))).cast(pa.string())
        found: dict[str, pa.Array] = {"text": text}
        found["id"] = self._strings(batch, self.id_column, pc.binary_join_element_wise(name, rows, "#"))
        found["source"] = self._strings(batch, self.source_column, self.default_source(), always=self.source)
        found["license"] = self._strings(batch, self.license_column, self.license)
        found["attribution"] = self._strings(batch, self.attribution_column, self.attribution)
        found["metadata"] = self._metadata(batch)
        result = pa.RecordBatch.from_arrays([found[column] for column in COLUMNS], names=list(COLUMNS))
        kept = result.filter(usable) if usable is not None else result
        return pa.RecordBatch.from_arrays([_filled(kept.column(column)) for column in COLUMNS], schema=SCHEMA)

    def check_text(self, schema: pa.Schema, path: str) -> None:
        """BadInput if there is no text column, or if it is not text."""
        if self.text_column not in schema.names:
            raise self.missing_text(path, schema.names)
        kind = schema.field(self.text_column).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
            raise BadInput(f"{path}: the column '{self.text_column}' is {kind}, not text. Set `text_column` of this "
                           f"input; there are {', '.join(schema.names)}.")

    def _texts(self, batch: pa.RecordBatch, path: str, first: int,
               quarantine: Quarantine) -> tuple[pa.Array, pa.Array | None]:
        """The texts, and which rows can be used (None: all)."""
        text, invalid = valid_strings(batch.column(self.text_column))
        lengths = pc.fill_null(pc.binary_length(text), 0)
        too_long = pc.greater(lengths, self.max_record_bytes)
        empty = pc.and_(pc.is_valid(text), pc.equal(lengths, 0))
        faults = pc.or_(pc.or_(pc.is_null(text), too_long), empty)
        if not pc.any(faults).as_py():
            return text, None
        for row in pc.indices_nonzero(faults).to_pylist():
            if empty[row].as_py():
                quarantine.add(path, EMPTY, record=first + row)
                continue
            reason = ("invalid UTF-8" if row in invalid else "longer than max_record_bytes" if too_long[row].as_py()
                      else f"no '{self.text_column}'")
            self.bad(quarantine, path, reason, record=first + row)
        return text, pc.invert(faults)

    def _strings(self, batch: pa.RecordBatch, column: str, fallback: Any, always: str | None = None) -> pa.Array:
        """A column as strings, the fallback where it is missing; `always` wins if given."""
        rows = len(batch)
        if not isinstance(fallback, pa.Array):
            fallback = pa.array([fallback] * rows, pa.string())
        if always is not None or column not in batch.schema.names:
            return pa.array([always] * rows, pa.string()) if always is not None else fallback
        values = batch.column(column)
        if pa.types.is_nested(values.type) or pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type):
            return fallback
        strings = valid_strings(values)[0]
        return pc.if_else(pc.fill_null(pc.not_equal(strings, ""), False), strings, fallback)

    def _metadata(self, batch: pa.RecordBatch) -> pa.Array:
        """All other columns as JSON. A loop over rows, since values may be of any type; texts are not touched."""
        others = [name for name in batch.schema.names if name not in self.record_columns()]
        if not others:
            return pa.nulls(len(batch), pa.string())
        columns = [_python_values(batch.column(name)) for name in others]
        texts = [metadata_text({key: value for key, value in zip(others, row, strict=True) if value is not None})
                 for row in zip(*columns, strict=True)]
        return pa.array([text and plain(text) for text in texts], pa.string())


class ParquetInput(ColumnInput):
    """Parquet files with a column of text; other columns go to `metadata`. Without an id: FILE#ROW."""

    kind: str = "parquet"

    def suffixes(self) -> tuple[str, ...]:
        return (".parquet",)

    def read(self, quarantine: Quarantine, paths: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        place = locations.root(self.path)
        for path in self.paths() if paths is None else paths:
            yield from self._read_file(path, locations.relative(path, place), quarantine)

    def _read_file(self, path: str, name: str, quarantine: Quarantine) -> Iterator[pa.RecordBatch]:
        row = 0
        with locations.open_binary(path) as handle:
            try:
                with pq.ParquetFile(handle) as file:
                    self.check_text(file.schema_arrow, path)
                    for batch in self._batches(file):
                        yield self.convert(batch, path, name, row, quarantine)
                        row += len(batch)
            except (pa.ArrowException, OSError) as error:
                if getattr(error, "errno", None) is not None:
                    raise
                reason = str(error).partition("\n")[0][:200]
                self.bad(quarantine, path, f"damaged Parquet file: {reason}", record=row)

    def _batches(self, file: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
        """Batches of about BATCH_BYTES, by the mean size of a row; a batch that is much larger is cut again."""
        total = sum(file.metadata.row_group(group).total_byte_size for group in range(file.num_row_groups))
        if total > self.max_decompressed_bytes:
            raise BadInput(f"A Parquet file of {self.path} unpacks to {total:,} bytes, more than "
                           f"`max_decompressed_bytes` of this input allows.")
        mean = max(1, total // max(1, file.metadata.num_rows))
        for batch in file.iter_batches(batch_size=max(1, min(BATCH_BYTES // mean, 100_000))):
            pieces = max(1, min(len(batch), batch.nbytes // (2 * BATCH_BYTES)))
            step = max(1, -(-len(batch) // pieces))
            yield from (batch.slice(start, step) for start in range(0, len(batch), step))


def valid_strings(values: pa.Array) -> tuple[pa.Array, set[int]]:
    """A column as strings, and the rows that were no valid UTF-8 (null in the result). Parquet does not check."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if not pa.types.is_string(values.type):
        values = values.cast(pa.string(), safe=False) if not _is_text(values.type) else _plain_strings(values)
    try:
        values.validate(full=True)
        return values, set()
    except pa.ArrowInvalid:
        decoded = [_decoded(item) for item in values.cast(pa.binary()).to_pylist()]
        rows = {row for row, item in enumerate(decoded) if item is None and values[row].is_valid}
        return pa.array(decoded, pa.string()), rows


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _plain_strings(values: pa.Array) -> pa.Array:
    # Through bytes: a cast between string types would check UTF-8 and fail for the whole column.
    binary = values.cast(pa.large_binary() if pa.types.is_large_string(values.type) else pa.binary_view())
    small = binary.cast(pa.binary())
    return pa.Array.from_buffers(pa.string(), len(small), small.buffers(), small.null_count, small.offset)


def _decoded(content: bytes | None) -> str | None:
    try:
        return None if content is None else content.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _python_values(values: pa.Array) -> list[Any]:
    if pa.types.is_string(values.type) or _is_text(values.type) or pa.types.is_dictionary(values.type):
        return valid_strings(values)[0].to_pylist()
    try:
        return list(values.to_pylist())
    except UnicodeDecodeError:
        return [_python_value(value) for value in values]


def _python_value(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return "[invalid UTF-8]"  # within a list or structure; said, rather than left out


def _filled(column: pa.Array) -> pa.Array:
    return column if pa.types.is_string(column.type) else column.cast(pa.string())
