"""Inputs: what a recipe names as raw data, one class for each `kind`.

Every input expands to a stable, sorted list of paths and streams records in batches. What cannot be used goes to the
quarantine with its place and reason, or, with `on_bad: error`, stops the run with the same words.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from tilth.data import locations
from tilth.data.records import Quarantine, Record, in_batches, is_encodable
from tilth.recipe import BadInput, Config
from tilth.recipe.frame import nearest

GIB = 1 << 30
EMPTY = "empty text"  # counted, but no fault: it never stops a run


class Input(Config):
    """Base of all inputs; an outside class derives from it and writes `records_of` (or `read`).

    `path` is a file, a folder or a glob, local or `s3://` and the like. `source` names the data in reports and
    mixtures: if given it holds for every record, else the record's own is used, else the name of the file or folder.
    `license` and `attribution` are for records that carry none themselves.
    """

    kind: str = "auto"
    path: str
    source: str | None = None
    license: str | None = None
    attribution: str | None = None
    text_column: str = "text"
    id_column: str = "id"
    source_column: str = "source"
    license_column: str = "license"
    attribution_column: str = "attribution"
    on_bad: Literal["quarantine", "error"] = "quarantine"
    max_record_bytes: int = Field(default=GIB // 4, ge=1)
    max_decompressed_bytes: int = Field(default=64 * GIB, ge=1)
    max_ratio: float = Field(default=200, gt=1)

    def suffixes(self) -> tuple[str, ...] | None:
        """Which files of a folder belong to this input; None for all."""
        return None

    def paths(self) -> list[str]:
        """Every file that will be read, sorted; BadInput if there is none."""
        found = locations.expand(self.path)
        wanted = self.suffixes()
        if wanted is None or not locations.is_folder(self.path):
            return found
        chosen = [path for path in found if path.lower().endswith(wanted)]
        if not chosen:
            raise BadInput(f"The folder {self.path} holds {len(found)} files, but none that ends in "
                           f"{', '.join(wanted)}. Name another folder, or another `kind` for this input.")
        return chosen

    def sizes(self) -> list[int]:
        """Stored bytes of each of `paths()`."""
        return [locations.size(path) for path in self.paths()]

    def fingerprint(self) -> list[dict[str, Any]]:
        """`[{path, size, sha256}]` of what will be read, in the order of `paths()`."""
        return [locations.fingerprint(path) for path in self.paths()]

    def read(self, quarantine: Quarantine, paths: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Stream batches of records, of all `paths()` or of some of them."""
        return in_batches(self._records(quarantine, self.paths() if paths is None else paths))

    def _records(self, quarantine: Quarantine, paths: Sequence[str]) -> Iterator[Record]:
        place = locations.root(self.path)
        for path in paths:
            yield from self.records_of(path, locations.relative(path, place), quarantine)

    def records_of(self, path: str, name: str, quarantine: Quarantine) -> Iterator[Record]:
        """The records of one file; `name` is its path below the input's own, for ids."""
        raise NotImplementedError(f"{type(self).__name__} must define records_of(path, name, quarantine).")

    # What the readers share.

    def default_source(self) -> str:
        return self.source or locations.name(self.path)

    def bad(self, quarantine: Quarantine, path: str, reason: str, *,
            line: int | None = None, record: int | str | None = None) -> None:
        """Quarantine one record, or stop, as the recipe says."""
        if self.on_bad == "error":
            where = f", line {line}" if line is not None else f", record {record}" if record is not None else ""
            raise BadInput(f"{path}{where}: {reason}. Repair it, or set `on_bad: quarantine` to leave such records "
                           f"out and count them.")
        quarantine.add(path, reason, line=line, record=record)

    def missing_text(self, path: str, columns: Sequence[str]) -> BadInput:
        """The error for a file none of whose records has the text column."""
        return BadInput(f"{path} has no column '{self.text_column}'{nearest(self.text_column, columns)} It has "
                        f"{', '.join(columns) or 'no columns at all'}. Set `text_column` of this input.")

    def make_record(self, fields: dict[str, Any], text: str, fallback_id: str, source: str, metadata: str | None,
                    ) -> Record | None:
        """The record of one row; None if one of its strings holds lone surrogates (no file could store it)."""
        identity = fields.get(self.id_column)
        record = {
            "id": fallback_id if identity is None else str(identity),
            "text": text,
            "source": self.source or _text(fields.get(self.source_column)) or source,
            "license": _text(fields.get(self.license_column)) or self.license,
            "attribution": _text(fields.get(self.attribution_column)) or self.attribution,
            "metadata": metadata,
        }
        return record if all(value is None or is_encodable(value) for value in record.values()) else None

    def record_columns(self) -> set[str]:
        """Columns of the raw data that become columns of the record; all others go to `metadata`."""
        return {self.text_column, self.id_column, self.source_column, self.license_column, self.attribution_column}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


INPUTS: dict[str, type[Input] | str] = {
    "auto": "tilth.data.auto:AutoInput",
    "jsonl": "tilth.data.jsonl:JsonlInput",
    "parquet": "tilth.data.parquet:ParquetInput",
    "files": "tilth.data.text_files:FilesInput",
    "dolma": "tilth.data.dolma:DolmaInput",
    "warc": "tilth.data.warc:WarcInput",
    "stdlib": "tilth.data.stdlib:StdlibInput",
    "dataset": "tilth.data.dataset:DatasetInput",
}
