"""Rules that take single lines out of documents. All other bytes stay as they are."""

from typing import ClassVar, Literal

import numpy as np
import polars as pl
from pydantic import model_validator

from tilth.curate.attributes import TEXT
from tilth.curate.rules import DocumentRule
from tilth.curate.sets.lines import PYTHON_BREAK
from tilth.curate.sets.words import PYTHON_SPACE, Words

LINE = pl.col("line")


class DropLines(DocumentRule):
    """Takes out the lines of which one of the given conditions holds.

    `matching`, `not_matching`: regular expressions (linear engine) looked for in the line; `minimum_words` (runs of
    characters that are not white space), `maximum_word_length`, `minimum_characters`, `maximum_characters`.
    `breaks`: `newline`, or `python` for every character at which `str.splitlines` breaks; the lines that stay are then
    joined by newlines, without the white space at their ends.
    """

    kind: str = "drop_lines"
    rewrites_text: ClassVar[bool] = True
    matching: str | None = None
    not_matching: str | None = None
    minimum_words: int | None = None
    maximum_word_length: int | None = None
    minimum_characters: int | None = None
    maximum_characters: int | None = None
    breaks: Literal["newline", "python"] = "newline"

    @model_validator(mode="after")
    def _sensible(self) -> "DropLines":
        for pattern in (self.matching, self.not_matching):
            try:
                pl.Series([""]).str.contains(pattern or "")
            except pl.exceptions.ComputeError as error:
                raise ValueError(f"{pattern!r} is not a regular expression of the linear engine") from error
        if not self._conditions() and self.breaks == "newline":
            raise ValueError("give at least one of matching, not_matching, minimum_words, maximum_word_length, "
                             "minimum_characters, maximum_characters")
        return self

    def _conditions(self) -> list[pl.Expr]:
        """Each true where the line goes."""
        tests = []
        if self.matching is not None:
            tests.append(LINE.str.contains(self.matching))
        if self.not_matching is not None:
            tests.append(~LINE.str.contains(self.not_matching))
        if self.minimum_words is not None:
            tests.append(~LINE.str.contains(rf"(?:[^{PYTHON_SPACE}]+[{PYTHON_SPACE}]+){{{self.minimum_words - 1}}}"
                                            rf"[^{PYTHON_SPACE}]") if self.minimum_words else pl.lit(False))
        if self.maximum_word_length is not None:
            # Most lines are shorter than the longest word that is let through, and need no search.
            long = LINE.str.len_bytes() > self.maximum_word_length
            tests.append(long & (LINE.str.extract_all(f"[^{PYTHON_SPACE}]+").list.eval(
                pl.element().str.len_chars().max()).list.first() > self.maximum_word_length).fill_null(False))
        if self.minimum_characters is not None:
            tests.append(LINE.str.len_chars() < self.minimum_characters)
        if self.maximum_characters is not None:
            tests.append(LINE.str.len_chars() > self.maximum_characters)
        return tests

    def rewrites(self) -> pl.Expr:
        return TEXT.map_batches(self._without, return_dtype=pl.String)

    def _without(self, texts: pl.Series) -> pl.Series:
        if self.breaks == "python":
            frame = texts.to_frame("text").select(TEXT.str.replace_all(rf"\r\n|[{PYTHON_BREAK}]", "\n"))
            lines = Words.of_lists(frame.to_series().str.split("\n"))
            lines = Words(lines.values.to_frame("line").select(
                LINE.str.replace(rf"\A[{PYTHON_SPACE}]+", "").str.replace(rf"[{PYTHON_SPACE}]+\z", "")).to_series(),
                lines.starts)
            return joined(lines, self._kept(lines), "\n")
        lines = Words.of_lists(texts.str.split("\n"))
        kept = self._kept(lines)
        last = np.zeros(len(kept), bool)
        last[lines.starts[1:] - 1] = True
        ended = lines.values.to_frame("line").select(
            pl.when(pl.Series(last)).then(LINE).otherwise(LINE + "\n")).to_series()
        return joined(Words(ended, lines.starts), kept, "")

    def _kept(self, lines: Words) -> np.ndarray:
        tests = self._conditions()
        frame = lines.values.to_frame("line")
        if not tests:
            return np.ones(frame.height, bool)
        return ~frame.select(pl.any_horizontal(tests)).to_series().to_numpy()


def joined(pieces: Words, kept: np.ndarray, separator: str) -> pl.Series:
    """The pieces of each document that are kept, one after the other."""
    documents = len(pieces.starts) - 1
    frame = pl.DataFrame({"document": pl.Series(pieces.document()).set_sorted(), "line": pieces.values})
    made = frame.filter(pl.Series(kept, dtype=pl.Boolean)).group_by("document", maintain_order=True).agg(
        LINE.str.join(separator))
    out = pl.Series("text", [""] * documents, dtype=pl.String)
    return out.scatter(made["document"], made["line"]) if made.height else out
