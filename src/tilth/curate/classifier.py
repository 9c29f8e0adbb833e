"""Linear classifiers over hashed n-grams of text: trained from labelled text, applied at reading speed.

    p(x) = 1 / (1 + exp(-score(x))),  score(x) = bias + 1 / |B(x)| sum_{g in B(x)} w_g

B(x) holds the n-grams (`smallest` to `order`) of the words of x in lower case, or of the characters of its words, each
hashed to one of 2^bits buckets (Weinberger et al. 2009). It is fastText's bag (Joulin et al. 2017,
https://arxiv.org/abs/1607.01759) without the hidden layer, whose product with the output layer is such a w for two
classes: the same functions, in one look-up an n-gram instead of a hundred. An average, so length by itself moves no
score. The fit is `tilth.curate.linear`'s, which selection uses too.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pydantic import Field, model_validator
from safetensors.numpy import load_file, save_file

from tilth import __version__
from tilth.curate.linear import Bags
from tilth.curate.loops import loops
from tilth.curate.ngrams import STEP, Block, Unit, blocks, code_points, utf8
from tilth.recipe import BadInput, Config
from tilth.recipe.files import read_json, write_json, writing_folder

FACTS, WEIGHTS = "classifier.json", "weights.safetensors"


class Features(Config):
    """Which n-grams: of words or of characters (letters, digits and marks, running over the ends of words), from
    `smallest` to `order` of them, in 2^bits buckets."""

    unit: Unit = "word"
    smallest: int = Field(default=1, ge=1)
    order: int = Field(default=2, ge=1, le=8)
    bits: int = Field(default=20, ge=8, le=26)

    @model_validator(mode="after")
    def _in_order(self) -> "Features":
        if self.smallest > self.order:
            raise ValueError(f"smallest {self.smallest} is above order {self.order}")
        return self

    def _of_block(self, block: Block) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each size the bucket of the n-gram that begins at each unit, and whether it stays within its text."""
        rolled = block.hashes.copy()
        for size in range(1, self.order + 1):
            if size > 1:
                rolled = rolled[:max(len(rolled) - 1, 0)]
                rolled *= STEP
                rolled += block.hashes[size - 1:]
            if size >= self.smallest:
                within = block.text_of[:len(rolled)] == block.text_of[size - 1:]
                yield (rolled >> np.uint64(64 - self.bits)).astype(np.int64), within

    def bags(self, texts: pl.Series) -> tuple[np.ndarray, Bags]:
        """Places (int64) of the texts that have an n-gram, ascending, and their bags."""
        found, of = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
        for block in blocks(texts, self.unit):
            for buckets, within in self._of_block(block):
                found.append(buckets[within].astype(np.int32))
                of.append(block.documents[block.text_of[:len(buckets)][within]])
        text = np.concatenate(of)
        order = np.argsort(text, kind="stable")
        places, starts, counts = np.unique(text[order], return_index=True, return_counts=True)
        return places, Bags(np.concatenate(found)[order], starts, counts)

    def scores(self, texts: pl.Series, weights: np.ndarray, bias: float) -> np.ndarray:
        """bias + mean weight of each text's n-grams, float64 (texts,); `bias` for a text without any."""
        compiled = loops("scores")
        if compiled is not None:
            sums, counts = compiled.sums(*utf8(texts), code_points(), self.unit == "character", self.smallest,
                                         self.order, self.bits, weights)
            return bias + sums / np.maximum(counts, 1)
        sums, counts = np.zeros(len(texts)), np.zeros(len(texts), np.int64)
        for block in blocks(texts, self.unit):
            units = block.counts()
            there = np.flatnonzero(units)
            begin = (np.cumsum(units) - units)[there]
            documents = block.documents[there]
            for (buckets, within), size in zip(self._of_block(block), range(self.smallest, self.order + 1),
                                               strict=True):
                values = np.zeros(len(block.hashes), np.float32)
                np.multiply(weights[buckets], within, out=values[:len(buckets)])
                sums[documents] += np.add.reduceat(values, begin, dtype=np.float64) if len(begin) else 0.0
                counts[documents] += np.maximum(units[there] - size + 1, 0)
        return bias + sums / np.maximum(counts, 1)


@dataclass(frozen=True)
class Classifier:
    """A trained classifier: `weights` float32 (2^bits,), `bias`; `facts`: what it was trained on and how good it is."""

    features: Features
    weights: np.ndarray
    bias: float
    positive: str = "1"
    facts: dict[str, Any] = field(default_factory=dict)

    def probabilities(self, texts: pl.Series) -> np.ndarray:
        """Probability of the positive label, float64 (texts,)."""
        return 1 / (1 + np.exp(-np.clip(self.features.scores(texts, self.weights, self.bias), -700, 700)))

    def save(self, folder: Path | str) -> None:
        """Write `classifier.json` and `weights.safetensors`; the folder appears whole or not at all."""
        with writing_folder(folder) as inside:
            save_file({"weights": self.weights}, inside / WEIGHTS)
            write_json(inside / FACTS, {"version": __version__, "positive": self.positive, "bias": self.bias,
                                        "features": self.features.model_dump(), **self.facts})

    @classmethod
    def load(cls, folder: Path | str) -> "Classifier":
        """Read what `save` wrote. BadInput if it is not that."""
        folder = Path(folder)
        known = {key: value for key, value in read_json(folder / FACTS).items() if key != "version"}
        try:
            features = Features(**known.pop("features"))
            bias, positive = float(known.pop("bias")), str(known.pop("positive"))
            weights = load_file(folder / WEIGHTS)["weights"]
        except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
            raise BadInput(f"{folder} does not hold a classifier: {error}. Train one with `tilth classifier train`."
                           ) from error
        if weights.shape != (1 << features.bits,) or weights.dtype != np.float32:
            raise BadInput(f"{folder / WEIGHTS} holds weights {weights.dtype} {weights.shape}; {features.bits} bits "
                           f"need float32 ({1 << features.bits},).")
        return cls(features, weights, bias, positive, known)


def loaded(folder: str) -> Classifier:
    """The classifier of a folder, read once as long as its files stay the same."""
    try:
        times = tuple((Path(folder) / name).stat().st_mtime_ns for name in (FACTS, WEIGHTS))
    except OSError as error:
        raise BadInput(f"{folder} does not hold a classifier: {error}. Train one with `tilth classifier train`."
                       ) from error
    return _loaded(folder, times)


@lru_cache(maxsize=8)
def _loaded(folder: str, times: tuple[int, ...]) -> Classifier:
    return Classifier.load(folder)
