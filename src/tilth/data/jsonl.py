"""JSON lines, plain or compressed: split into lines and decoded one by one, so that every fault has its line.

A columnar JSON reader would be faster, but it rewrites lone surrogates, changes types of metadata, and names no line
in its errors.
"""

import json
from collections.abc import Iterator
from typing import Any

from tilth.data.compressed import CODECS, Damaged, Unpacked, lines
from tilth.data.inputs import EMPTY, Input
from tilth.data.records import Quarantine, Record, metadata_text
from tilth.recipe import BadInput

SUFFIXES = tuple(plain + packed for plain in (".jsonl", ".ndjson") for packed in ("", *CODECS))


class Unusable(Exception):
    """Why a line gives no record."""


class JsonlInput(Input):
    """One JSON object a line, in .jsonl or .ndjson files, plain, .gz or .zst.

    Keys that are no column of a record go to `metadata`. Without an id the record is called FILE:LINE.
    """

    kind: str = "jsonl"

    def suffixes(self) -> tuple[str, ...]:
        return SUFFIXES

    def records_of(self, path: str, name: str, quarantine: Quarantine) -> Iterator[Record]:
        source, found, columns = self.default_source(), False, dict[str, None]()
        number = 0
        try:
            with Unpacked(path, self.max_decompressed_bytes, self.max_ratio) as unpacked:
                for number, line in lines(unpacked.chunks(), self.max_record_bytes):
                    if line is not None and not line.strip():
                        continue
                    try:
                        fields = self._parse(line, number, path)
                        columns |= dict.fromkeys(fields) if len(columns) < 100 else {}
                        found = found or self.text_column in fields
                        record = self._record(fields, f"{name}:{number}", source)
                    except Unusable as error:
                        self.bad(quarantine, path, str(error), line=number)
                        continue
                    if record["text"]:
                        yield record
                    else:
                        quarantine.add(path, EMPTY, line=number)
        except Damaged as error:
            self.bad(quarantine, path, f"damaged compressed data: {error}", line=number + 1)
        if columns and not found:
            raise self.missing_text(path, list(columns))

    def _parse(self, line: bytes | None, number: int, path: str) -> dict[str, Any]:
        if line is None:
            raise Unusable("longer than max_record_bytes")
        try:
            text = (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).decode("utf-8")
        except UnicodeDecodeError as error:
            raise Unusable("invalid UTF-8") from error
        if number == 1 and text.lstrip().startswith("[") and (text.strip() == "[" or "{" in text[:10]):
            raise BadInput(f"{path}, line 1: a JSON array, not JSON lines. Write one object a line.")
        try:
            fields = json.loads(text, parse_constant=_no_constant)
        except RecursionError as error:
            raise Unusable("nested too deeply") from error
        except ValueError as error:
            raise Unusable("not valid JSON") from error
        if not isinstance(fields, dict):
            raise Unusable("not a JSON object")
        return fields

    def _record(self, fields: dict[str, Any], fallback_id: str, source: str) -> Record:
        text = fields.get(self.text_column)
        if text is None:
            raise Unusable(f"no '{self.text_column}'")
        if not isinstance(text, str):
            raise Unusable(f"'{self.text_column}' is not a string")
        taken = self.record_columns()
        try:
            metadata = metadata_text({key: value for key, value in fields.items() if key not in taken})
        except (RecursionError, ValueError) as error:
            raise Unusable("metadata cannot be written as JSON") from error
        record = self.make_record(fields, text, fallback_id, source, metadata)
        if record is None:
            raise Unusable("lone surrogates")
        return record


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
