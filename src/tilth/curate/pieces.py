"""Lines and sentences of many texts with their places: what is classified, or told the language of, one by one."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from tilth.curate.matches import free_character

Unit = Literal["document", "line", "sentence"]

# A mark that ends sentences, closing quotes and brackets after it, then white space; scripts that write no spaces
# end a sentence at the mark. Abbreviations end one too: what is measured by sentence only wants short pieces.
SENTENCE_END = r"((?:[.!?…]+[\"'”’»)\]]*\s+)|(?:[。！？｡]+[」』”’）]*\s*))"


@dataclass(frozen=True)
class Pieces:
    """`texts` (with the break that ends them), `row` (of which text), `starts`, `ends` (its characters), in order."""

    texts: pl.Series
    row: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def lengths(self) -> np.ndarray:
        return self.ends - self.starts


def pieces(texts: pl.Series, unit: Unit) -> Pieces:
    """The pieces of all texts, end to end again the texts themselves; blank ones are left out."""
    if unit == "document":
        made = texts.to_frame("piece").select(pl.concat_list("piece")).to_series()
    else:
        made = texts.str.split("\n", inclusive=True)
    if unit == "sentence":
        mark = free_character(texts)
        cut = pl.element().str.replace_all(SENTENCE_END, f"${{1}}{mark}").str.split(mark)
        made = made.to_frame("piece").select(pl.col("piece").list.eval(cut.explode())).to_series()
    counts = made.list.len().fill_null(0).to_numpy().astype(np.int64)
    parts = made.filter(pl.Series(counts > 0)).explode() if counts.any() else pl.Series([], dtype=pl.String)
    row, lengths = np.repeat(np.arange(len(texts)), counts), parts.str.len_chars().to_numpy().astype(np.int64)
    ends = np.cumsum(lengths)
    ends -= np.concatenate([[0], ends])[np.cumsum(counts) - counts][row]  # characters of earlier texts
    some = parts.str.contains(r"\S")
    keep = some.to_numpy()
    return Pieces(parts.filter(some), row[keep], (ends - lengths)[keep], ends[keep])
