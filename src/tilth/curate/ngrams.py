"""Words and n-grams of many texts at once: hashes and character places, without a Python loop over words.

A word is a run of letters, marks, digits and underscores, in lower case; a character of a script that writes no spaces
between words is a word by itself. The texts of a batch are laid end to end, mapped character by character through a
table, and every word's polynomial hash is a difference of two prefix sums (Karp & Rabin 1987), all in numpy over blocks
that stay in the processor's cache. Texts of ASCII alone are read as bytes, others as code points; the hashes agree.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa

from tilth.curate.shingles import WORD

Unit = Literal["word", "character"]

BLOCK = 1 << 17  # characters
BASE = 0xD6E8FEB86659FD93  # odd, hence invertible modulo 2^64; 3 modulo 8, so that its powers have a long period
STEP = np.uint64(0x9E3779B97F4A7C15)
SINGLE, CHARACTER = np.uint32(1 << 31), np.uint32((1 << 21) - 1)
U64 = np.uint64


@dataclass
class Block:
    """Some texts of a batch: `documents` (their places in it), and for every unit of theirs, in order, its `hashes`
    (uint64), `text_of` (index into `documents`), `starts` and `ends` (characters of the text)."""

    documents: np.ndarray
    hashes: np.ndarray
    text_of: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def counts(self) -> np.ndarray:
        """Units of each text."""
        return np.bincount(self.text_of, minlength=len(self.documents))

    def windows(self, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Every window of `size` units: hash, first and last unit. A text of fewer units has one window of them all;
        windows come in the order of texts."""
        return windows(self.hashes, self.text_of, self.counts(), size)


def mixed(values: np.ndarray) -> np.ndarray:
    """A bijection of uint64 in which every bit of the result hangs on every bit of the value (after MurmurHash3)."""
    values = (values ^ (values >> U64(33))) * U64(0xFF51AFD7ED558CCD)
    values = (values ^ (values >> U64(33))) * U64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> U64(33))


def blocks(texts: pl.Series, unit: Unit = "word", block: int = BLOCK) -> Iterator[Block]:
    """The words (or the characters of words) of all texts, in blocks of about `block` characters of whole texts."""
    lengths = texts.str.len_chars().to_numpy().astype(np.int64)
    plain = lengths == texts.str.len_bytes().to_numpy()
    for ascii_only in (True, False):
        documents = np.flatnonzero(plain == ascii_only)
        if not len(documents):
            continue
        content, offsets = utf8(texts[documents] + "\0")
        sizes = lengths[documents] + 1
        block_of = (np.cumsum(sizes) - sizes) // block
        cuts = np.flatnonzero(np.diff(block_of, prepend=-1, append=block_of[-1] + 1))
        for first, last in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
            part = content[offsets[first]:offsets[last]].tobytes()
            signs, single = _ascii(part) if ascii_only else _code_points(part)
            starts_of = np.cumsum(sizes[first:last]) - sizes[first:last]
            yield _block(documents[first:last], starts_of, signs, single, unit)


