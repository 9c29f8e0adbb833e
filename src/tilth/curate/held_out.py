"""The held-out part: whole documents that nothing is trained on, chosen by a hash of (seed, id).

The choice is stratified: every source gives its part, so that quality can be told by source. Documents of the
training part that nearly copy a held-out one are removed from training, never the other way round: the held-out
text depends on the corpus, the seed and nothing else.
"""

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
import polars as pl
from pydantic import Field

from tilth.recipe import BadInput, Config

NAME = "held_out"
NEAR_COPIES = "near_copies_of_held_out"


class HeldOut(Config):
    """At least `minimum_bytes` of text, at most `share` of the corpus; a document of the training part is a near
    copy if more than `overlap` of its windows of `shingle_words` words are held out, or if it holds more than that
    of one held-out document."""

    minimum_bytes: int = Field(default=1 << 20, ge=1)
    share: float = Field(default=0.1, gt=0, lt=1)
    shingle_words: int = Field(default=8, ge=1)
    overlap: float = Field(default=0.5, gt=0, le=1)


def draw(seed: int, ids: Iterable[str]) -> np.ndarray:
    """The place of each document in the draw: uint64 from BLAKE2b of (seed, id), the same on every machine."""
    prefix = f"{seed}\0".encode()
    # A loop over documents, about a microsecond each: ids are short and hashlib has no batch form.
    joined = b"".join(blake2b(prefix + identity.encode(), digest_size=8).digest() for identity in ids)
    return np.frombuffer(joined, "<u8")


def choose(index: pl.DataFrame, options: HeldOut) -> np.ndarray:
    """Which documents are held out: bool of shape (rows of `index`,).

    `index` has `source`, `bytes` and `draw`. Each source gives the first documents of the draw until it has given its
    part of `minimum_bytes`, never more than `share` of its own text; what is then missing comes from all sources.
    BadInput if the corpus is too small.
    """
    total = int(index["bytes"].sum())
    limit = int(total * options.share)
    if limit < options.minimum_bytes:
        raise _too_small(total, options)
    source_bytes = pl.col("bytes").sum().over("source")
    ranked = index.select("source", "draw", "bytes", source_bytes.alias("of_source")).with_row_index("at").sort(
        "draw", "at").with_columns(
        fits=pl.col("bytes") <= (pl.col("of_source") * options.share).floor(),
        quota=pl.col("of_source") * options.minimum_bytes / total)
    given = pl.col("bytes").cum_sum().over("source")
    first = ranked.filter("fits").with_columns(given=given).filter(
        (pl.col("given") - pl.col("bytes") < pl.col("quota"))
        & (pl.col("given") <= (pl.col("of_source") * options.share).floor()))
    chosen = np.zeros(index.height, bool)
    chosen[first["at"].to_numpy()] = True
    _fill(chosen, ranked, int(first["bytes"].sum()), limit, options, total)
    return chosen


def _fill(chosen: np.ndarray, ranked: pl.DataFrame, have: int, limit: int, options: HeldOut, total: int) -> None:
    """Take further documents in the order of the draw until `minimum_bytes` are held out."""
    at, sizes = ranked["at"].to_numpy(), ranked["bytes"].to_numpy()
    for place, size in zip(at, sizes, strict=True):  # ends after few documents: only a rest is missing
        if have >= options.minimum_bytes:
            return
        if not chosen[place] and have + size <= limit:
            chosen[place] = True
            have += int(size)
    if have < options.minimum_bytes:
        raise _too_small(total, options)


def _too_small(total: int, options: HeldOut) -> BadInput:
    wanted = min(options.minimum_bytes / max(total, 1) * 1.2, 0.5)
    return BadInput(
        f"The corpus has {total:,} bytes after the rules, and at most {options.share:g} of it may be held out in whole "
        f"documents; that does not give the {options.minimum_bytes:,} bytes of `held_out.minimum_bytes`. Add text, "
        f"set `held_out.minimum_bytes` to at most {int(total * options.share * 0.8):,}, or raise `held_out.share` "
        f"(about {wanted:.2g} would do).")
