"""Concepts are counted as the worked captions say, and as an index made word by word in Python would."""

import sys
import types
from collections import defaultdict

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilth.curate.concepts import ConceptIndex, Concepts, image_pairs, matched, misalignment, read_names
from tilth.curate.lemmas import IRREGULAR, SINGULAR, Lemmas, lemma
from tilth.recipe import BadInput

CAPTIONS = ["a man wears a hat", "a dog runs in grass", "man and dog", "hats on a dog"]


def index_of(names, texts, lemmas=None, batch=None):
    index = ConceptIndex(Concepts(names, lemmas))
    for at in range(0, len(texts), batch or len(texts)):
        part = texts[at:at + (batch or len(texts))]
        index.add([str(at + place) for place in range(len(part))], part)
    return index


def counted(names, texts, lemmas=None):
    return dict(zip(names, index_of(names, texts, lemmas).counts().tolist(), strict=True))


def test_worked_captions():
    names = ["man", "dog", "hat", "dog hat", "cat", "Dog_Hat", "hat cat"]
    assert counted(names, CAPTIONS) == {"man": 2, "dog": 3, "hat": 2, "dog hat": 1, "cat": 0, "Dog_Hat": 1,
                                        "hat cat": 0}


def test_a_word_that_occurs_nowhere_gives_0_and_not_all_of_the_rest():
    texts = ["a kingbird", "two kingbirds", "tropical fish"]
    assert counted(["tropical kingbird", "western kingbird", "kingbird"], texts) == {
        "tropical kingbird": 0, "western kingbird": 0, "kingbird": 2}


def test_numbers_keep_types_apart():
    assert counted(["737-300", "737-200", "boeing"], ["Boeing 737-300", "a Boeing 737 (200 seats)"]) == {
        "737-300": 1, "737-200": 1, "boeing": 2}


@pytest.mark.parametrize(("word", "base"), [
    ("hats", "hat"), ("men", "man"), ("berries", "berry"), ("movies", "movie"), ("dresses", "dress"),
    ("brushes", "brush"), ("churches", "church"), ("boxes", "box"), ("potatoes", "potato"), ("shoes", "shoe"),
    ("wolves", "wolf"), ("glass", "glass"), ("bus", "bus"), ("buses", "bus"), ("tennis", "tennis"), ("horses", "horse"),
    ("houses", "house"), ("series", "series"), ("canvas", "canvas"), ("gas", "gas"), ("cherries", "cherry")])
def test_plurals(word, base):
    assert lemma(word) == base


def test_a_base_form_is_its_own_base_form():
    bases = {*IRREGULAR.values(), *SINGULAR, "hat", "berry", "box", "glass"}
    assert {one for one in bases if lemma(one) != one} == set()


WORDS = ["dog", "dogs", "man", "men", "hat", "cat", "Grass", "berry", "berries", "blue", "été", "猫"]


@given(st.lists(st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join), min_size=1, max_size=12),
       st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join), min_size=1, max_size=6,
                unique=True), st.integers(1, 5))
def test_the_index_is_that_of_sets_of_ids_by_word(texts, names, batch):
    ids = defaultdict(set)
    for at, text in enumerate(texts):
        for word in text.lower().split():
            ids[lemma(word)].add(at)
    wanted = [len(set.intersection(*[ids.get(lemma(word), set()) for word in name.lower().split()])) for name in names]
    assert index_of(names, texts, batch=batch).counts().tolist() == wanted


@given(st.lists(st.sampled_from(CAPTIONS), min_size=1, max_size=8), st.sampled_from(CAPTIONS))
def test_more_captions_never_lower_a_count(texts, more):
    names = ["man", "dog", "dog hat"]
    before, after = (index_of(names, one).counts() for one in (texts, [*texts, more]))
    assert (after >= before).all()


def table(tmp_path, rows, name="tags.parquet"):
    pl.DataFrame(rows, schema=["id", "concept", "score"], orient="row").write_parquet(tmp_path / name)
    return tmp_path / name


