"""The words of a whole batch, laid end to end, and sums of them for each document.

Where a word ends is the most consequential choice of all word rules, so it is a choice of the recipe (`splitter`):

- `whitespace`: a maximal run of characters that are not white space;
- `python`: the same as Python's `str.split()`, which also splits at U+001C to U+001F (what dolma uses);
- `tokens`: words and punctuation apart, close to the English splitter of spaCy (what datatrove uses);
- `characters`, `pieces`, `jieba`: single characters; what tokenizers cut first; Chinese words by that package;
- `package.module:Class`: an outside class that derives from `Splitter`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import polars as pl
import pyarrow as pa

from tilth.curate.loops import loops
from tilth.curate.ngrams import utf8
from tilth.recipe import BadInput, Config

PYTHON_SPACE = r"\s\x1c-\x1f"  # what str.isspace and str.split take for white space, as the inside of a class
RUNS = {r"\S+": r"\s", f"[^{PYTHON_SPACE}]+": PYTHON_SPACE}  # patterns that are runs, and what lies between these
LETTER = r"\p{L}"  # what str.isalpha takes for a letter


@dataclass(frozen=True)
class Words:
    """The words of all documents; document d has those from `starts[d]` up to `starts[d + 1]`.

    `values` (String) are these words, one by one; or, with `codes` (int32, one a word), what the words are: word i is
    `values[codes[i]]`. What is asked of words is then answered once for each value, and given to the words by `each`.
    """

    values: pl.Series
    starts: np.ndarray
    codes: np.ndarray | None = None

    def counts(self) -> np.ndarray:
        """Words of each document (int64)."""
        return np.diff(self.starts)

    def each(self, of_values: np.ndarray) -> np.ndarray:
        """What is known of each value, for each word."""
        return of_values if self.codes is None else of_values[self.codes]

    def lengths(self) -> np.ndarray:
        """Characters of each value (int64)."""
        return self.values.str.len_chars().to_numpy().astype(np.int64)

    def document(self) -> np.ndarray:
        """The document of each word (int64)."""
        return np.repeat(np.arange(len(self.starts) - 1), self.counts())

    def sums(self, of_words: np.ndarray) -> np.ndarray:
        """Sum of one number a word (integers or truth values) for each document (int64)."""
        total = np.zeros(len(of_words) + 1, np.int64)
        np.cumsum(of_words, out=total[1:], dtype=np.int64)
        return total[self.starts[1:]] - total[self.starts[:-1]]

    def totals(self, of_values: np.ndarray) -> np.ndarray:
        """As `sums`, of one number a value."""
        compiled = loops("words")
        if self.codes is None or compiled is None:
            return self.sums(self.each(of_values))
        return compiled.sums(self.codes, self.starts, of_values)

    def matching(self, *classes: str) -> list[np.ndarray]:
        """For each class of characters (the inside of a regex class) the values that hold one of them (bool).

        By a table over bytes; only values with characters beyond ASCII that the table leaves open see the regex.
        """
        if not len(self.values):
            return [np.zeros(0, bool) for _ in classes]
        array = pa.array(self.values.to_arrow(compat_level=pl.CompatLevel.oldest()), pa.large_string())
        starts = np.frombuffer(array.buffers()[1], np.int64)[array.offset:array.offset + len(array)]
        table = np.frombuffer(bytes(array.buffers()[2]).translate(_ascii_table(classes)), np.uint8)
        found = np.bitwise_or.reduceat(table, starts)
        masks = []
        for at, inside in enumerate(classes):
            mask = found >> at & 1 > 0
            open_ = np.flatnonzero(~mask & (found >= 128))
            mask[open_] = self.values.gather(open_).str.contains(f"[{inside}]").to_numpy()
            masks.append(mask)
        return masks

    def holding(self, wanted: Sequence[str]) -> np.ndarray:
        """Which values are one of `wanted`, exactly as written: 0 for none, else its place in `wanted` from 1 (uint16).
        """
        hashes = self.values.hash(seed=0).to_numpy()
        out = np.zeros(len(hashes), np.uint16)
        for at, one in enumerate(pl.Series(list(wanted), dtype=pl.String).hash(seed=0).to_list(), 1):
            out[hashes == one] = at
        return out

    @classmethod
    def of_lists(cls, lists: pl.Series) -> "Words":
        """From a column of lists, one list a document."""
        counts = lists.list.len().to_numpy().astype(np.int64)
        starts = np.concatenate([[0], np.cumsum(counts)])
        return cls(lists.filter(pl.Series(counts > 0)).explode(), starts)


def runs(texts: pl.Series, space: str) -> Words | None:
    """The runs of characters outside the class `space`, which holds none beyond U+3000; None without Numba."""
    compiled = loops("words")
    if compiled is None:
        return None
    content, offsets = utf8(texts)
    firsts, ends, hashes, starts = compiled.runs(content, offsets, *_space_tables(space))
    codes, place = compiled.numbered(hashes)  # equal where all 64 bits of the hash agree
    values, cuts = compiled.pieces(content, firsts[place], ends[place])
    array = pa.Array.from_buffers(pa.large_string(), len(place), [None, pa.py_buffer(cuts), pa.py_buffer(values)])
    return Words(pl.Series(pl.from_arrow(array)), starts, codes)


@cache
def _space_tables(space: str) -> tuple[np.ndarray, np.ndarray]:
    """Which code points up to U+3000 are in the class; and of the 256 bytes, 1 for those in it, 2 for those that begin
    a longer character in it."""
    points = pl.Series([chr(code) for code in range(0x3001)]).str.contains(f"[{space}]").to_numpy()
    kinds = np.zeros(256, np.uint8)
    kinds[:128] = points[:128]
    kinds[[chr(code).encode()[0] for code in np.flatnonzero(points[128:]) + 128]] = 2
    return points, kinds


@cache
def _ascii_table(classes: tuple[str, ...]) -> bytes:
    """For each byte the classes it is in, as bits; bytes beyond ASCII have the highest bit."""
    characters = pl.Series([chr(code) for code in range(128)])
    table = np.full(256, 128, np.uint8)
    table[:128] = 0
    for at, inside in enumerate(classes):
        table[:128] |= (characters.str.contains(f"[{inside}]").to_numpy() << at).astype(np.uint8)
    return table.tobytes()


class Splitter(Config):
    """Base of all splitters. An outside class defines `pattern`, or `split` for what no expression can say."""

    kind: str = "whitespace"

    def pattern(self) -> str:
        """A regular expression (linear engine) whose matches, from left to right, are the words."""
        return r"\S+"

    def split(self, texts: pl.Series) -> Words:
        space = RUNS.get(self.pattern())
        found = runs(texts, space) if space else None
        return found or Words.of_lists(texts.str.extract_all(self.pattern()))

    def words_of(self, texts: pl.Series) -> Words:
        """The words, remembered for the last texts: several attributes of a recipe measure the same words."""
        global _last
        buffers = texts.to_arrow(compat_level=pl.CompatLevel.newest()).buffers() if len(texts) else []
        key = (type(self), self.model_dump_json(), len(texts), *(buffer and (buffer.address, buffer.size)
                                                                for buffer in buffers))
        if _last is None or _last[0] != key:
            _last = (key, texts, self.split(texts))  # the texts are held, so that their address stays theirs
        return _last[2]


_last: tuple[tuple[object, ...], pl.Series, Words] | None = None


class PythonSplitter(Splitter):
    """As `str.split()`."""

    kind: str = "python"

    def pattern(self) -> str:
        return f"[^{PYTHON_SPACE}]+"


# The parts of `Tokens`. Classes are complements of short lists: the engine's tables stay small, hence fast.
# Joints join inside a word and are split off at its ends; hyphens, with `.` and `…`, split even in runs.
_JOINTS = r"\"“”«»`´„‚‘()\[\]{}_#*&;!?¿¡§。？！，、；：·।،۔؛٪「」『』（）〔〕【】《》〈〉"
_HYPHENS = r"\-–—~"
_SPLITS = r",:<>=/"
_SIGNS = r"%+$£€¥"
_LETTER = rf"[^\s0-9'’.…{_HYPHENS}{_SPLITS}{_JOINTS}{_SIGNS}]"
_CORE = rf"(?:{_LETTER}[^\s0-9'’.…{_HYPHENS}{_SPLITS}{_JOINTS}]*(?:[{_HYPHENS}][0-9]+)?|[0-9]+)"
_RUN = rf"[{_JOINTS}{_SPLITS}{_SIGNS}][{_JOINTS}{_SPLITS}{_SIGNS}'’{_HYPHENS}]+"  # two signs or more
# After an apostrophe: not the endings that are words of their own (he 's, do n't, we 'll).
_AFTER = rf"{_LETTER}{_LETTER}{_LETTER}+|[a-km-qs-uw-zà-ü][a-zà-ü]|l[a-km-z]|[vr][a-df-zà-ü]|[abce-knopquw-zàéèê]"
_JOINED = "|".join([
    rf"['’](?:{_AFTER})", rf"{_RUN}{_CORE}", rf"\.[{_JOINTS}{_SPLITS}'’]+{_CORE}", rf"[{_JOINTS}]*[$€£¥]\.?",
    rf"[{_JOINTS}{_SIGNS}]{_CORE}", r"\.[a-z0-9]", r"[,:<>=/][0-9]"])
_TOKENS = "|".join([
    r"(?:https?|ftp)://[^\s,;()<>\[\]{}\"]*[^\s,;.:!?()<>\[\]{}\"'’”]",
    r"[A-Z]\.(?:[A-Za-z]\.)*", r"[a-z]\.", r"(?:e\.g|i\.e|a\.m|p\.m|Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|Inc|Co|Corp|Ltd)\.",
    rf"{_CORE}(?:{_CORE}|{_JOINED})*", r"['’](?:s|S|t|m|d|ll|ve|re)", r"\.\.+", r"[\-~/]+", rf"[^\s{_HYPHENS}.…]/+",
    r"\S"])


class Tokens(Splitter):
    """Words and punctuation apart: close to spaCy's English rules, which need look-around and tables of exceptions."""

    kind: str = "tokens"

    def pattern(self) -> str:
        return _TOKENS

    def split(self, texts: pl.Series) -> Words:
        """No word reaches over white space, so each run between it is split once, however often it occurs."""
        between, compiled = runs(texts, r"\s"), loops("words")
        if between is None or compiled is None:
            return super().split(texts)
        parts = super().split(between.values)
        codes, starts = compiled.expanded(between.codes, between.starts, parts.starts)
        return Words(parts.values, starts, codes)


