"""Gopher's repetition rules: repeated lines, paragraphs and n-grams of words.

Rae et al. 2021 (arXiv 2112.11446), table A1: at most 0.30 of lines and of paragraphs, and 0.20 of characters, in
repeated lines and paragraphs; at most 0.20, 0.18, 0.16 of characters in the most frequent 2-, 3-, 4-gram; at most
0.15, 0.14, 0.13, 0.12, 0.11, 0.10 in n-grams of 5 to 10 words that occur more than once, overlaps counted once.
"""

from typing import Any, ClassVar

import numpy as np
import polars as pl
from pydantic import Field

from tilth.curate.attributes import TEXT, Attribute
from tilth.curate.sets.frame import SHORT, MeasuredSet, Profile
from tilth.curate.sets.lines import Pieces, python_stripped, stripped_lines, stripped_paragraphs
from tilth.curate.sets.ratios import ratio
from tilth.curate.sets.repeats import Repeats, repeats
from tilth.curate.sets.words import SPLITTERS, Splitter, Words
from tilth.recipe import one_of

TOP, DUPLICATED = range(2, 5), range(5, 11)
LINES = ("duplicate_lines", "duplicate_line_characters")
PARAGRAPHS = ("duplicate_paragraphs", "duplicate_paragraph_characters")
NGRAMS = (*(f"top_{n}_gram" for n in TOP), *(f"duplicated_{n}_grams" for n in DUPLICATED))


class GopherRepetitionMeasures(Attribute):
    """Shares of lines, paragraphs and characters that are repetition, for one profile; see `GopherRepetition`."""

    kind: str = "gopher_repetition"
    profile: Profile = "default"
    prefix: str = ""
    splitter: one_of(Splitter, SPLITTERS) = Field(default_factory=Splitter)  # type: ignore[valid-type]

    def columns(self) -> tuple[str, ...]:
        names = LINES + (() if self.profile == "dolma-1.2.1" else PARAGRAPHS) + NGRAMS
        return tuple(f"{self.prefix}{SHORT[self.profile]}gopher_{name}" for name in names)

    def measure(self, records: pl.DataFrame) -> pl.DataFrame:
        ngrams = Ngrams(self.splitter.words_of(records["text"]), self.profile, records)
        values = [*self._pieces(records, ngrams), *ngrams.shares()]
        return pl.DataFrame(dict(zip(self.columns(), values, strict=True)))

    def _pieces(self, records: pl.DataFrame, ngrams: "Ngrams") -> list[np.ndarray]:
        if self.profile == "dolma-1.2.1":
            lines = Pieces.of(records, TEXT.str.split("\n"))
            again, characters = lines.repeated(all_of_them=True)
            return [ratio(again, lines.words.counts()), ratio(characters, ngrams.characters)]
        if self.profile == "default":
            splits, whole = (stripped_lines(), stripped_paragraphs()), None
        else:
            splits = (TEXT.str.replace_all("\n+", "\n").str.split("\n"),
                      python_stripped().str.replace_all("\n\n+", "\x00").str.split("\x00"))
            whole = ngrams.text_characters
        values = []
        for expression in splits:
            pieces = Pieces.of(records, expression)
            again, characters = pieces.repeated()
            values += [ratio(again, pieces.words.counts()),
                       ratio(characters, pieces.words.sums(pieces.words.lengths()) if whole is None else whole)]
        return values


