"""Near duplicates: documents whose sets of n-grams overlap, found by MinHash and locality-sensitive hashing.

Documents that share a band of their signatures are joined, and whole clusters are the connected components (Broder
1997; the parameters of Lee et al. 2022 and Penedo et al. 2023 are word 5-grams, 14 bands of 8). One document of a
cluster stays: the first in the order of reading unless the recipe says otherwise. One band is looked at at a time, so
the decision takes about 40 bytes of memory a document, however many bands there are.
"""

from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from tilth.curate.minhash import band_keys, best_bands, recall, signatures
from tilth.curate.ngrams import Unit
from tilth.curate.rules import CorpusIndex, CorpusRule

CHOSEN = "near_duplicates_chosen"


class NearDuplicates(CorpusRule):
    """Drops all but one document of every cluster of near duplicates.

    `bands` x `rows` values are computed for a document; give `threshold` instead, and at most `permutations` of them
    are divided so that recall rises most steeply at that Jaccard similarity. The report shows the recall curve.
    `keep` says which document of a cluster stays; those whose ids are among `stay` are never dropped, and the others
    of their clusters then are. Documents without any n-gram (no letter or digit) have no near duplicates.
    """

    kind: str = "near_duplicates"
    ngram: int = Field(default=5, ge=1)
    unit: Unit = "word"
    bands: int = Field(default=14, ge=1)
    rows: int = Field(default=8, ge=1)
    threshold: float | None = Field(default=None, gt=0, lt=1)
    permutations: int = Field(default=112, ge=1)
    seed: int = Field(default=1, ge=0)
    keep: Literal["first", "longest"] = "first"
    stay: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> "NearDuplicates":
        # By value, not by what was spelled out: a dumped recipe spells out everything.
        given = {name for name in ("bands", "rows", "permutations")
                 if getattr(self, name) != type(self).model_fields[name].default}
        if self.threshold is not None and given & {"bands", "rows"}:
            raise ValueError("give either `threshold` (and `permutations`) or `bands` and `rows`, not both")
        if self.threshold is None and "permutations" in given:
            raise ValueError("`permutations` says how many values a `threshold` may use; without one they are "
                             "`bands` x `rows`")
        return self

    def banding(self) -> tuple[int, int]:
        """Bands and rows."""
        return (self.bands, self.rows) if self.threshold is None else best_bands(self.threshold, self.permutations)

    def columns(self) -> list[str]:
        return [f"{self.kind}_{band:03d}" for band in range(self.banding()[0])]

    def about(self) -> dict[str, Any]:
        bands, rows = self.banding()
        grid = [0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
        curve = {f"{jaccard:g}": round(float(recall(jaccard, bands, rows)), 4) for jaccard in grid}
        return {"bands": bands, "rows": rows, "recall_at_jaccard": curve}

    def signature(self, records: pl.DataFrame) -> pl.DataFrame:
        bands, rows = self.banding()
        values, known = signatures(records["text"], self.ngram, self.unit, bands * rows, self.seed)
        keys, missing = band_keys(values, bands, rows), pl.Series(~known)
        columns = [pl.Series(name, key).set(missing, None) for name, key in zip(self.columns(), keys, strict=True)]
        return pl.DataFrame([*columns, records["id"].is_in(self.stay).alias(CHOSEN)])

    def decide(self, index: CorpusIndex) -> pl.Series:
        parent = np.arange(index.height, dtype=np.uint32)
        for name in self.columns():
            merge(parent, *equal_keys(index.select(name).to_series()))
        documents = index.select("row", "bytes", CHOSEN).with_columns(cluster=pl.Series(parent))
        members = documents.filter(pl.len().over("cluster") > 1)
        order = [~pl.col(CHOSEN), *([-pl.col("bytes").cast(pl.Int64)] if self.keep == "longest" else []), pl.col("row")]
        kept = members.group_by("cluster").agg(original=pl.col("row").sort_by(order).first())
        dropped = members.join(kept, on="cluster").filter((pl.col("row") != pl.col("original")) & ~pl.col(CHOSEN))
        return documents.join(dropped.select("row", "original"), on="row", how="left",
                              maintain_order="left")["original"]


def equal_keys(keys: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of places with equal keys: each place, but the first of a key, with that first one. Null equals nothing."""
    places = keys.is_not_null().arg_true().to_numpy().astype(np.uint32)
    values = keys.drop_nulls().to_numpy()
    order = np.argsort(values, kind="stable")
    places, values = places[order], values[order]
    new = np.ones(len(values), bool)
    new[1:] = values[1:] != values[:-1]
    first = np.maximum.accumulate(np.where(new, np.arange(len(values)), 0))
    return places[first[~new]], places[~new]


def merge(parent: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    """Join the components of all pairs, in place; `parent` holds and keeps, for each node, the least node of its
    component.

    Union-find in rounds (after Shiloach & Vishkin 1982): roots hook to the least root that a pair joins them to, then
    all paths are halved until every node points to its root.
    """
    while len(left):
        roots = parent[left], parent[right]
        apart = roots[0] != roots[1]
        left, right = left[apart], right[apart]
        np.minimum.at(parent, np.maximum(*roots)[apart], np.minimum(*roots)[apart])
        while True:
            shorter = parent[parent]
            if np.array_equal(shorter, parent):
                break
            parent[:] = shorter
