"""A selector that flattens how often concepts occur: frequent concepts are thinned, rare ones kept whole."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from tilth.curate.concepts import Concepts, read_names
from tilth.curate.lemmas import Lemmas
from tilth.data.pool import Pool
from tilth.data.seeding import generator
from tilth.recipe import BadInput
from tilth.select.protocols import Selector, SelectorConfig
from tilth.select.selectors import Chosen

BATCH = 4096  # units whose text is looked through at once


class ConceptBalance(SelectorConfig):
    """Units so that no concept occurs much more than `cap` times (the balancing of Xu et al. 2023, arXiv 2309.16671).

    Each concept of a unit keeps it with probability min(1, cap / count of the concept), and one is enough: a unit with
    a concept of at most `cap` units always stays, and a concept that is alone in its units is left with about `cap` of
    them. Instead of `cap`, `keep` says how large a share of the units is wanted. names: concepts, one a line (or a
    column `concept`); others: the share kept of units that hold none of them. Concepts are counted in the text of
    units (what their tokens decode to), after `lemmas`.
    """

    kind: str = "concepts"
    names: Path
    cap: int | None = Field(None, ge=1)
    keep: float | None = Field(None, gt=0, le=1)
    others: float = Field(1.0, ge=0, le=1)
    lemmas: Lemmas = Lemmas()

    @model_validator(mode="after")
    def _one_size(self) -> "ConceptBalance":
        if (self.cap is None) == (self.keep is None):
            raise ValueError("give either cap (units of a concept) or keep (share of the units)")
        return self

    def files(self) -> list[Path]:
        return [self.names]

    def build(self, pool: Pool, seed: int) -> Selector:
        concepts = Concepts(read_names(self.names), self.lemmas)
        unit, concept = occurrences(pool, concepts)
        if not len(unit):
            raise BadInput(f"No unit of the pool holds any of the {len(concepts.names)} concepts of {self.names}.")
        counts = np.bincount(concept, minlength=len(concepts.names))
        cap = float(self.cap) if self.cap is not None else self._cap(len(pool), unit, concept, counts)
        rng = generator(seed, "concepts")
        mask = rng.random(len(pool)) < stays(cap, len(pool), unit, concept, counts, self.others)
        return Chosen(mask, figures(mask, unit, concept, counts, cap))

    def _cap(self, units: int, unit: np.ndarray, concept: np.ndarray, counts: np.ndarray) -> float:
        """The cap that leaves `keep` of the units, in expectation, by bisection."""
        wanted = (self.keep or 1.0) * units
        low, high = 0.0, float(counts.max())
        for limit, end in ((low, "others"), (high, "keep")):
            left = stays(limit, units, unit, concept, counts, self.others).sum()
            if end == "others" and left > wanted:
                raise BadInput(f"`keep` is {self.keep:g}, but {left:.0f} of {units} units hold no concept and stay by "
                               f"`others`; lower `others`.")
            if end == "keep" and left < wanted:
                return high  # everything with a concept stays, and others are no more
        for _ in range(60):
            middle = (low + high) / 2
            left = stays(middle, units, unit, concept, counts, self.others).sum()
            low, high = (middle, high) if left < wanted else (low, middle)
        return high


def occurrences(pool: Pool, concepts: Concepts) -> tuple[np.ndarray, np.ndarray]:
    """Each (unit, concept) that occurs, once, both int64 (pairs,), sorted by unit."""
    decode, found = pool.tokenizer().inner.decode_batch, []
    for first in range(0, len(pool), BATCH):
        rows = range(first, min(first + BATCH, len(pool)))
        texts = decode([pool.get("tokens", row).tolist() for row in rows], skip_special_tokens=True)
        where, which = concepts.find(pl.Series(texts, dtype=pl.String))
        found.append((where + first, which))
    return np.concatenate([one for one, _ in found]), np.concatenate([one for _, one in found])


def stays(cap: float, units: int, unit: np.ndarray, concept: np.ndarray, counts: np.ndarray,
          others: float) -> np.ndarray:
    """The probability with which each unit stays, (units,): 1 - prod over its concepts of (1 - min(1, cap / count))."""
    goes = np.ones(units)
    np.multiply.at(goes, unit, 1 - np.minimum(1.0, cap / counts[concept]))
    some = np.zeros(units, bool)
    some[unit] = True
    return np.where(some, 1 - goes, others)


def figures(mask: np.ndarray, unit: np.ndarray, concept: np.ndarray, counts: np.ndarray, cap: float) -> dict[str, Any]:
    """What was chosen, and how even concepts are before and after: effective_concepts is exp of the entropy of their
    shares, as many as the concepts that occur if all occur equally often."""
    after = np.bincount(concept[mask[unit]], minlength=len(counts))
    return {"units": len(mask), "selected": int(mask.sum()), "cap": cap, "concepts": int((counts > 0).sum()),
            "without_concept": int(len(mask) - len(np.unique(unit))), "most_frequent": int(counts.max()),
            "most_frequent_after": int(after.max()), "effective_concepts": effective(counts),
            "effective_concepts_after": effective(after)}


def effective(counts: np.ndarray) -> float:
    """exp of the entropy of the shares of `counts`."""
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return float(np.exp(-(shares * np.log(shares)).sum()))
