"""What the score of a model is measured against: compressors and byte statistics, on the same held-out text.

All values are bits per byte of held-out text. The compressors see the documents laid end to end with nothing between
(a stronger rival than one that pays for marks); the byte models code an end mark after each document, as the model
under test does, and learn from the same training text.
"""

import lzma
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from tilth.evaluate.ngram import END, SYMBOLS, best_ngram, count_ngrams
from tilth.recipe import BadInput

PIECE_BYTES = 256 * 1024
TRAIN_BYTES = 64 * 1024 * 1024
ZSTD_LEVEL = 19


def xz_bytes(text: bytes) -> int:
    """Length of the .xz file (preset 9, extreme) of `text`: what `xz -9e` writes."""
    return len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))


def xz_pieces_bytes(text: bytes, piece: int = PIECE_BYTES) -> int:
    """Length of the .xz files of `text` cut into pieces that are compressed alone: xz with less context."""
    return sum(xz_bytes(text[start : start + piece]) for start in range(0, len(text), piece))


def zstd_bytes(text: bytes, level: int = ZSTD_LEVEL) -> int:
    return pa.Codec("zstd", compression_level=level).compress(text).size


def unigram_bits(train: list[bytes], held_out: list[bytes]) -> float:
    """Code length of the held-out documents (with end marks) under add-one byte frequencies, in bits."""
    seen = _symbol_counts(train) + 1.0
    return float(_symbol_counts(held_out) @ (np.log2(seen.sum()) - np.log2(seen)))


def _symbol_counts(texts: Iterable[bytes]) -> np.ndarray:
    counts = np.zeros(SYMBOLS, np.int64)
    for text in texts:
        counts[:END] += np.bincount(np.frombuffer(text, np.uint8), minlength=END)
        counts[END] += 1
    return counts


def rivals(train_texts: Iterable[bytes] | None, held_out: list[bytes], train_bytes: int = TRAIN_BYTES
           ) -> dict[str, dict[str, Any]]:
    """{name: {value, n, bytes, …}} for xz, xz_256k, zstd, unigram and byte_5gram; value in bits per byte. Without
    training text (None), only for the compressors, which learn from nothing but the held-out text itself.

    `n` is the number of held-out documents and `bytes` their length; `coded_bytes` is what the rival needs for them.
    Training text is read until `train_bytes` are reached (whole documents, in the order given); `train_bytes` in the
    result is what was used. Raises BadInput where either side is empty.
    """
    held_out = [text for text in held_out if text]
    train = None if train_texts is None else take_bytes(train_texts, train_bytes)
    if not held_out or train == []:
        side = "training" if held_out else "held-out"
        raise BadInput(f"There is no {side} text to measure the rivals on; give some, or turn `rivals` off.")
    whole = b"".join(held_out)
    bits: dict[str, float] = {"xz": 8 * xz_bytes(whole), "xz_256k": 8 * xz_pieces_bytes(whole),
                              "zstd": 8 * zstd_bytes(whole)}
    if train is not None:
        five, smoothing = _byte_5gram(train, held_out)
        bits |= {"unigram": unigram_bits(train, held_out), "byte_5gram": five}
    result: dict[str, dict[str, Any]] = {
        name: {"value": found / len(whole), "n": len(held_out), "bytes": len(whole), "coded_bytes": round(found / 8)}
        for name, found in bits.items()}
    if train is not None:
        for name in ("unigram", "byte_5gram"):
            result[name]["train_bytes"] = sum(map(len, train))
        result["byte_5gram"]["smoothing"] = smoothing
    return result


def take_bytes(texts: Iterable[bytes], limit: int) -> list[bytes]:
    """The first non-empty documents up to the one that reaches `limit` bytes, that one included."""
    taken: list[bytes] = []
    size = 0
    for text in texts:
        if text:
            taken.append(text)
            size += len(text)
        if size >= limit:
            break
    return taken


def _byte_5gram(train: list[bytes], held_out: list[bytes]) -> tuple[float, str]:
    """Code length in bits under the best smoothing, which the training text alone picks, and that smoothing's name."""
    model, _ = best_ngram(train, order=5)
    return model.bits(*count_ngrams(held_out, 5)), model.smoothing