def test_matched_counts_and_both_rates_of_misalignment(tmp_path):
    index = index_of(["man", "dog", "hat"], [*CAPTIONS, "nothing here"])
    tags = table(tmp_path, [("0", "man", 0.9), ("0", "dog", 0.2), ("1", "hat", 0.8), ("2", "dog", 0.71),
                            ("4", "dog", 0.9), ("3", "kite", 0.9), ("2", "dog", 0.9)])
    images, text = image_pairs(tags, index.concepts), index.pairs()
    both = index.counts(matched(text, images)).tolist()
    assert index.counts(images).tolist() == [1, 2, 1] and both == [1, 1, 0]
    assert all(both <= np.minimum(index.counts(), index.counts(images)))
    # Pairs 0, 1, 2 have a concept on both sides; of them 1 has none in common; 3 has no tag, 4 no word.
    assert misalignment(text, images, 5) == {"misaligned": 1, "indexed": 3, "records": 5, "of_indexed": 1 / 3,
                                             "of_all": 1 / 5}


def test_other_lemmas(monkeypatch):
    assert counted(["hat", "hats"], CAPTIONS, Lemmas(kind="none")) == {"hat": 1, "hats": 1}
    with pytest.raises(BadInput, match="pip install spacy"):
        monkeypatch.setitem(sys.modules, "spacy", None)
        Concepts(["hat"], Lemmas(kind="spacy"))


def test_spacy_keeps_nouns(monkeypatch):
    """A stand-in for a pipeline: `tag` says what it makes of a word."""
    tags = {"hats": ("hat", "NOUN"), "runs": ("run", "VERB"), "dog": ("dog", "NOUN"), "Rome": ("Rome", "PROPN")}

    class Pipeline:
        def __call__(self, text):
            return [types.SimpleNamespace(lemma_=tags.get(word, (word, "X"))[0], pos_=tags.get(word, (word, "X"))[1])
                    for word in text.split()]

        def pipe(self, texts, batch_size):
            return map(self, texts)

    monkeypatch.setitem(sys.modules, "spacy", types.SimpleNamespace(load=lambda name, exclude: Pipeline()))
    assert counted(["hats", "runs", "Rome"], ["dog runs hats", "Rome runs"], Lemmas(kind="spacy")) == {
        "hats": 1, "runs": 0, "Rome": 1}


def test_what_cannot_be_counted_is_refused(tmp_path):
    with pytest.raises(BadInput, match="named twice"):
        Concepts(["a", "a"])
    with pytest.raises(BadInput, match="holds no word"):
        Concepts(["dog", "!?"])
    with pytest.raises(BadInput, match="none of the concepts"):
        image_pairs(table(tmp_path, [("0", "kite", 0.9)]), Concepts(["dog"]))
    pl.DataFrame({"id": ["0"]}).write_parquet(tmp_path / "bad.parquet")
    with pytest.raises(BadInput, match="no column concept"):
        image_pairs(tmp_path / "bad.parquet", Concepts(["dog"]))


def test_names_from_files(tmp_path):
    (tmp_path / "names.txt").write_text("dog\n\nhat \ndog\n")
    assert read_names(tmp_path / "names.txt") == ["dog", "hat"]
    pl.DataFrame({"concept": ["cat", "dog"], "count": [1, 2]}).write_csv(tmp_path / "names.tsv", separator="\t")
    assert read_names(tmp_path / "names.tsv") == ["cat", "dog"]
    with pytest.raises(BadInput, match="cannot be read as names"):
        read_names(tmp_path / "missing.txt")


def test_words_that_share_a_slot_of_the_table_are_told_apart(monkeypatch):
    """A table of two slots: nearly every word is missed, and found in the vocabulary."""
    monkeypatch.setattr("tilth.curate.concepts.RECENT", 2)
    assert counted(["man", "dog", "hat", "dog hat", "grass"], CAPTIONS * 50) == {
        "man": 100, "dog": 150, "hat": 100, "dog hat": 50, "grass": 50}
