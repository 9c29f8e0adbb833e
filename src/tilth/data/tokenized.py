"""Text that somebody tokenized before: flat arrays of ids (.npy), and Megatron's indexed pairs (.bin and .idx).

Everything about sizes is checked before anything is yielded, so that a truncated copy is an error, not a shorter
corpus. Arrays are memory-mapped views: copy one to keep it.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tilth.recipe import BadInput

MAGIC = b"MMIDIDX\x00\x00"
# Codes of Megatron's index; floats exist there, but are no token ids.
DTYPES: dict[int, np.dtype] = {1: np.dtype("u1"), 2: np.dtype("i1"), 3: np.dtype("<i2"), 4: np.dtype("<i4"),
                               5: np.dtype("<i8"), 8: np.dtype("<u2")}
HEADER = struct.Struct("<QBQQ")  # version, dtype code, sequences, document boundaries


def read_npy(path: Path | str, document_end: int | None = None) -> Iterator[np.ndarray]:
    """Documents of a 1-D integer array, cut after every `document_end` id (which stays with its document).

    Without `document_end` the array is one document. BadInput if it is no such array, or none is left.
    """
    ids = _mapped_npy(path)
    if document_end is None:
        ends = np.array([len(ids)])
    else:
        ends = np.flatnonzero(ids == document_end) + 1
        if len(ends) == 0:
            raise BadInput(f"{path}: the document end {document_end} does not occur among {len(ids):,} ids; the whole "
                           f"file would be one document. Set the right id, or none to mean just that.")
        if ends[-1] != len(ids):
            ends = np.append(ends, len(ids))  # the last document was not closed
    start = 0
    for end in ends.tolist():
        yield ids[start:end]
        start = end


def _mapped_npy(path: Path | str) -> np.ndarray:
    try:
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise BadInput(f"No file at {path}. Check the path of the token ids.") from error
    except (ValueError, OSError, EOFError) as error:
        raise BadInput(f"{path} is no NumPy array of numbers, or damaged: {error}.") from error
    if not isinstance(ids, np.ndarray) or ids.ndim != 1 or ids.dtype.kind not in "iu":
        found = f"{ids.dtype} of shape {ids.shape}" if isinstance(ids, np.ndarray) else "an archive"
        raise BadInput(f"{path} holds {found}; token ids are one 1-D array of integers.")
    if len(ids) == 0:
        raise BadInput(f"{path} holds no token ids.")
    _no_negative(ids, path)
    return ids


def read_megatron(prefix: Path | str) -> Iterator[np.ndarray]:
    """Documents of `prefix`.bin / `prefix`.idx (the prefix may also carry one of the suffixes)."""
    base = str(prefix)
    base = base[:-4] if base.endswith((".bin", ".idx")) else base
    dtype, sizes, pointers, boundaries = _read_index(Path(base + ".idx"))
    content = Path(base + ".bin")
    if not content.is_file():
        raise BadInput(f"No file at {content}, which belongs to {base}.idx. Copy both.")
    wanted, found = int(sizes.sum(dtype=np.int64)) * dtype.itemsize, content.stat().st_size
    if wanted != found:
        raise BadInput(f"{content} has {found:,} bytes; its index describes {wanted:,}. One of the two is damaged or "
                       f"belongs to another pair.")
    if not np.array_equal(pointers, (np.cumsum(sizes, dtype=np.int64) - sizes) * dtype.itemsize):
        raise BadInput(f"{base}.idx: the pointers do not follow from the sizes; the index is damaged.")
    if wanted == 0:
        raise BadInput(f"{content} holds no token ids.")
    ids = np.memmap(content, dtype, "r")
    starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    for first, last in zip(boundaries[:-1].tolist(), boundaries[1:].tolist(), strict=True):
        document = ids[starts[first]:starts[last]]
        if len(document):
            _no_negative(document, content)
            yield document


def _read_index(path: Path) -> tuple[np.dtype, np.ndarray, np.ndarray, np.ndarray]:
    """dtype; sizes int32 and pointers int64 (sequences,); document boundaries int64, from 0 to sequences."""
    try:
        with open(path, "rb") as file:
            return _parse_index(file, path, path.stat().st_size)
    except FileNotFoundError as error:
        raise BadInput(f"No file at {path}. A Megatron corpus is a pair of .bin and .idx.") from error


def _parse_index(file: BinaryIO, path: Path, size: int) -> tuple[np.dtype, np.ndarray, np.ndarray, np.ndarray]:
    if file.read(len(MAGIC)) != MAGIC:
        raise BadInput(f"{path} does not begin as a Megatron index does (MMIDIDX); older formats are not read.")
    header = file.read(HEADER.size)
    if len(header) < HEADER.size:
        raise BadInput(f"{path} ends within its header; the index is damaged.")
    version, code, sequences, boundaries = HEADER.unpack(header)
    if version != 1:
        raise BadInput(f"{path} has version {version} of the Megatron index; version 1 is read.")
    if code not in DTYPES:
        raise BadInput(f"{path}: dtype code {code} is no integer type; token ids have one of {sorted(DTYPES)}.")
    wanted = len(MAGIC) + HEADER.size + 12 * sequences + 8 * boundaries
    # A multimodal index carries a byte for each sequence behind all this.
    if size not in (wanted, wanted + sequences):
        raise BadInput(f"{path} has {size:,} bytes; its header ({sequences:,} sequences, {boundaries:,} document "
                       f"boundaries) asks for {wanted:,}. The index is damaged.")
    sizes = np.frombuffer(file.read(4 * sequences), "<i4")
    pointers = np.frombuffer(file.read(8 * sequences), "<i8")
    documents = np.frombuffer(file.read(8 * boundaries), "<i8")
    in_order = boundaries > 0 and documents[0] == 0 and documents[-1] == sequences and (np.diff(documents) >= 0).all()
    if not in_order or (sizes < 0).any():
        raise BadInput(f"{path}: the document boundaries do not run from 0 to {sequences:,}, or a size is negative; "
                       f"the index is damaged.")
    return DTYPES[code], sizes, pointers, documents


def _no_negative(ids: np.ndarray, path: Path | str) -> None:
    if ids.dtype.kind == "i" and ids.min() < 0:
        raise BadInput(f"{path} holds negative numbers, which are no token ids.")
