"""The texts of the studies of selection: `split(folder)` writes them once, the same on every machine.

Every file text/en_*.jsonl.zst of TILTH_DATA gives the same share of its bytes, whole documents, to each part, so that
all parts have the sources in their natural proportion:

    pool.jsonl        trained on (its curate stage holds out a natural part of its own)
    target.jsonl      of the target source only: what selectors measure against or look like
    pieces.jsonl      the same in pieces of about PIECE characters, so that a small part of it is of every document
    tuning.jsonl      of the target source only: what settings were tuned on
    test.jsonl        of the target source only: the verdict's text, read by the last evaluation alone
    natural.jsonl     of all sources: read by the last evaluation alone, where the pool itself is the target
"""

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

from tilth.data.seeding import generator
from tilth.recipe.files import write_bytes

SEED = 20
PIECE = 400
TARGET = "en_masc"
ALL = ("pool", "natural")  # the parts that hold every source
# Of the bytes of every file; the rest is unused.
SHARES = {"test": 0.25, "tuning": 0.15, "target": 0.2, "pool": 0.2, "natural": 0.005}


def split(folder: Path) -> dict[str, Path]:
    """The paths of the parts, made if they are not there."""
    paths = {part: folder / f"{part}.jsonl" for part in (*SHARES, "pieces")}
    if all(path.exists() for path in paths.values()):
        return paths
    if "TILTH_DATA" not in os.environ:
        sys.exit("Set TILTH_DATA to the folder that holds text/.")
    parts: dict[str, list[dict[str, str]]] = {part: [] for part in SHARES}
    for path in sorted((Path(os.environ["TILTH_DATA"]) / "text").glob("en_*.jsonl.zst")):
        rows = [json.loads(line) for line in io.TextIOWrapper(pa.CompressedInputStream(str(path), "zstd"), "utf-8")]
        for part, chosen in divided(rows, path.name).items():
            parts[part] += chosen
    for part, rows in parts.items():
        rows = [row for row in rows if part in ALL or row["source"] == TARGET]
        lines = [json.dumps({key: row[key] for key in ("id", "text", "source", "license")}) for row in rows]
        write_bytes(paths[part], ("\n".join(lines) + "\n").encode())
        if part == "target":
            cut = [json.dumps({"text": piece}) for row in rows for piece in pieces(row["text"])]
            write_bytes(paths["pieces"], ("\n".join(cut) + "\n").encode())
    return paths


def pieces(document: str) -> list[str]:
    """Pieces of PIECE characters or a little more, each ending at white space."""
    found, words, size = [], list[str](), 0
    for word in document.split(" "):
        words.append(word)
        size += len(word) + 1
        if size > PIECE:
            found.append(" ".join(words))
            words, size = [], 0
    return [*found, *([" ".join(words)] if words else [])]


def divided(rows: list[dict[str, str]], name: str) -> dict[str, list[dict[str, str]]]:
    """The documents of one file at random: each part takes documents until it has its share of the bytes, to within
    half a document."""
    order = generator(SEED, name).permutation(len(rows))
    size = np.array([len(rows[place]["text"].encode()) for place in order])
    middle = (np.cumsum(size) - size / 2) / size.sum()
    edges = np.cumsum([0.0, *SHARES.values()])
    return {part: [rows[place] for place in order[(middle >= low) & (middle < high)]]
            for part, low, high in zip(SHARES, edges, edges[1:], strict=False)}