class Pieces(Splitter):
    """Everything, in pieces as tokenizers cut it first: letters, digits or signs with the space before them."""

    kind: str = "pieces"

    def pattern(self) -> str:
        return r" ?[\p{L}\p{M}]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}]+|\s+"


class Characters(Splitter):
    """Every character is a word; white space is none."""

    kind: str = "characters"

    def split(self, texts: pl.Series) -> Words:
        squeezed = texts.str.replace_all(r"\s+", "")
        return Words.of_lists(squeezed.to_frame("text").select(
            pl.when(pl.col("text") == "").then(pl.col("text").str.split("\n").list.head(0))
            .otherwise(pl.col("text").str.split(""))).to_series())


class Jieba(Splitter):
    """Words of Chinese by jieba's dictionary, punctuation and white space left out."""

    kind: str = "jieba"

    def split(self, texts: pl.Series) -> Words:
        try:
            import jieba
        except ImportError as error:
            raise BadInput("The splitter `jieba` needs a package of that name: pip install jieba") from error
        jieba.setLogLevel(60)
        # A loop over documents: jieba has no batch form, and takes the time itself.
        lists = [[word for word in jieba.cut(text) if word[0].isalnum()] for text in texts]
        return Words.of_lists(pl.Series(lists, dtype=pl.List(pl.String)))


SPLITTERS: dict[str, type[Splitter] | str] = {
    cls.model_fields["kind"].default: cls for cls in (Splitter, PythonSplitter, Tokens, Pieces, Characters, Jieba)}
