"""Documents to a pool: encode, end each document, cut it into units that lead back to their characters."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tilth.data.pool import Field, PoolWriter, token_field
from tilth.data.tokenizer import Tokenizer
from tilth.recipe import BadInput, Progress
from tilth.recipe.files import write_json

BATCH_BYTES = 8 << 20  # text encoded at once: bounds memory, and is plenty for the encoder's threads
BATCH_DOCUMENTS = 512
COLUMNS = ["id", "text", "source", "license"]
CREDITS = 1000  # different attributions of a source that the report lists; the documents keep all


@dataclass
class Units:
    """Units on their way into the pool, and what they add up to."""

    tokens: list[np.ndarray] = field(default_factory=list)
    columns: dict[str, list[Any]] = field(default_factory=lambda: {
        name: [] for name in ("unit_id", "record_id", "source", "license", "start", "end", "bytes", "tokens")})

    def add(self, record: dict[str, Any], ids: np.ndarray, ends: Sequence[int], characters: Sequence[int],
            sizes: Sequence[int]) -> None:
        """The units of one record: tokens up to each of `ends`; characters up to each of `characters`; bytes."""
        first = start = 0
        for number, (end, character, size) in enumerate(zip(ends, characters, sizes, strict=True)):
            self.tokens.append(ids[first:end])
            row = (f"{record['id']}#{number}", record["id"], record["source"], record["license"], start, character,
                   size, end - first)
            for column, value in zip(self.columns.values(), row, strict=True):
                column.append(value)
            first, start = end, character

    def flush(self, writer: PoolWriter) -> None:
        if self.tokens:
            writer.append({"tokens": self.tokens, "bytes": np.array(self.columns["bytes"], np.int64)}, self.columns)
        self.tokens.clear()
        for column in self.columns.values():
            column.clear()


class Totals:
    """Documents, units, tokens and bytes by (source, licence), and whom their documents name, for the report."""

    def __init__(self) -> None:
        self.by_source: dict[tuple[str, str | None], dict[str, int]] = {}
        self.credits: dict[tuple[str, str | None], dict[str, int]] = {}
        self.empty = 0

    def add(self, record: dict[str, Any], units: int, tokens: int, size: int) -> None:
        one = self.by_source.setdefault((record["source"], record["license"]),
                                        {"documents": 0, "units": 0, "tokens": 0, "bytes": 0})
        for key, value in zip(one, (1, units, tokens, size), strict=True):
            one[key] += value
        if record.get("attribution"):
            named = self.credits.setdefault((record["source"], record["license"]), {})
            if record["attribution"] in named or len(named) < CREDITS:
                named[record["attribution"]] = named.get(record["attribution"], 0) + 1

    def report(self) -> dict[str, Any]:
        sums = {key: sum(one[key] for one in self.by_source.values())
                for key in ("documents", "units", "tokens", "bytes")}
        known = sums["tokens"] > 0 and sums["bytes"] > 0
        return {**sums, "empty_documents": self.empty,
                "bytes_per_token": round(sums["bytes"] / sums["tokens"], 4) if known else None,
                "sources": [{"source": source, "license": license, **one, **self._credits((source, license))}
                            for (source, license), one in sorted(self.by_source.items(), key=str)]}

    def _credits(self, source: tuple[str, str | None]) -> dict[str, Any]:
        """`attributions`: whom documents name, the most named first; `attributed`: how many documents those are."""
        named = self.credits.get(source)
        return {} if not named else {"attributed": sum(named.values()),
                                     "attributions": sorted(named, key=lambda name: (-named[name], name))}


class DocumentTexts:
    """The texts of document files, one at a time, as often as wanted (to train a tokenizer on)."""

    def __init__(self, paths: Sequence[Path | str]):
        self.paths = paths

    def __iter__(self) -> Iterator[str]:
        for batch in read_documents(self.paths):
            yield from (record["text"] for record in batch)


def read_documents(paths: Sequence[Path | str]) -> Iterator[list[dict[str, Any]]]:
    """Small batches of records (dicts with id, text, source, license, and attribution where the file has it) from
    Parquet files, in order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in paths:
        try:
            file = pq.ParquetFile(path)
            missing = set(COLUMNS) - set(file.schema_arrow.names)
            if missing:
                raise BadInput(f"{path} has no column {', '.join(sorted(missing))}; documents have {COLUMNS}.")
            columns = [*COLUMNS, *({"attribution"} & set(file.schema_arrow.names))]
            for batch in file.iter_batches(BATCH_DOCUMENTS, columns=columns):
                rows = batch.to_pylist()
                null = next((row for row in rows if row["id"] is None or row["text"] is None), None)
                if null is not None:
                    raise BadInput(f"{path} holds a record without an id or a text (id {null['id']!r}).")
                yield rows
        except (OSError, pa.ArrowInvalid) as error:
            raise BadInput(f"{path} cannot be read as a Parquet file of documents: {error}.") from error


