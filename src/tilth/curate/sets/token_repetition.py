"""Sequences of tokens that repeat at once, three times or more: `buy now buy now buy now`.

After Dolma's `tokenizer_repetitions_v2r2` (Soldaini et al. 2024, arXiv 2402.00159): tokens with periods of 1 to 13;
v1.6 drops a document whose longest repetition has 100 characters or more (its configuration speaks of tokens).
"""

from typing import ClassVar

import numpy as np
import polars as pl
from pydantic import Field

from tilth.curate.attributes import Attribute
from tilth.curate.sets.frame import MeasuredSet
from tilth.curate.sets.words import SPLITTERS, Pieces, Splitter
from tilth.recipe import one_of

COLUMNS = ("token_repetition_times", "token_repetition_characters", "token_repetition_share")


class TokenRepetitionMeasures(Attribute):
    """The most times a sequence repeats at once, the characters of the longest such stretch, and the share of
    characters in such stretches (each counted once)."""

    kind: str = "token_repetition"
    prefix: str = ""
    splitter: one_of(Splitter, SPLITTERS) = Field(default_factory=Pieces)  # type: ignore[valid-type]
    longest_period: int = Field(13, ge=1)
    minimum_times: int = Field(3, ge=2)

    def columns(self) -> tuple[str, ...]:
        return tuple(self.prefix + name for name in COLUMNS)

    def measure(self, records: pl.DataFrame) -> pl.DataFrame:
        words = self.splitter.words_of(records["text"])
        times, longest = np.zeros(records.height, np.int64), np.zeros(records.height, np.int64)
        lengths = words.each(words.lengths())
        ends = np.concatenate([[0], np.cumsum(lengths)])
        covered = np.zeros(len(lengths) + 1, np.int64)
        hashes, document = words.each(words.values.hash(seed=0).to_numpy()), words.document()
        for period in range(1, self.longest_period + 1):
            starts, stops = stretches(hashes, document, period, self.minimum_times)
            np.maximum.at(times, document[starts], (stops - starts) // period)
            np.maximum.at(longest, document[starts], ends[stops] - ends[starts])
            np.add.at(covered, starts, 1)
            np.add.at(covered, stops, -1)
        inside = words.sums(lengths * (np.cumsum(covered)[:-1] > 0))
        whole = np.maximum(words.sums(lengths), 1)
        return pl.DataFrame(dict(zip(self.columns(), (times, longest, inside / whole), strict=True)))


def stretches(hashes: np.ndarray, document: np.ndarray, period: int, times: int) -> tuple[np.ndarray, np.ndarray]:
    """First token and end of every longest stretch in which each token equals the one `period` before it, and that
    holds the period at least `times` times."""
    if len(hashes) <= period:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    same = np.zeros(len(hashes) - period + 2, np.int8)
    same[1:-1] = (hashes[period:] == hashes[:-period]) & (document[period:] == document[:-period])
    change = np.diff(same)
    starts, stops = np.flatnonzero(change > 0), np.flatnonzero(change < 0) + period
    enough = stops - starts >= times * period
    return starts[enough], stops[enough]


class TokenRepetition(MeasuredSet):
    """Drops documents with long stretches of repetition. A threshold of null switches its rule off.

    Tokens are runs of letters, of digits or of signs with the space before them, or those of `splitter`.
    """

    LIMITS: ClassVar[dict[str, tuple[str, str]]] = {
        "maximum_times": (COLUMNS[0], "maximum"), "maximum_characters": (COLUMNS[1], "maximum"),
        "maximum_share": (COLUMNS[2], "maximum")}

    kind: str = "token_repetition"
    splitter: one_of(Splitter, SPLITTERS) = Field(default_factory=Pieces)  # type: ignore[valid-type]
    maximum_times: float | None = None
    maximum_characters: float | None = 99
    maximum_share: float | None = None

    def attribute(self) -> TokenRepetitionMeasures:
        return TokenRepetitionMeasures(prefix=self.prefix, splitter=self.splitter)
