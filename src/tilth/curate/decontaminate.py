"""Decontamination: documents that hold evaluation items are dropped, or the items taken out of them.

What is measured is containment: the share of an item's n-grams that a document holds. Jaccard similarity, which some
published pipelines use, is small for a long document even when it quotes a question in full. An item of fewer words
than an n-gram is looked for as a whole. (Brown et al. 2020 remove around any shared 13-gram; Soldaini et al. 2024
remove documents with a paragraph of at least 13 words of an evaluation set.)
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from pydantic import Field

from tilth.curate.attributes import Attribute
from tilth.curate.evaluation_items import Evaluation, Items, Match, load, whole_keys
from tilth.curate.ngrams import blocks, window_sizes
from tilth.curate.rules import DocumentRule
from tilth.curate.spans import SPANS, span_lists, without
from tilth.data import locations
from tilth.recipe import Config


class Against(Config):
    """What is looked for, and how.

    `match`: `ngram` (windows of `ngram` words wherever they stand), `paragraph` (equal lines of at least `ngram` words)
    or `document` (equal documents). All compare words in lower case, without punctuation. An item is held if a document
    has at least one of its n-grams and at least the share `overlap` of them. Items of fewer than `minimum_words` words
    are not looked for (they would be found anywhere).
    """

    evaluation: list[Evaluation] = Field(min_length=1)
    match: Match = "ngram"
    ngram: int = Field(default=13, ge=2)
    minimum_words: int = Field(default=5, ge=1)
    overlap: float = Field(default=0, ge=0, le=1)
    prefix: str = "contamination"

    def reads(self) -> list[str]:
        return [path for one in self.evaluation for path in locations.expand(one.path)]

    def items(self) -> Items:
        return load(self.evaluation, self.match, self.ngram, min(self.minimum_words, self.ngram))


class Contamination(Against, Attribute):
    """`PREFIX_item` (the item held most fully, as `file:line field`; null if none), `PREFIX_share` (of its n-grams
    that the document holds; 0 if none is held) and `PREFIX_spans` (of all held items)."""

    kind: str = "contamination"

    def columns(self) -> tuple[str, ...]:
        return tuple(f"{self.prefix}_{name}" for name in ("item", "share", "spans"))

    def measure(self, records: pl.DataFrame) -> pl.DataFrame:
        items = self.items()
        row, entry, size, start, end = self._hits(records["text"], items)
        item, share = self._held(row, entry, size, items)
        held = share >= max(self.overlap, 1e-12)
        row, item, share, start, end = row[held], item[held], share[held], start[held], end[held]
        best = np.lexsort((item, -share, row))
        best = best[np.diff(row[best], prepend=-1) > 0]
        names, shares = np.full(records.height, None, object), np.zeros(records.height)
        names[row[best]] = [items.names[at] for at in item[best].tolist()]
        shares[row[best]] = share[best]
        return pl.DataFrame([
            pl.Series(self.columns()[0], names.tolist(), dtype=pl.String), pl.Series(self.columns()[1], shares),
            span_lists(records.height, row, start, end).alias(self.columns()[2])])

    def _hits(self, texts: pl.Series, items: Items) -> Sequence[np.ndarray]:
        """For every window that an item has: row, entry of the look-up, size, first and past-the-last character."""
        found: list[tuple[np.ndarray, ...]] = [tuple(np.zeros(0, np.int64) for _ in range(5))]
        if self.match != "ngram":
            row_of, starts, ends, keys = whole_keys(texts, self.match, self.ngram if self.match == "paragraph" else 1)
            place, entry = items.lookups[0].find(keys)
            found.append((row_of[place], entry, np.zeros_like(entry), starts[place], ends[place]))
            return [np.concatenate(part) for part in zip(*found, strict=True)]
        for block in blocks(texts):
            for size, hashes in window_sizes(block.hashes, items.lookups):
                first, entry = items.lookups[size].find(hashes)
                last = first + size - 1
                whole = block.text_of[first] == block.text_of[last]  # not reaching into the next text
                first, last, entry = first[whole], last[whole], entry[whole]
                found.append((block.documents[block.text_of[first]], entry, np.full_like(entry, size),
                              block.starts[first], block.ends[last]))
        return [np.concatenate(part) for part in zip(*found, strict=True)]

    @staticmethod
    def _held(row: np.ndarray, entry: np.ndarray, size: np.ndarray, items: Items) -> tuple[np.ndarray, np.ndarray]:
        """The item of every hit, and the share of that item's n-grams that the row holds."""
        item = np.zeros(len(row), np.int64)
        for one, lookup in items.lookups.items():
            item[size == one] = lookup.item_of[entry[size == one]]
        # An n-gram counts once for a row; an entry belongs to one item, and an item to one size.
        entries = max((len(lookup.hashes) for lookup in items.lookups.values()), default=0) + 1
        _, once = np.unique((row * (max(items.lookups, default=0) + 1) + size) * entries + entry, return_index=True)
        pair = row * len(items.names) + item
        pairs, counts = np.unique(pair[once], return_counts=True)
        return item, counts[np.searchsorted(pairs, pair)] / items.counts[item]


class Decontaminate(Against, DocumentRule):
    """Drops documents that hold an evaluation item (`action: drop`), or cuts the n-grams out (`action: cut`); then
    documents of which nothing but white space is left are dropped. The attributes say which item was held."""

    kind: str = "decontaminate"
    action: str = Field(default="drop", pattern="^(drop|cut)$")

    @property
    def rewrites_text(self) -> bool:  # type: ignore[override]
        return self.action == "cut"

    def contamination(self) -> Contamination:
        return Contamination(**{name: getattr(self, name) for name in Against.model_fields})

    def about(self) -> dict[str, Any]:
        items = self.items()
        return {"items": len(items.names), "items_too_short": items.short}

    def measures(self) -> tuple[Attribute, ...]:
        return (self.contamination(),)

    def needs(self) -> tuple[str, ...]:
        return self.contamination().columns()

    def drops(self) -> pl.Expr:
        if self.action == "cut":
            return pl.col("text").str.strip_chars() == ""
        return pl.col(self.needs()[0]).is_not_null()

    def rewrites(self) -> pl.Expr | None:
        if self.action == "drop":
            return None
        spans = self.needs()[2]
        return pl.struct("text", spans).map_batches(
            lambda both: without(both.struct.field("text"), both.struct.field(spans).cast(SPANS)),
            return_dtype=pl.String)

    def why(self) -> pl.Expr:
        if self.action == "cut":
            return pl.lit("nothing is left without evaluation items")
        item, share, _ = self.needs()
        return pl.format("holds {} % of {}", (pl.col(share) * 100).round(0).cast(pl.Int64), pl.col(item))
