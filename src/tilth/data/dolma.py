"""Dolma's layout, in and out: documents, attribute files beside them, token files with their index.

    DATASET/documents/<any path>.jsonl.gz           {"id", "text", "source", "metadata", ...}
    DATASET/attributes/<name>/<the same path>       {"id", "attributes": {column: [[start, end, score], ...]}}
    TOKENS/part-0-00000.npy                         raw ids, no NumPy header
    TOKENS/part-0-00000.csv.gz                      start, end, id, source, line; no header

Attribute files have the lines of their documents, in the same order; spans are code points, half open; a score of a
whole document is one span over all of it.
"""

import csv
import gzip
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pydantic import Field, PrivateAttr

from tilth.data import locations
from tilth.data.compressed import Unpacked, lines
from tilth.data.jsonl import JsonlInput, Unusable
from tilth.data.pool import Pool
from tilth.data.records import Quarantine, Record, read_records
from tilth.data.tokenize import TokenizedRecord
from tilth.recipe import BadInput
from tilth.recipe.files import writing, writing_folder

ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".json.gz", ".json.zst")
EXPERIMENT = "tilth"


class DolmaInput(JsonlInput):
    """A dataset in Dolma's layout: `path` holds `documents/` and, for the names in `attributes`, `attributes/NAME/`.

    What an attribute file says of a document joins its metadata as `attributes: {column: spans}`, where the attribute
    `dolma_attribute` finds it. Files that do not match line by line stop the run."""

    kind: str = "dolma"
    attributes: list[str] = Field(default_factory=list)
    _beside: list[tuple[str, Iterator[tuple[int, bytes | None]]]] = PrivateAttr(default_factory=list)
    _last: int = PrivateAttr(0)  # line of the documents

    def paths(self) -> list[str]:
        inside = self.model_copy(update={"path": f"{self.path.rstrip('/')}/documents"})
        return [path for path in locations.expand(inside.path) if path.lower().endswith(ENDINGS)] or self._nothing()

    def _nothing(self) -> list[str]:
        raise BadInput(f"{self.path}/documents holds no .jsonl or .json file (also .gz, .zst), as Dolma's layout has.")

    def fingerprint(self) -> list[dict[str, Any]]:
        paths = self.paths()
        return [locations.fingerprint(path) for path in [*paths, *[self._attribute_path(path, name) for path in paths
                                                                   for name in self.attributes]]]

    def records_of(self, path: str, name: str, quarantine: Quarantine) -> Iterator[Record]:
        unpacked = [Unpacked(self._attribute_path(path, one), self.max_decompressed_bytes, self.max_ratio)
                    for one in self.attributes]
        try:
            self._beside = [(file.path, lines(file.chunks(), self.max_record_bytes)) for file in unpacked]
            self._last = 0
            yield from super().records_of(path, name, quarantine)
            for beside, rows in self._beside:
                if any(at > self._last and (line is None or line.strip()) for at, line in rows):
                    raise BadInput(f"{beside} goes on after line {self._last}, the last of its documents. Tag the "
                                   f"dataset again.")
        finally:
            for file in unpacked:
                file.__exit__(None, None, None)

    def _attribute_path(self, path: str, name: str) -> str:
        below = path.removeprefix(f"{self.path.rstrip('/')}/documents/")
        beside = f"{self.path.rstrip('/')}/attributes/{name}/{below}"
        if not locations.is_remote(beside) and not Path(beside).is_file():
            raise BadInput(f"No file at {beside}: the attributes '{name}' lack a file that the documents have. Tag the "
                           f"dataset again, or leave '{name}' out of `attributes` of this input.")
        return beside

    def _parse(self, line: bytes | None, number: int, path: str) -> dict[str, Any]:
        self._last = number
        fields = super()._parse(line, number, path)
        found: dict[str, Any] = {}
        for beside, rows in self._beside:
            row = super()._parse(self._row(rows, number, beside), number, beside)
            if row.get("id") != fields.get(self.id_column) or not isinstance(row.get("attributes"), dict):
                raise BadInput(f"{beside}, line {number}: holds attributes of {row.get('id')!r}, but the document of "
                               f"that line is {fields.get(self.id_column)!r}. Tag the dataset again.")
            found |= row["attributes"]
        if not self._beside:
            return fields
        metadata = fields.get("metadata")
        return {**fields, "metadata": {**(metadata if isinstance(metadata, dict) else {}), "attributes": found}}

    def _row(self, rows: Iterator[tuple[int, bytes | None]], number: int, path: str) -> bytes | None:
        for at, line in rows:
            if at == number:
                if line is None:
                    raise Unusable("attributes longer than max_record_bytes")
                return line
        raise BadInput(f"{path} ends before line {number} of its documents. Tag the dataset again.")


