"""How often concepts occur in captions or other text, in images, and in both: an inverted index from concept to record.

A text holds a concept if it holds every word of its name, as base forms (`tilth.curate.lemmas`), anywhere and in any
order (Udandarao et al. 2024, arXiv 2404.04125, section 3): the ids of a concept of several words are the intersection
of those of its words. A word that occurs nowhere therefore gives 0, also where the other words are common.

Words are found batch by batch as hashes (`tilth.curate.ngrams`); each new word of the vocabulary is brought to its base
form once, so that no Python runs over the words of the corpus.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tilth.curate.lemmas import Lemmas
from tilth.curate.ngrams import blocks
from tilth.recipe import BadInput

RECENT = 1 << 16  # words


class Concepts:
    """Concepts by name, and where they occur. Words of a name are separated by spaces or underscores."""

    def __init__(self, names: Sequence[str], lemmas: Lemmas | None = None):
        self.names, self.lemmas = list(names), lemmas or Lemmas()
        if len(set(self.names)) < len(self.names):
            twice = next(name for at, name in enumerate(self.names) if name in self.names[:at])
            raise BadInput(f"The concept '{twice}' is named twice.")
        self._lemma_ids: dict[str, int] = {}
        bases = self.lemmas.queries([name.replace("_", " ") for name in self.names])
        asked = [self._query(name, words) for name, words in zip(self.names, words_of(bases), strict=True)]
        self.sizes = np.array([len(ids) for ids in asked], np.int64)  # words of each concept
        # The concepts of each word, laid end to end.
        of_word = sorted((word, concept) for concept, ids in enumerate(asked) for word in ids)
        self._concepts = np.array([concept for _, concept in of_word], np.int64)
        self._starts = np.searchsorted([word for word, _ in of_word], np.arange(len(self._lemma_ids) + 1))
        # The vocabulary seen so far: hashes of words, sorted, and the id of each one's base form (-1: of no concept).
        self._hashes, self._ids = np.empty(0, np.uint64), np.empty(0, np.int64)
        # Most words are among the few that were seen last: a table by their lowest bits spares the search for them.
        self._recent, self._recent_ids = np.zeros(RECENT, np.uint64), np.full(RECENT, -1, np.int64)

    def _query(self, name: str, words: list[str]) -> list[int]:
        if not words:
            raise BadInput(f"The concept '{name}' holds no word.")
        return [self._lemma_ids.setdefault(one, len(self._lemma_ids)) for one in dict.fromkeys(
            self.lemmas.words(words))]

    def find(self, texts: Sequence[str] | pl.Series) -> tuple[np.ndarray, np.ndarray]:
        """Each (text, concept) that occurs, once: places in `texts` and in `names`, both int64 (pairs,), sorted."""
        if self.lemmas.kind == "spacy":
            texts = self.lemmas.rewritten(list(texts))
        series = pl.Series(texts, dtype=pl.String).fill_null("").str.replace_all("_", " ", literal=True)
        keys = [self._found(block, series) for block in blocks(series)]
        words = len(self._lemma_ids)
        texts_of, word_of = np.divmod(np.unique(np.concatenate([np.empty(0, np.int64), *keys])), max(words, 1))
        counts = self._starts[word_of + 1] - self._starts[word_of]
        place = np.repeat(self._starts[word_of] - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        pairs, times = np.unique(np.repeat(texts_of, counts) * len(self.names) + self._concepts[place],
                                 return_counts=True)
        whole = pairs[times == self.sizes[pairs % len(self.names)]]
        return whole // len(self.names), whole % len(self.names)

    def _found(self, block: Any, texts: pl.Series) -> np.ndarray:
        """text * words + word of every word of a block that some concept has."""
        ids = self._known(block, texts)
        some = ids >= 0
        return block.documents[block.text_of[some]] * len(self._lemma_ids) + ids[some]

    def _known(self, block: Any, texts: pl.Series) -> np.ndarray:
        """The id of each word's base form; new words join the vocabulary."""
        slots = block.hashes & np.uint64(RECENT - 1)
        ids = self._recent_ids[slots]
        missed = np.flatnonzero(self._recent[slots] != block.hashes)
        if len(missed):
            ids[missed] = self._search(block, texts, missed)
            # Of several words in one slot the last stays, in both tables.
            self._recent[slots[missed]], self._recent_ids[slots[missed]] = block.hashes[missed], ids[missed]
        return ids

    def _search(self, block: Any, texts: pl.Series, which: np.ndarray) -> np.ndarray:
        """The same for the words number `which` of a block, by the sorted vocabulary."""
        unique, first, inverse = np.unique(block.hashes[which], return_index=True, return_inverse=True)
        place = np.searchsorted(self._hashes, unique)
        known = place < len(self._hashes)
        known[known] = self._hashes[place[known]] == unique[known]
        new = np.flatnonzero(~known)
        if len(new):
            spelt = _spelt(block, texts, which[first[new]])
            ids = np.array([self._lemma_ids.get(base, -1) for base in self.lemmas.words(spelt)], np.int64)
            self._ids = np.insert(self._ids, place[new], ids)
            self._hashes = np.insert(self._hashes, place[new], unique[new])
            place = np.searchsorted(self._hashes, unique)
        return self._ids[place][inverse]


