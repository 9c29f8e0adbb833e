"""Exact duplicates: the first document of a text stays, in the order of reading, across all inputs and shards.

Texts are the same if they are equal in NFC with every run of white space as one space. The 128-bit BLAKE2b digest
that stands for a text cannot be made to collide by a corpus that tries; by chance, a billion documents collide with
probability below 1e-20.
"""

from hashlib import blake2b
from itertools import pairwise

import numpy as np
import polars as pl
import pyarrow as pa

from tilth.curate.attributes import TEXT
from tilth.curate.rules import CorpusIndex, CorpusRule

HIGH, LOW = "exact_duplicates_high", "exact_duplicates_low"


def normalised(text: pl.Expr) -> pl.Expr:
    """NFC, stripped, every run of white space one space."""
    return text.str.replace_all(r"\s+", " ").str.strip_chars().str.normalize("NFC")


def digests(texts: pl.Series) -> np.ndarray:
    """BLAKE2b-128 of each text, as uint64 of shape (documents, 2)."""
    array = pa.array(texts.to_arrow(compat_level=pl.CompatLevel.oldest()), pa.large_string())
    ends = np.frombuffer(array.buffers()[1], np.int64)[array.offset:array.offset + len(array) + 1].tolist()
    content = memoryview(array.buffers()[2] or b"")
    # A loop over documents: hashlib offers no batch form, and hashing itself is what takes the time.
    joined = b"".join(blake2b(content[start:end], digest_size=16).digest()
                      for start, end in pairwise(ends))
    return np.frombuffer(joined, "<u8").reshape(-1, 2)


class ExactDuplicates(CorpusRule):
    """Drops every document whose normalised text came before."""

    kind: str = "exact_duplicates"

    def signature(self, records: pl.DataFrame) -> pl.DataFrame:
        found = digests(records.select(normalised(TEXT)).to_series())
        return pl.DataFrame({HIGH: found[:, 0], LOW: found[:, 1]}, schema={HIGH: pl.UInt64, LOW: pl.UInt64})

    def decide(self, index: CorpusIndex) -> pl.Series:
        first = pl.col("row").first().over(HIGH, LOW)
        original = pl.when(first != pl.col("row")).then(first).alias("original")
        return index.select("row", HIGH, LOW).select(original).to_series()