def read_tokens(path: str, dtype: str = "uint16") -> Iterator[TokenizedRecord]:
    """The documents of `path` (.npy) by the index beside it; views of a memory map. `dtype`: not said by the file."""
    size, width = Path(path).stat().st_size, np.dtype(dtype).itemsize
    if size == 0 or size % width:
        raise BadInput(f"{path} has {size:,} bytes, which are no whole number of {dtype}. Set `dtype` of this file.")
    ids = np.memmap(path, dtype, "r")
    index = index_of(path)
    at = 0
    with gzip.open(index, "rt", encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.reader(file), 1):
            try:
                start, end, identity, source = int(row[0]), int(row[1]), row[2], row[3]
            except (ValueError, IndexError) as error:
                raise BadInput(f"{index}, line {number}: not start, end, id, source, line.") from error
            if start != at or not start < end <= len(ids):
                raise BadInput(f"{index}, line {number}: tokens {start} to {end}, where {at} to at most {len(ids)} was "
                               f"expected: another pair, another `dtype` than {dtype}, or damage.")
            at = end
            yield TokenizedRecord(identity, ids[start:end], Path(source).stem or "dolma", None)
    if at != len(ids):
        raise BadInput(f"{index} describes {at:,} ids, and {path} holds {len(ids):,} as {dtype}.")


def index_of(path: str) -> str:
    """The index beside a token file."""
    return path.removesuffix(".npy") + ".csv.gz"


def write_documents(curated: Path, output: Path) -> dict[str, int]:
    """Write a curated folder as a dataset: documents that stayed, and their numbers as attributes `tilth`.

    Columns become `tilth__COLUMN__COLUMN` over the whole document; texts and lists have no place in that form."""
    paths = sorted(curated.glob("documents-*.parquet"))
    if not paths:
        raise BadInput(f"{curated} holds no curated documents (documents-*.parquet).")
    measured = pl.scan_parquet(sorted(curated.glob("attributes-*.parquet")))
    names = [name for name, kind in measured.collect_schema().items() if kind.is_numeric() or kind == pl.Boolean]
    kept = measured.filter(pl.col("dropped_by").is_null()).select("id", *names)
    written = 0
    with writing_folder(output) as beside:
        for path in paths:
            name = f"{path.stem.replace('documents', 'part')}.jsonl.gz"
            for folder in ("documents", f"attributes/{EXPERIMENT}"):
                (beside / folder).mkdir(parents=True, exist_ok=True)
            with (_packed(beside / "documents" / name) as documents,
                  _packed(beside / "attributes" / EXPERIMENT / name) as rows):
                for batch in read_records(path):
                    written += _write_batch(pl.from_arrow(batch), kept, names, documents, rows)  # type: ignore[arg-type]
    return {"documents": written, "attributes": len(names)}


def _write_batch(batch: pl.DataFrame, kept: pl.LazyFrame, names: Sequence[str], documents: Any, rows: Any) -> int:
    values = kept.filter(pl.col("id").is_in(batch["id"].implode())).unique("id").collect()
    joined = batch.join(values, on="id", how="left", maintain_order="left")
    for row in joined.iter_rows(named=True):
        about = json.loads(row["metadata"]) if row["metadata"] else {}
        about |= {key: row[key] for key in ("license", "attribution") if row[key]}
        document = {"id": row["id"], "text": row["text"], "source": row["source"], "metadata": about}
        documents.write(f"{json.dumps(document, ensure_ascii=False)}\n".encode())
        spans = {f"{EXPERIMENT}__{_plain(name)}__{_plain(name)}": [[0, len(row["text"]), float(row[name])]]
                 for name in names if row[name] is not None}
        rows.write(f"{json.dumps({'source': row['source'], 'id': row['id'], 'attributes': spans})}\n".encode())
    return len(joined)


@contextmanager
def _packed(path: Path) -> Iterator[gzip.GzipFile]:
    """A .gz file whose bytes do not depend on when it was written."""
    with open(path, "wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=3, mtime=0) as packed:
        yield packed


def _plain(name: str) -> str:
    """A name with what Dolma allows in it."""
    return "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in name)


def write_tokens(pool: Pool, output: Path) -> dict[str, int]:
    """Write a pool as one token file with its index: a line for each document, whose units are joined again."""
    tokens, offsets = pool.values("tokens"), pool.offsets("tokens")
    table = pool.table(["record_id", "source"]).to_pydict()
    identities = table["record_id"]
    with writing(output / "part-0-00000.npy") as file:
        file.write(np.ascontiguousarray(tokens).tobytes())
    buffer, documents, start = [], 0, 0
    for unit in range(len(pool)):
        if unit + 1 == len(pool) or identities[unit + 1] != identities[unit]:
            documents += 1
            buffer.append([int(offsets[start]), int(offsets[unit + 1]), identities[unit], table["source"][unit],
                           documents])
            start = unit + 1
    with writing(output / "part-0-00000.csv.gz") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0) as packed:
        for row in buffer:
            line = ",".join(_quoted(item) for item in row) + "\n"
            packed.write(line.encode())
    return {"token_documents": documents, "tokens": len(tokens)}


def _quoted(item: Any) -> str:
    text = str(item)
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\r\n') else text
