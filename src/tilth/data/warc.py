"""Web archives: the pages of WARC files as HTML records, the texts of WET files as they are.

Read by FastWARC (Bevendorff et al. 2018). The rule `html_text` takes the text out of pages; a page is decoded by what
its HTTP header, its markup or its bytes say of its encoding.
"""

import importlib
from collections.abc import Iterator
from typing import Any

from tilth.data import locations
from tilth.data.inputs import EMPTY, Input
from tilth.data.records import Quarantine, Record, is_encodable, metadata_text
from tilth.recipe import BadInput

SUFFIXES = tuple(kind + packed for kind in (".warc", ".wet") for packed in ("", ".gz", ".zst"))
TEXTUAL = ("text/html", "application/xhtml+xml", "text/plain")


class WarcInput(Input):
    """Responses with status 200 and a textual content type (WARC), and conversions (WET). id: the record's own;
    metadata: url, date, content type. Other responses go to the quarantine with their reason; requests, metadata and
    the like are no documents and are passed over."""

    kind: str = "warc"

    def suffixes(self) -> tuple[str, ...]:
        return SUFFIXES

    def records_of(self, path: str, name: str, quarantine: Quarantine) -> Iterator[Record]:
        warc = _package("fastwarc.warc")
        wanted = warc.WarcRecordType.response | warc.WarcRecordType.conversion
        unpacked, number = 0, 0
        with locations.open_binary(path) as file:
            try:
                for number, record in enumerate(warc.ArchiveIterator(
                        file, record_types=wanted, auto_decode="all"), 1):
                    unpacked += record.content_length
                    self._check(path, unpacked)
                    found = self._record(record, f"{name}:{number}")
                    if isinstance(found, str):
                        self._unusable(quarantine, path, found, number)
                    else:
                        yield found
            except (OSError, ValueError, RuntimeError) as error:
                if getattr(error, "errno", None) is not None:
                    raise
                self.bad(quarantine, path, f"damaged archive: {error}", record=number)

    def _record(self, record: Any, fallback_id: str) -> Record | str:
        """The record of one response or conversion, or why it is none."""
        headers, http = record.headers, record.http_headers
        content_type = (record.http_content_type or headers.get("Content-Type") or "").partition(";")[0].strip().lower()
        if http is not None and http.status_code != 200:
            return f"HTTP status: {http.status_code}"
        if content_type not in TEXTUAL:
            return f"content type: {content_type or 'none'}"
        content = record.reader.read(self.max_record_bytes + 1)
        if len(content) > self.max_record_bytes:
            return "longer than max_record_bytes"
        text = decoded(content, record.http_charset if http is not None else "utf-8")
        if not text.strip():
            return EMPTY
        about = {"url": headers.get("WARC-Target-URI"), "date": headers.get("WARC-Date"), "content_type": content_type}
        identity = (record.record_id or fallback_id).removeprefix("<").removeprefix("urn:uuid:").removesuffix(">")
        made = self.make_record({self.id_column: identity}, text, fallback_id, self.default_source(),
                                metadata_text({key: value for key, value in about.items()
                                               if value and is_encodable(value)}))
        return made or "lone surrogates"

    def _unusable(self, quarantine: Quarantine, path: str, reason: str, number: int) -> None:
        """A picture or a missing page is no fault of the archive: it never stops a run."""
        if reason == EMPTY or reason.startswith(("HTTP status", "content type")):
            quarantine.add(path, reason, record=number)
        else:
            self.bad(quarantine, path, reason, record=number)

    def _check(self, path: str, unpacked: int) -> None:
        if unpacked > self.max_decompressed_bytes:
            raise BadInput(f"{path} unpacks to more than {self.max_decompressed_bytes:,} bytes. If that is meant, "
                           f"raise `max_decompressed_bytes` of this input.")


def decoded(content: bytes, charset: str | None) -> str:
    """Bytes of a page as text: by `charset` if they are valid in it, else by what Resiliparse finds; never an error."""
    try:
        return content.decode(charset or "utf-8")
    except (UnicodeDecodeError, LookupError):
        encoding = _package("resiliparse.parse.encoding")
        return str(encoding.bytes_to_str(content, encoding.detect_encoding(content)))


def _package(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BadInput("Reading web archives needs the packages `fastwarc` and `resiliparse`: pip install 'tilth[web]'."
                       ) from error
