"""Image-text pairs: read from a folder with an index or from Parquet, and written as a pool of units.

A unit is one pair: `pixels` (H, W, C) uint8 and the `tokens` of its caption. Needs Pillow (`pip install
'tilth[images]'`).
"""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field as Given

from tilth.data import locations
from tilth.data.pool import Field, PoolWriter, token_field
from tilth.data.records import Quarantine
from tilth.data.tokenizer import Tokenizer
from tilth.recipe import BadInput, Config

INDEXES = ("captions.jsonl", "index.jsonl", "metadata.jsonl")
BATCH = 256
PIXELS = 64_000_000  # of the largest image that is decoded


@dataclass
class Pair:
    """One image, (H, W, C) uint8, with its caption; concept: the label of a test image, empty where there is none."""

    id: str
    pixels: np.ndarray
    caption: str
    concept: str = ""


class PairsInput(Config):
    """Where pairs are: a folder of images with a JSON-lines index (captions.jsonl), or a Parquet file.

    image: the column (or key) of the image: in an index its path below the folder, in Parquet its encoded bytes, alone
    or as `bytes` of a struct. caption, id, concept: the columns of the text, of the record's id (default: its number),
    and of the label by which a test image is scored. Images become `size` (height, width) and grey or RGB.
    """

    path: Path
    image: str = "image"
    caption: str = "caption"
    id: str = "id"
    concept: str = "concept"
    source: str | None = None
    size: tuple[int, int] = (32, 32)
    colours: Literal["grey", "rgb"] = "rgb"
    on_bad: Literal["quarantine", "error"] = "quarantine"
    max_pixels: int = Given(PIXELS, ge=1)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image."""
        return (*self.size, 1 if self.colours == "grey" else 3)

    def index(self) -> Path:
        """The file that lists the pairs; BadInput where there is none."""
        if self.path.is_file() and self.path.suffix in (".parquet", ".jsonl"):
            return self.path
        found = [self.path / name for name in INDEXES if (self.path / name).is_file()]
        if not found:
            raise BadInput(f"{self.path} holds no image-text pairs: give a Parquet file, or a folder with one of "
                           f"{', '.join(INDEXES)} beside its images.")
        return found[0]

    def fingerprint(self) -> list[dict[str, Any]]:
        """`{path, size, sha256}` of the index, and of all images that it names as one: a digest of their digests."""
        index = self.index()
        found = [locations.fingerprint(str(index))]
        if index.suffix == ".parquet":
            return found
        digest, size = hashlib.sha256(), 0
        for row in json_rows(index):
            path = index.parent / str(row.get(self.image))
            if path.is_file():
                one = locations.fingerprint(str(path))
                digest.update(json.dumps([str(row[self.image]), one["sha256"]]).encode())
                size += one["size"]
        return [*found, {"path": f"{index.parent} (images)", "size": size, "sha256": digest.hexdigest()}]

    def read(self, quarantine: Quarantine) -> Iterator[Pair]:
        """Pairs in their order; an image that cannot be decoded, or a row without a caption, goes to the quarantine."""
        decode, index = self._decoder(), self.index()
        for number, row in enumerate(parquet_rows(index) if index.suffix == ".parquet" else json_rows(index)):
            try:
                image = self._bytes(row, index)
                caption = row.get(self.caption)
                if not isinstance(caption, str) or not caption.strip():
                    raise ValueError(f"no text under '{self.caption}' (it has {', '.join(map(str, row))})")
                yield Pair(str(row.get(self.id, number)), decode(image), caption, str(row.get(self.concept) or ""))
            except (OSError, ValueError, KeyError) as error:
                if self.on_bad == "error":
                    raise BadInput(f"{index}, pair {number}: {error}.") from error
                quarantine.add(str(index), f"unusable pair: {error}", record=number)

    def _bytes(self, row: dict[str, Any], index: Path) -> bytes:
        image = row.get(self.image)
        if isinstance(image, dict):
            image = image.get("bytes")
        if isinstance(image, str):
            path = (index.parent / image).resolve()
            if not path.is_relative_to(index.parent.resolve()):  # an index is data: it must not read elsewhere
                raise ValueError(f"the image {image} is not below {index.parent}")
            return path.read_bytes()
        if not isinstance(image, bytes):
            raise ValueError(f"no image under '{self.image}' (it has {', '.join(map(str, row))})")
        return image

    def _decoder(self) -> Any:
        """Encoded bytes -> (H, W, C) uint8."""
        try:
            from PIL import Image
        except ImportError as error:
            raise BadInput("Reading images needs Pillow: pip install 'tilth[images]'.") from error

        def decode(content: bytes) -> np.ndarray:
            with Image.open(io.BytesIO(content)) as image:
                if image.width * image.height > self.max_pixels:
                    raise ValueError(f"an image of {image.width} x {image.height} pixels")
                small = image.convert("L" if self.colours == "grey" else "RGB")
                if small.size != self.size[::-1]:
                    small = small.resize(self.size[::-1])
                return np.asarray(small, np.uint8).reshape(self.shape)

        return decode


def json_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise BadInput(f"{path}, line {number}, is not JSON: {error}.") from error
            if not isinstance(row, dict):
                raise BadInput(f"{path}, line {number}, is not a JSON object.")
            yield row


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise BadInput(f"{path} cannot be read as Parquet: {error}.") from error


def write_pairs(pairs: Iterator[Pair], shape: tuple[int, int, int], tokenizer: Tokenizer, folder: Path, source: str,
                most_tokens: int) -> int:
    """A pool of the pairs in `folder`, captions cut to `most_tokens` tokens, the end-of-text token the last of them;
    its units.parquet has the columns caption and concept too. Returns the number of pairs."""
    fields = {"tokens": token_field(tokenizer.vocab_size), "pixels": Field("uint8", shape)}
    with PoolWriter(folder, fields, vocab_size=tokenizer.vocab_size, end_of_text=tokenizer.end_of_text,
                    image_shape=list(shape), most_tokens=most_tokens) as writer:
        while batch := [pair for _, pair in zip(range(BATCH), pairs, strict=False)]:
            ids = tokens_of([pair.caption for pair in batch], tokenizer, most_tokens)
            names = [pair.id for pair in batch]
            writer.append({"tokens": ids, "pixels": np.stack([pair.pixels for pair in batch])},
                          {"unit_id": names, "record_id": names, "source": [source] * len(batch),
                           "caption": [pair.caption for pair in batch], "concept": [pair.concept for pair in batch]})
        written = writer.units
    return written


def tokens_of(captions: Sequence[str], tokenizer: Tokenizer, most_tokens: int) -> list[np.ndarray]:
    """The tokens of captions as a text encoder reads them: at most `most_tokens`, end-of-text the last."""
    return [np.append(ids[:most_tokens - 1], tokenizer.end_of_text).astype(np.int64)
            for ids in tokenizer.encode_batch(list(captions))]


def padded(tokens: Sequence[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Token rows (B, length) int64, zeros behind the captions, and which positions hold a token (B, length) bool."""
    rows = np.zeros((len(tokens), length), np.int64)
    held = np.zeros((len(tokens), length), bool)
    for row, ids in enumerate(tokens):
        rows[row, :len(ids)], held[row, :len(ids)] = ids, True
    return rows, held