def in_pieces(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Cut a batch so that at most about BATCH_BYTES of text are encoded at once."""
    part: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        part.append(row)
        size += len(row["text"])
        if size >= BATCH_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def cuts(offsets: np.ndarray, unit_tokens: int) -> tuple[list[int], list[int]]:
    """Where to cut a document of n tokens so that no unit has more than `unit_tokens`.

    offsets: int64 (n, 2), the characters of each token. Returns the end token and the end character of each unit but
    the last. A character can be several tokens; the cut moves back to the last token that begins a character, and
    only if the unit has none does it fall inside one, which then belongs to the unit where it begins.
    """
    begin, end = offsets[:, 0], np.maximum.accumulate(offsets[:, 1])
    clean = np.empty(len(offsets), bool)  # whether a cut before this token parts no character
    clean[0], clean[1:] = True, begin[1:] >= end[:-1]
    ends, characters = [], []
    at = 0
    while len(offsets) - at > unit_tokens:
        stop = at + unit_tokens
        good = np.flatnonzero(clean[at + 1:stop + 1])
        at = at + 1 + int(good[-1]) if len(good) else stop
        ends.append(at)
        characters.append(int(end[at - 1]))
    return ends, characters


def add_document(units: Units, record: dict[str, Any], ids: np.ndarray, tokenizer: Tokenizer,
                 unit_tokens: int) -> tuple[int, int]:
    """Cut one document (its ids without the end-of-text token) into units; their number and the document's bytes."""
    text = record["text"]
    ends: list[int] = []
    characters: list[int] = []
    if len(ids) + 1 > unit_tokens:
        # The end-of-text token stands behind the last character and covers none.
        offsets = np.vstack([tokenizer.offsets(text, ids), [[len(text), len(text)]]])
        ends, characters = cuts(offsets, unit_tokens)
    ends.append(len(ids) + 1)
    characters.append(len(text))
    spans = zip([0, *characters], characters, strict=False)
    sizes = [len(text[start:end].encode()) for start, end in spans]
    units.add(record, np.append(ids, np.uint32(tokenizer.end_of_text)), ends, characters, sizes)
    return len(ends), sum(sizes)


def open_writer(folder: Path, tokenizer: Tokenizer | None, vocab_size: int, end_of_text: int) -> PoolWriter:
    if tokenizer is not None:
        tokenizer.save(folder)
    return PoolWriter(folder, {"tokens": token_field(vocab_size), "bytes": Field("int64")}, vocab_size=vocab_size,
                      end_of_text=end_of_text)


def tokenize_documents(paths: Sequence[Path | str], tokenizer: Tokenizer, folder: Path | str, unit_tokens: int,
                       progress: str | None = None) -> dict[str, Any]:
    """Tokenize document files into the pool `folder`, which appears whole or not at all; also tokenizer.json and
    report.json, whose content is returned.

    Each document ends with the end-of-text token and is cut into units of at most `unit_tokens` tokens; unit k of a
    record is called `{id}#{k}`. The units' characters and UTF-8 bytes add up to the document's. An empty document is
    counted and left out. progress: what to call this on the progress line (None: silent).
    """
    if unit_tokens < 1:
        raise BadInput(f"`unit_tokens` must be at least 1, not {unit_tokens}.")
    folder, totals, units = Path(folder), Totals(), Units()
    shown = Progress(progress, count_documents(paths), "documents") if progress else None
    done = 0
    with open_writer(folder, tokenizer, tokenizer.vocab_size, tokenizer.end_of_text) as writer:
        for rows in (part for batch in read_documents(paths) for part in in_pieces(batch)):
            for record, ids in zip(rows, tokenizer.encode_batch([row["text"] for row in rows]), strict=True):
                if not record["text"]:
                    totals.empty += 1
                    continue
                count, size = add_document(units, record, ids, tokenizer, unit_tokens)
                totals.add(record, count, sum(units.columns["tokens"][-count:]), size)
            units.flush(writer)
            done += len(rows)
            if shown is not None:
                shown.update(done)
    report = {"unit_tokens": unit_tokens, "vocab_size": tokenizer.vocab_size, **totals.report()}
    write_json(folder / "report.json", report)
    return report


def count_documents(paths: Sequence[Path | str]) -> int:
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(path).num_rows for path in paths)


