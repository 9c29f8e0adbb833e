"""Compressed files as streams, with caps: a small file must not unpack into a full disk or memory."""

from collections.abc import Iterator
from types import TracebackType

import pyarrow as pa

from tilth.data import locations
from tilth.recipe import BadInput

CODECS = {".gz": "gzip", ".zst": "zstd"}
CHUNK = 1 << 20
RATIO_COUNTS_FROM = 64 << 20  # a few megabytes of the same letter are no attack


class Damaged(Exception):
    """A compressed stream ends early or is broken."""


def without_codec(path: str) -> str:
    """`web.jsonl.gz` -> `web.jsonl`."""
    for suffix in CODECS:
        if path.lower().endswith(suffix):
            return path[:-len(suffix)]
    return path


class Unpacked:
    """The content of a plain, .gz or .zst file, in chunks. BadInput when it grows over `max_bytes`, or over
    `max_ratio` times its stored size; Damaged when it is broken."""

    def __init__(self, path: str, max_bytes: int, max_ratio: float):
        self.path, self.max_bytes, self.max_ratio = path, max_bytes, max_ratio
        self.stored, self.unpacked = locations.size(path), 0
        self._raw = locations.open_binary(path)
        codec = next((codec for suffix, codec in CODECS.items() if path.lower().endswith(suffix)), None)
        self._packed = codec is not None
        self._stream = pa.CompressedInputStream(pa.PythonFile(self._raw, "r"), codec) if codec else self._raw

    def __enter__(self) -> "Unpacked":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._raw.close()

    def chunks(self, size: int = CHUNK) -> Iterator[bytes]:
        """Bytes, at most `size` at a time."""
        while chunk := self._read(size):
            self.unpacked += len(chunk)
            self._check()
            yield chunk

    def _read(self, size: int) -> bytes:
        if self._packed and self.stored == 0:
            raise Damaged("an empty file is no compressed file")
        try:
            return bytes(self._stream.read(size))
        except (OSError, pa.ArrowInvalid) as error:
            # Arrow reports damage as an error without a number; one with a number is the disk's or the network's.
            if not self._packed or getattr(error, "errno", None) is not None:
                raise
            raise Damaged(str(error).partition("\n")[0]) from error

    def _check(self) -> None:
        if not self._packed:
            return
        if self.unpacked > self.max_bytes:
            raise BadInput(f"{self.path} unpacks to more than {self.max_bytes:,} bytes. If that is meant, raise "
                           f"`max_decompressed_bytes` of this input.")
        if self.unpacked > max(RATIO_COUNTS_FROM, self.max_ratio * self.stored):
            raise BadInput(f"{self.path} unpacks to more than {self.max_ratio:g} times its {self.stored:,} bytes, as "
                           f"text does not. If that is meant, raise `max_ratio` of this input.")


def lines(chunks: Iterator[bytes], max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """(line number from 1, its bytes without the newline); None instead of a line over `max_bytes`.

    No more than one line and one chunk are held.
    """
    held: list[bytes] = []
    number, size, too_long = 1, 0, False
    for chunk in chunks:
        *whole, rest = chunk.split(b"\n")
        for part in whole:
            fits = not too_long and size + len(part) <= max_bytes
            yield number, b"".join([*held, part]) if fits else None
            number, held, size, too_long = number + 1, [], 0, False
        size += len(rest)
        too_long = too_long or size > max_bytes
        held = [] if too_long else [*held, rest] if len(held) < 64 else [b"".join([*held, rest])]
    if size:
        yield number, None if too_long else b"".join(held)