def _spelt(block: Any, texts: pl.Series, which: np.ndarray) -> Iterator[str]:
    """The words number `which` of a block, in lower case."""
    documents = block.documents[block.text_of[which]]
    held = dict(zip(np.unique(documents).tolist(), texts[np.unique(documents)].to_list(), strict=True))
    for document, start, end in zip(documents.tolist(), block.starts[which].tolist(), block.ends[which].tolist(),
                                    strict=True):
        yield held[document][start:end].lower()


def words_of(texts: Sequence[str]) -> list[list[str]]:
    """The words of each text, by the same rule as those that are counted."""
    series = pl.Series(texts, dtype=pl.String)
    found: list[list[str]] = [[] for _ in texts]
    for block in blocks(series):
        words = _spelt(block, series, np.arange(len(block.hashes)))
        for document, word in zip(block.documents[block.text_of].tolist(), words, strict=True):
            found[document].append(word)
    return found


class ConceptIndex:
    """Which records hold which concepts, gathered batch by batch: `text` and `image` pairs of (record id, concept)."""

    def __init__(self, concepts: Concepts):
        self.concepts, self.records = concepts, 0
        self._pairs: list[pl.DataFrame] = []

    def add(self, ids: Sequence[str] | pl.Series, texts: Sequence[str] | pl.Series) -> None:
        """Records, each a caption or another text, by their ids."""
        ids = pl.Series("id", ids, dtype=pl.String)
        where, which = self.concepts.find(texts)
        self._pairs.append(pl.DataFrame({"id": ids[where], "concept": which}))
        self.records += len(ids)

    def pairs(self) -> pl.DataFrame:
        """Columns id, concept (place in `concepts.names`): every concept of every record once."""
        empty = pl.DataFrame(schema={"id": pl.String, "concept": pl.Int64})
        # A concept is found once in a text; only an id that stands for several records could bring it twice.
        return pl.concat([empty, *self._pairs]).unique(maintain_order=True)

    def counts(self, pairs: pl.DataFrame | None = None) -> np.ndarray:
        """Records of each concept, int64, in the order of its names."""
        found = self.pairs() if pairs is None else pairs
        return np.bincount(found["concept"].to_numpy(), minlength=len(self.concepts.names)).astype(np.int64)


def image_pairs(path: Path, concepts: Concepts, threshold: float = 0.7) -> pl.DataFrame:
    """What a table of image attributes says: columns id, concept (place in the names), each pair once.

    path: Parquet with columns `id` and `concept` (a tag a row, by the name of the concept) and, if the tagger gives
    one, `score`: a tag counts if its score is above `threshold`. Tags that are no concept are left out.
    """
    try:
        table = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise BadInput(f"{path} cannot be read as Parquet: {error}.") from error
    missing = [name for name in ("id", "concept") if name not in table.columns]
    if missing:
        raise BadInput(f"{path} has no column {' or '.join(missing)}; it needs `id`, `concept` and perhaps `score`, a "
                       f"row for each tag of an image.")
    if "score" in table.columns:
        table = table.filter(pl.col("score") > threshold)
    places = pl.DataFrame({"concept": concepts.names, "place": np.arange(len(concepts.names))})
    found = table.select(pl.col("id").cast(pl.String), pl.col("concept").cast(pl.String)).join(places, on="concept")
    if found.is_empty():
        raise BadInput(f"{path} holds none of the concepts asked for above the threshold of {threshold:g}; are its "
                       f"tags called otherwise?")
    return found.select("id", concept="place").unique(maintain_order=True)


def matched(text: pl.DataFrame, image: pl.DataFrame) -> pl.DataFrame:
    """The pairs of (record, concept) that text and image agree on."""
    return text.join(image, on=["id", "concept"], how="semi")


def misalignment(text: pl.DataFrame, image: pl.DataFrame, records: int) -> dict[str, Any]:
    """Pairs of image and text that each hold a concept, but none in common.

    of_indexed: their share of the pairs with a concept on both sides; of_all: of all `records` (the published rates
    divide by a fixed size of the data set, which is smaller than a share of what could be judged).
    """
    both = text.select("id").unique().join(image.select("id").unique(), on="id", how="semi")
    agreeing = matched(text, image)["id"].n_unique()
    count = len(both) - agreeing
    return {"misaligned": count, "indexed": len(both), "records": records,
            "of_indexed": count / len(both) if len(both) else None, "of_all": count / records if records else None}


def read_names(path: Path) -> list[str]:
    """Names of concepts: a text file with one a line, or the column `concept` of a CSV, TSV or Parquet file."""
    try:
        if path.suffix == ".parquet":
            table = pl.read_parquet(path, columns=["concept"])
        elif path.suffix in (".csv", ".tsv"):
            table = pl.read_csv(path, separator="\t" if path.suffix == ".tsv" else ",", columns=["concept"])
        else:
            lines = path.read_text(encoding="utf-8").splitlines()
            return list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    except (OSError, UnicodeDecodeError, pl.exceptions.PolarsError) as error:
        raise BadInput(f"{path} cannot be read as names of concepts ({error}): give a text file with one a line, or a "
                       f"table with a column `concept`.") from error
    return table["concept"].cast(pl.String).unique(maintain_order=True).to_list()


def indexed(batches: Iterable[Any], concepts: Concepts) -> ConceptIndex:
    """An index over record batches with columns id and text."""
    index = ConceptIndex(concepts)
    for batch in batches:
        index.add(pl.Series(pl.from_arrow(batch.column("id"))), pl.Series(pl.from_arrow(batch.column("text"))))
    return index