@dataclass(frozen=True)
class TokenizedRecord:
    """A record that came as token ids (tokens,), integers of any size, without its end-of-text token."""

    id: str
    tokens: np.ndarray
    source: str
    license: str | None = None


def checked_ids(record: TokenizedRecord, vocab_size: int) -> np.ndarray:
    """The record's ids, uint32 (tokens,); BadInput names the record whose ids are not ids of the vocabulary."""
    ids = np.asarray(record.tokens)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise BadInput(f"Record {record.id!r} is not a list of token ids: its array is {ids.dtype} {ids.shape}.")
    if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= vocab_size):
        wrong = int(ids.min()) if ids.min() < 0 else int(ids.max())
        raise BadInput(f"Record {record.id!r} holds token id {wrong}; ids go from 0 to {vocab_size - 1}. Give the "
                       f"tokenizer that made the tokens.")
    return ids.astype(np.uint32)


def pool_from_arrays(records: Iterable[TokenizedRecord], folder: Path | str, unit_tokens: int, vocab_size: int,
                     end_of_text: int, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    """Records that are tokens already, into a pool like that of `tokenize_documents`; returns its report.

    `start` and `end` of a unit count tokens of the record, for there are no characters. An end-of-text token is
    added where a record does not end with one. Bytes need a byte-level `tokenizer`; without one they are -1, unknown,
    and bits per byte cannot be computed.
    """
    if tokenizer is not None and (tokenizer.vocab_size, tokenizer.end_of_text) != (vocab_size, end_of_text):
        raise BadInput(f"The tokenizer has {tokenizer.vocab_size} ids and ends text with {tokenizer.end_of_text}; the "
                       f"tokens are said to have {vocab_size} and {end_of_text}.")
    token_bytes = None if tokenizer is None else tokenizer.token_bytes
    folder, totals, units = Path(folder), Totals(), Units()
    held = 0
    with open_writer(folder, tokenizer, vocab_size, end_of_text) as writer:
        for one in records:
            ids = checked_ids(one, vocab_size)
            if not ids.size or ids[-1] != end_of_text:
                ids = np.append(ids, np.uint32(end_of_text))
            ends = [*range(unit_tokens, len(ids), unit_tokens), len(ids)]
            sizes = [-1] * len(ends) if token_bytes is None else (
                np.diff(np.cumsum(token_bytes[ids])[np.array(ends) - 1], prepend=0).tolist())
            record = {"id": one.id, "source": one.source, "license": one.license}
            units.add(record, ids, ends, ends, sizes)
            totals.add(record, len(ends), len(ids), sum(sizes) if token_bytes is not None else 0)
            held += len(ids)
            if held > BATCH_BYTES:
                units.flush(writer)
                held = 0
        units.flush(writer)
    report = {"unit_tokens": unit_tokens, "vocab_size": vocab_size, **totals.report()}
    write_json(folder / "report.json", report)
    return report
