"""The texts of the study: `split(folder)` writes them once, the same on every machine.

    pool.jsonl    the noisy corpora, what every arm curates
    noisy.jsonl   documents of the same corpora, set apart at random before any rule
    clean.jsonl   documents of edited English from sources of which nothing is in the pool

Pages in HTML are turned into all the text that a reader sees, menus and tables included, as web crawls hold it. What is
measured is cut after 2,000 characters, so that many documents fit in.
"""

import io
import json
import os
import sys
from pathlib import Path

import polars as pl
import pyarrow as pa

from tilth.curate.extract import MARKUP, extractor
from tilth.data.seeding import generator
from tilth.recipe.files import write_bytes

SEED = 40
NOISY = ("en_wiki_html", "multi_link_lists", "en_stackexchange_coffee", "en_product_reviews", "en_movie_reviews",
         "en_peps", "en_uk_service_manual", "en_rust_book")
CLEAN = ("en_masc", "en_us_speeches", "en_novels", "en_biomed_articles", "en_fomc_minutes")
NOISY_SHARE, NOISY_DOCUMENTS, CLEAN_DOCUMENTS, CHARACTERS = 0.05, 15, 15, 2000  # documents: of each source


def split(folder: Path) -> dict[str, Path]:
    """The paths of the parts, made if they are not there."""
    paths = {part: folder / f"{part}.jsonl" for part in ("pool", "noisy", "clean")}
    if all(path.exists() for path in paths.values()):
        return paths
    if "TILTH_DATA" not in os.environ:
        sys.exit("Set TILTH_DATA to the folder that holds text/.")
    parts: dict[str, list[dict[str, str]]] = {part: [] for part in paths}
    for source in NOISY:
        rows = shuffled(source)
        apart = round(NOISY_SHARE * len(rows))
        parts["noisy"] += [cut(row) for row in rows[:apart][:NOISY_DOCUMENTS]]
        parts["pool"] += rows[apart:]
    for source in CLEAN:
        parts["clean"] += [cut(row) for row in shuffled(source)[:CLEAN_DOCUMENTS]]
    for part, rows in parts.items():
        write_bytes(paths[part], "".join(json.dumps(row) + "\n" for row in rows).encode())
    return paths


def shuffled(source: str) -> list[dict[str, str]]:
    """The documents of one file in a random order, text extracted."""
    path = Path(os.environ["TILTH_DATA"]) / "text" / f"{source}.jsonl.zst"
    rows = [json.loads(line) for line in io.TextIOWrapper(pa.CompressedInputStream(str(path), "zstd"), "utf-8")]
    marked = pl.Series([row["text"] for row in rows]).str.contains(MARKUP)
    read = extractor("text")
    found = [{"id": row["id"], "text": read(row["text"]) if page else row["text"], "source": row["source"],
              "license": row["license"]} for row, page in zip(rows, marked, strict=True)]
    return [found[place] for place in generator(SEED, source).permutation(len(found))]


def cut(row: dict[str, str]) -> dict[str, str]:
    return {**row, "text": row["text"][:CHARACTERS]}