def utf8(texts: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """UTF-8 of all texts (uint8), and the offsets at which they begin and the last ends (int64)."""
    array = pa.array(texts.to_arrow(compat_level=pl.CompatLevel.oldest()), pa.large_string())
    offsets = np.frombuffer(array.buffers()[1], np.int64)[array.offset:array.offset + len(array) + 1]
    return np.frombuffer(array.buffers()[2] or b"", np.uint8), offsets


def code_points() -> np.ndarray:
    """What each code point is to words (uint32): 0, or the lower case, with `SINGLE` where it is a word by itself."""
    return _tables()[1]


def _ascii(content: bytes) -> tuple[np.ndarray, None]:
    return np.frombuffer(content.translate(_tables()[0]), np.uint8), None


def _code_points(content: bytes) -> tuple[np.ndarray, np.ndarray | None]:
    """The characters of words in lower case, 0 for all others; and which are words by themselves."""
    points = np.frombuffer(content.decode().encode("utf-32-le"), np.uint32)
    signs = _tables()[1][points]
    return signs & CHARACTER, signs >= SINGLE


@cache
def _tables() -> tuple[bytes, np.ndarray]:
    """For ASCII (256 bytes) and for all code points (uint32): the lower case, 0 outside words, `SINGLE` added."""
    # Planes 4 to 13 are empty, and 15 and 16 are for private use: no letters there.
    points = np.r_[0:0xD800, 0xE000:0x40000, 0xE0000:0xE1000].astype(np.uint32)
    characters = pl.Series(list(points.tobytes().decode("utf-32-le")), dtype=pl.String)
    single, _, several = WORD.partition("|")
    lower = characters.str.to_lowercase().str.slice(0, 1)  # of those few that become two, the first
    table = np.zeros(0x110000, np.uint32)
    table[points] = np.frombuffer("".join(lower.to_list()).encode("utf-32-le"), np.uint32)
    table[points] *= characters.str.contains(several).to_numpy()
    alone = points[characters.str.contains(single).to_numpy()]
    table[alone] = alone | SINGLE
    return table[:128].astype(np.uint8).tobytes() + bytes(128), table


def _block(documents: np.ndarray, starts_of: np.ndarray, signs: np.ndarray, single: np.ndarray | None,
           unit: Unit) -> Block:
    if unit == "character":
        starts = np.flatnonzero(signs)
        hashes, ends = mixed(signs[starts].astype(np.uint64) * STEP), starts + 1
    else:
        starts, ends = _words(signs, single)
        hashes = _hashes(signs, starts, ends)
    bounds = np.searchsorted(starts, starts_of)
    counts = np.diff(bounds, append=len(starts))
    text_of = np.repeat(np.arange(len(documents)), counts)
    shift = np.repeat(starts_of, counts)
    return Block(documents, hashes, text_of, starts - shift, ends - shift)


def _words(signs: np.ndarray, single: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """First and past-the-last place of every word; `signs` ends with 0."""
    inside = signs != 0
    before = np.concatenate([[False], inside[:-1]])
    if single is None or not single.any():
        edges = np.flatnonzero(inside != before)
        return edges[::2], edges[1::2]
    apart = single.copy()
    apart[1:] |= single[:-1]  # a word begins at and after a character that is one by itself
    starts = np.flatnonzero(inside & (apart | ~before))
    cut = ~inside | apart
    ends = np.flatnonzero(before & cut)
    return starts, ends


@cache
def _powers() -> tuple[np.ndarray, np.ndarray]:
    """BASE^i and BASE^-i for i < BLOCK, modulo 2^64."""
    inverse = pow(BASE, -1, 1 << 64)
    factors = np.full((2, BLOCK), BASE, np.uint64)
    factors[1] = inverse
    factors[:, 0] = 1
    powers = np.cumprod(factors, axis=1)
    return powers[0], powers[1]


def _hashes(signs: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """sum_i sign_i BASE^(i - start) of every word, mixed."""
    sums = np.zeros(len(signs) + 1, np.uint64)
    powers, inverses = _powers()
    scale, scales = 1, [1]
    for at in range(0, len(signs), BLOCK):
        part = signs[at:at + BLOCK]
        into = sums[at + 1:at + 1 + len(part)]
        np.multiply(part, powers[:len(part)], out=into)
        if at:  # a text longer than a block: its later parts continue the powers
            into *= U64(scale)
        scale = scale * pow(BASE, BLOCK, 1 << 64) % (1 << 64)
        scales.append(pow(scale, -1, 1 << 64))
    np.cumsum(sums, out=sums)
    hashes = (sums[ends] - sums[starts]) * inverses[starts % BLOCK]
    if len(signs) > BLOCK:
        hashes *= np.array(scales, np.uint64)[starts // BLOCK]
    return mixed(hashes)


def windows(hashes: np.ndarray, text_of: np.ndarray, counts: np.ndarray,
            size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """See `Block.windows`."""
    rolled = hashes[:max(len(hashes) - size + 1, 0)].copy()
    for offset in range(1, size):
        rolled *= STEP
        rolled += hashes[offset:offset + len(rolled)]
    first = np.flatnonzero(text_of[:len(rolled)] == text_of[size - 1:])
    rolled, last = rolled[first], first + size - 1
    few = np.flatnonzero((counts > 0) & (counts < size))
    if len(few):
        begin = (np.cumsum(counts) - counts)[few]
        whole = np.zeros(len(few), np.uint64)
        for offset in range(size - 1):
            there = counts[few] > offset
            whole[there] = whole[there] * STEP + hashes[begin[there] + offset]
        order = np.argsort(np.concatenate([first, begin]), kind="stable")
        rolled = np.concatenate([rolled, whole])[order]
        first = np.concatenate([first, begin])[order]
        last = np.concatenate([last, begin + counts[few] - 1])[order]
    return mixed(rolled), first, last


def window_sizes(hashes: np.ndarray, sizes: Iterable[int]) -> Iterator[tuple[int, np.ndarray]]:
    """For each size, ascending: size, and a hash of that many units from each unit on, to be read before the next size
    is asked for. All sizes together cost little more than the largest.

    Unlike those of `windows`, these may reach into the next text: whoever finds one must see that its first and last
    unit are of one text.
    """
    wanted = set(sizes)
    rolled = hashes.copy()
    for size in range(1, max(wanted, default=0) + 1):
        if size > 1:
            rolled = rolled[:max(len(hashes) - size + 1, 0)]
            rolled *= STEP
            rolled += hashes[size - 1:]
        if size in wanted:
            yield size, rolled
