"""What decontamination looks for: the texts of evaluation files, as hashes of their n-grams."""

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import PurePath
from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import Field

from tilth.curate.ngrams import blocks, window_sizes
from tilth.curate.shingles import WORD
from tilth.data import locations
from tilth.data.compressed import Damaged, Unpacked, lines
from tilth.recipe import BadInput, Config
from tilth.recipe.frame import nearest

Match = Literal["ngram", "paragraph", "document"]
MAX_BYTES, MAX_RATIO = 4 << 30, 200


class Evaluation(Config):
    """A file, folder or glob of JSON lines (plain, .gz or .zst), and the fields that hold text (or lists of texts)."""

    path: str
    fields: list[str] = Field(min_length=1)


class Lookup:
    """Hashes of one size: for each the items that have it."""

    def __init__(self, hashes: np.ndarray, item_of: np.ndarray):
        self.hashes, self.item_of = hashes, item_of  # sorted, each pair once
        # Nearly all windows of a corpus are in no item: a table turns most away with one look-up.
        self.table = np.zeros(1 << max(10, (32 * len(hashes)).bit_length()), bool)
        self.table[self._place(hashes)] = True

    def _place(self, hashes: np.ndarray) -> np.ndarray:
        return (hashes & np.uint64(len(self.table) - 1)).astype(np.int64)

    def find(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs (place in `hashes`, entry of this look-up)."""
        likely = np.flatnonzero(self.table[self._place(hashes)])
        left = np.searchsorted(self.hashes, hashes[likely], "left")
        found = np.searchsorted(self.hashes, hashes[likely], "right") - left
        within = np.arange(found.sum()) - np.repeat(np.cumsum(found) - found, found)
        return np.repeat(likely, found), np.repeat(left, found) + within


class Items:
    """All items: their `names`, how many distinct n-grams each has (`counts`), and a look-up for each size."""

    def __init__(self, names: list[str], counts: np.ndarray, lookups: dict[int, Lookup], short: int):
        self.names, self.counts, self.lookups, self.short = names, counts, lookups, short


def item_texts(evaluations: list[Evaluation]) -> Iterator[tuple[str, str]]:
    """Name (`file:line field`) and text of every item."""
    for evaluation in evaluations:
        seen: set[str] = set()
        found: set[str] = set()
        for path in locations.expand(evaluation.path):
            for number, row in _rows(path):
                seen.update(row)
                for field in evaluation.fields:
                    values = row.get(field)
                    for text in values if isinstance(values, list) else [values]:
                        if isinstance(text, str) and text.strip():
                            found.add(field)
                            yield f"{PurePath(path).name}:{number} {field}", text
        for field in evaluation.fields:
            if field not in found:
                raise BadInput(f"No row of {evaluation.path} has text in the field '{field}'{nearest(field, seen)} The "
                               f"rows have {', '.join(sorted(seen)) or 'no fields at all'}. Set `fields` of this "
                               f"evaluation file.")


def _rows(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with Unpacked(path, MAX_BYTES, MAX_RATIO) as file:
            for number, line in lines(file.chunks(), MAX_BYTES):
                if line is not None and line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError("it is no object")
                    yield number, row
    except Damaged as error:
        raise BadInput(f"The evaluation file {path} cannot be read: {error}. Without it decontamination would be "
                       f"incomplete; fetch it again.") from error
    except ValueError as error:
        raise BadInput(f"The evaluation file {path} is not JSON lines: {error}. Repair it, or give another.") from error


def load(evaluations: list[Evaluation], match: Match, ngram: int, minimum_words: int) -> Items:
    """The items of all files; kept for the process, as long as the files stay the same."""
    paths = [path for one in evaluations for path in locations.expand(one.path)]
    described = json.dumps([one.model_dump() for one in evaluations])
    sizes = tuple((path, locations.fingerprint(path)["sha256"]) for path in paths)
    return _load(described, sizes, match, ngram, minimum_words)


@lru_cache(maxsize=4)
def _load(described: str, sizes: tuple[Any, ...], match: Match, ngram: int, minimum_words: int) -> Items:
    named = list(item_texts([Evaluation(**one) for one in json.loads(described)]))
    names, texts = [name for name, _ in named], pl.Series([text for _, text in named], dtype=pl.String)
    if match == "ngram":
        return _ngram_items(names, texts, ngram, minimum_words)
    row_of, _, _, keys = whole_keys(texts, match, ngram if match == "paragraph" else 1)
    lookup, counts = _lookup(keys, row_of, len(names))
    return Items(names, counts, {0: lookup}, int((counts == 0).sum()))


def _ngram_items(names: list[str], texts: pl.Series, ngram: int, minimum_words: int) -> Items:
    """Items of at least `ngram` words by their n-grams; shorter ones by all their words."""
    hashes: dict[int, list[np.ndarray]] = {}
    items: dict[int, list[np.ndarray]] = {}
    for block in blocks(texts):
        size_of = np.minimum(block.counts(), ngram)
        for size, found in window_sizes(block.hashes, range(minimum_words, ngram + 1)):
            text_of = block.text_of[:len(found)]
            mine = (text_of == block.text_of[size - 1:]) & (size_of[text_of] == size)
            hashes.setdefault(size, []).append(found[mine])
            items.setdefault(size, []).append(block.documents[text_of[mine]])
    counts, lookups = np.zeros(len(names), np.int64), {}
    for size, parts in hashes.items():
        if sum(map(len, parts)):
            lookups[size], of_size = _lookup(np.concatenate(parts), np.concatenate(items[size]), len(names))
            counts += of_size
    return Items(names, counts, lookups, int((counts == 0).sum()))


def _lookup(hashes: np.ndarray, item_of: np.ndarray, number: int) -> tuple[Lookup, np.ndarray]:
    """The look-up, and how many distinct hashes each item has."""
    order = np.lexsort((item_of, hashes))
    hashes, item_of = hashes[order], item_of[order]
    new = np.ones(len(hashes), bool)
    new[1:] = (hashes[1:] != hashes[:-1]) | (item_of[1:] != item_of[:-1])
    return Lookup(hashes[new], item_of[new]), np.bincount(item_of[new], minlength=number)


def whole_keys(texts: pl.Series, match: Match, minimum_words: int) -> tuple[np.ndarray, ...]:
    """Row, start, end (characters) and hash of the words of every whole document, or of every paragraph (a line), of
    at least `minimum_words` words."""
    pieces = texts.to_frame("piece").with_row_index("row")
    if match == "paragraph":
        pieces = pieces.with_columns(pl.col("piece").str.split("\n", inclusive=True)).explode("piece")
        pieces = pieces.drop_nulls("piece")
    words = pl.col("piece").str.to_lowercase().str.extract_all(WORD)
    length = pl.col("piece").str.len_chars().cast(pl.Int64)
    end = length.cum_sum().over("row")
    found = pieces.select("row", start=end - length, end=end, words=words).filter(
        pl.col("words").list.len() >= max(minimum_words, 1))
    keys = found["words"].list.join(" ").hash(seed=0x711714)
    return (found["row"].to_numpy().astype(np.int64), found["start"].to_numpy(), found["end"].to_numpy(),
            keys.to_numpy())
