"""Repeated paragraphs and lines, and repeated passages: the first occurrence in the corpus stays.

Paragraphs are compared whole; passages are windows of words, wherever they begin (Lee et al. 2022 remove substrings of
50 tokens by suffix arrays; here a seeded sample of windows is looked up by its hashes, in one pass over the index).
"""

from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
from pydantic import Field

from tilth.curate.bloom import Bloom, HashSet, bloom_size
from tilth.curate.ngrams import blocks
from tilth.curate.rules import CorpusCut, CorpusIndex
from tilth.curate.spans import SPANS, span_lists

SEPARATORS = {"line": "\n", "paragraph": "\n\n"}


class SeenBefore(CorpusCut):
    """What the rules of this module share: pieces with hashes and places in the index, looked up in stable order.

    `false_positives` is the rate at which a piece that never came before may be taken for a repeated one: with it, a
    Bloom filter of 1.44 log2(1/rate) bits a piece serves; without it, a table of 64-bit hashes of at most 24 bytes.
    """

    kind: str = "seen_before"
    false_positives: float | None = Field(default=None, gt=0, lt=1)

    def about(self) -> dict[str, Any]:
        if self.false_positives is None:
            return {}
        bits, functions = bloom_size(1_000_000, self.false_positives)
        return {"bloom": {"false_positives": self.false_positives, "bits_a_piece": bits / 1e6, "functions": functions}}

    def names(self) -> list[str]:
        return [f"{self.kind}_{name}" for name in ("hash", "start", "end")]

    def stored(self, rows: int, row_of: np.ndarray, *columns: np.ndarray) -> pl.DataFrame:
        """The signature, from hash, start and end of every piece in the order of records."""
        offsets = pa.array(np.concatenate([[0], np.cumsum(np.bincount(row_of, minlength=rows))]), pa.int64())
        lists = []
        for name, values, dtype in zip(self.names(), columns, (pl.UInt64, pl.UInt32, pl.UInt32), strict=True):
            array = pl.Series(values, dtype=dtype).to_arrow()
            lists.append(pl.Series(name, pl.from_arrow(pa.LargeListArray.from_arrays(offsets, array)),
                                   dtype=pl.List(dtype)))
        return pl.DataFrame(lists)

    def cut(self, index: CorpusIndex) -> pl.Series:
        pieces = sum(int(part.to_series().list.len().sum()) for part in index.parts(self.names()[0]))
        seen = HashSet(pieces) if self.false_positives is None else Bloom(pieces, self.false_positives)
        empty = pl.Series("spans", [], dtype=SPANS)
        return pl.concat([empty, *(self._cut_part(part, seen) for part in index.parts(*self.names()))])

    def _cut_part(self, part: pl.DataFrame, seen: Bloom | HashSet) -> pl.Series:
        counts = part[self.names()[0]].list.len().to_numpy()
        row_of = np.repeat(np.arange(part.height), counts)
        there = pl.Series(counts > 0)
        hashes, starts, ends = (part[name].filter(there).explode().to_numpy() for name in self.names())
        again = seen.add(hashes)
        return span_lists(part.height, row_of[again], starts[again], ends[again])


class ParagraphDuplicates(SeenBefore):
    """Takes out every paragraph (`unit: paragraph`, up to an empty line) or line (`unit: line`) that came before.

    Paragraphs are equal if they are the same characters, but for white space at both ends. Those of fewer than
    `minimum_characters` are left where they are: much of what is short is repeated rightly (`}`, `Yes.`, `Chapter 1`).
    """

    kind: str = "paragraph_duplicates"
    unit: Literal["paragraph", "line"] = "paragraph"
    minimum_characters: int = Field(default=20, ge=1)

    def signature(self, records: pl.DataFrame) -> pl.DataFrame:
        split = records["text"].str.split(SEPARATORS[self.unit], inclusive=True)
        counts = split.list.len().to_numpy()
        pieces = split.filter(split.list.len() > 0).explode()
        key = pieces.str.strip_chars()
        lengths = pieces.str.len_chars().to_numpy().astype(np.int64)
        row_of = np.repeat(np.arange(records.height), counts)
        ends = np.cumsum(lengths)
        before = np.concatenate([[0], ends])[np.cumsum(counts) - counts]  # characters of earlier records
        ends = ends - before[row_of]
        long = (key.str.len_chars() >= self.minimum_characters).to_numpy()
        hashes = key.hash(seed=0x711714).to_numpy()
        return self.stored(records.height, row_of[long], hashes[long], (ends - lengths)[long], ends[long])


class RepeatedPassages(SeenBefore):
    """Marks (`action: cut` takes out) passages of `ngram` words or more that came before, in any document.

    Of all windows of `ngram` words one in `sample` is looked at, chosen by its hash, so that the same window is looked
    at wherever it stands (Manber 1994). A repeated passage of w words is found with probability
    1 - (1 - 1/sample)^(w - ngram + 1), and marked from the first to the last of its sampled windows.
    """

    kind: str = "repeated_passages"
    ngram: int = Field(default=50, ge=2)
    sample: int = Field(default=4, ge=1)
    action: Literal["cut", "mark"] = "mark"

    @property
    def cuts(self) -> bool:
        return self.action == "cut"

    def signature(self, records: pl.DataFrame) -> pl.DataFrame:
        found: list[list[np.ndarray]] = [[], [], [], []]
        for block in blocks(records["text"]):
            hashes, first, last = block.windows(self.ngram)
            chosen = (hashes % np.uint64(self.sample) == 0) & (last - first == self.ngram - 1)
            columns = (block.documents[block.text_of[first]], hashes, block.starts[first], block.ends[last])
            for parts, column in zip(found, columns, strict=True):
                parts.append(column[chosen])
        row_of, hashes, starts, ends = (np.concatenate(parts) if parts else np.zeros(0, np.int64) for parts in found)
        order = np.argsort(row_of, kind="stable")
        return self.stored(records.height, row_of[order], hashes[order].astype(np.uint64), starts[order], ends[order])