class Ngrams:
    """The n-gram shares of a batch. `ends` are cumulated characters of words: words i up to j hold ends[j] - ends[i].
    """

    def __init__(self, words: Words, profile: str, records: pl.DataFrame):
        self.words, self.profile, self.documents = words, profile, records.height
        lengths = words.lengths()
        self.ends = np.concatenate([[0], np.cumsum(words.each(lengths))])
        self.cumulated = np.concatenate([[0], np.cumsum(self.ends)])  # sums of ends before each place
        self.document = words.document()
        self.characters = words.totals(lengths)
        self.text_characters = records["text"].str.len_chars().to_numpy().astype(np.int64)

    def shares(self) -> list[np.ndarray]:
        """The columns of NGRAMS, in order."""
        duplicated = {"default": self._duplicated, "dolma-1.2.1": self._duplicated_dolma,
                      "datatrove-0.10.1": self._duplicated_datatrove}[self.profile]
        parts = np.zeros((len(TOP) + len(DUPLICATED), self.documents))
        for n in TOP:
            if self.profile != "default":  # where nothing repeats, the peers take the first n-gram for the top one
                parts[n - TOP.start] = self._first(n)
        for chunk in repeats(self.words, range(TOP.start, DUPLICATED.stop)):
            for found in chunk:
                row = parts[found.size - TOP.start]
                if found.size in TOP:
                    self._top(found, row)
                else:
                    duplicated(found, row)
        whole = self.text_characters if self.profile == "datatrove-0.10.1" else self.characters
        wholes = [whole] * len(parts)
        if self.profile == "dolma-1.2.1":
            wholes[len(TOP):] = [self._windows(n) for n in DUPLICATED]
        return [ratio(part, of) for part, of in zip(parts, wholes, strict=True)]

    def _span(self, places: np.ndarray, size: int) -> np.ndarray:
        return self.ends[places + size] - self.ends[places]

    def _joined(self, size: int) -> int:
        return size - 1 if self.profile == "datatrove-0.10.1" else 0  # it counts the spaces that it joins words with

    def _first(self, size: int) -> np.ndarray:
        starts = self.words.starts[:-1]
        long = self.words.counts() >= size
        out = np.zeros(self.documents)
        out[long] = self._span(starts[long], size) + self._joined(size)
        return out

    def _windows(self, size: int) -> np.ndarray:
        """Characters of all windows of a size, per document."""
        starts, ends = self.words.starts[:-1], self.words.starts[1:]
        first = np.minimum(starts + size, ends + 1)  # a document of fewer words has no window
        last = np.maximum(ends - size + 1, starts)
        return self.cumulated[ends + 1] - self.cumulated[first] - (self.cumulated[last] - self.cumulated[starts])

    def _top(self, found: Repeats, row: np.ndarray) -> None:
        """The most frequent n-gram: of several, the peers take the first, the default the one that covers most."""
        if not len(found.first):
            return
        place, counts = found.places[found.first], found.counts()
        if self.profile == "default":
            covered = np.add.reduceat(self._new(found), found.first)
            tie = -covered
        else:
            covered = (self._span(place, found.size) + self._joined(found.size)) * counts
            tie = place
        document = self.document[place]
        order = np.lexsort((tie, -counts, document))
        best = order[np.flatnonzero(np.diff(document[order], prepend=-1))]
        row[document[best]] = covered[best]

    def _new(self, found: Repeats) -> np.ndarray:
        """Characters of each window that the one before it in its group does not hold."""
        before = np.empty_like(found.places)
        before[1:] = found.places[:-1] + found.size
        before[found.first] = 0
        return self.ends[found.places + found.size] - self.ends[np.maximum(found.places, before)]

    def _duplicated(self, found: Repeats, row: np.ndarray) -> None:
        """Characters at places that a repeated n-gram covers, each once."""
        places = np.sort(found.places)
        everything = Repeats(found.size, places, np.zeros(len(places), np.int64), np.zeros(min(1, len(places)), int))
        np.add.at(row, self.document[places], self._new(everything))

    def _duplicated_dolma(self, found: Repeats, row: np.ndarray) -> None:
        np.add.at(row, self.document[found.places], self._span(found.places, found.size))

    def _duplicated_datatrove(self, found: Repeats, row: np.ndarray) -> None:
        """Its walk from left to right: a known n-gram counts and is skipped whole, a new one becomes known.

        A loop, since every step depends on the last; but only over what repeats, a few of a hundred words.
        """
        order = np.argsort(found.places)
        known, hits, free, size = set(), [], 0, found.size
        for place, group in zip(found.places[order].tolist(), found.group[order].tolist(), strict=True):
            if place < free:
                continue
            if group in known:
                hits.append(place)
                free = place + size
            else:
                known.add(group)
        places = np.array(hits, np.int64)
        np.add.at(row, self.document[places], self._span(places, size))


class GopherRepetition(MeasuredSet):
    """Gopher's repetition rules. A threshold of null switches its rule off.

    Definitions of the default profile: lines and paragraphs without the white space at their ends, blank ones not
    counted; what came before in the document is a duplicate; shares of characters are shares of the characters of
    all lines, paragraphs or words. An n-gram that occurs once is no repetition; characters covered twice count once.
    `dolma-1.2.1` (`gopher_v1`): lines with spaces over characters without them, so that two equal lines can give 1.5;
    the top n-gram counts even where it occurs once; duplicated n-grams as a share of all n-grams; no paragraphs.
    `datatrove-0.10.1`: shares of all characters; duplicated n-grams by a walk that skips what it knows; a top n-gram
    that occurs once counts, which drops short documents.
    """

    LIMITS: ClassVar[dict[str, tuple[str, str]]] = {
        f"maximum_{name}": (f"gopher_{name}", "maximum") for name in (*LINES, *PARAGRAPHS, *NGRAMS)}
    PROFILES: ClassVar[dict[str, dict[str, Any]]] = {
        "dolma-1.2.1": {"splitter": "python", "maximum_duplicate_line_characters": 0.3,
                        "maximum_duplicate_paragraphs": None, "maximum_duplicate_paragraph_characters": None},
        "datatrove-0.10.1": {"splitter": "tokens"}}

    kind: str = "gopher_repetition"
    splitter: one_of(Splitter, SPLITTERS) = Field(default_factory=Splitter)  # type: ignore[valid-type]
    maximum_duplicate_lines: float | None = 0.3
    maximum_duplicate_line_characters: float | None = 0.2
    maximum_duplicate_paragraphs: float | None = 0.3
    maximum_duplicate_paragraph_characters: float | None = 0.2
    maximum_top_2_gram: float | None = 0.2
    maximum_top_3_gram: float | None = 0.18
    maximum_top_4_gram: float | None = 0.16
    maximum_duplicated_5_grams: float | None = 0.15
    maximum_duplicated_6_grams: float | None = 0.14
    maximum_duplicated_7_grams: float | None = 0.13
    maximum_duplicated_8_grams: float | None = 0.12
    maximum_duplicated_9_grams: float | None = 0.11
    maximum_duplicated_10_grams: float | None = 0.1

    def attribute(self) -> GopherRepetitionMeasures:
        return GopherRepetitionMeasures(profile=self.profile, prefix=self.prefix, splitter=self.splitter)
