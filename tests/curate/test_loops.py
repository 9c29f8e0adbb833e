"""The compiled loops against the expressions that do the same without Numba."""

from unittest import mock

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.curate.sets.peers import cases, records
from tilth.curate import classifier
from tilth.curate.classifier import Features
from tilth.curate.sets import gopher, words
from tilth.curate.sets.gopher import GopherQuality
from tilth.curate.sets.repetition import GopherRepetition
from tilth.curate.sets.words import PythonSplitter, Splitter, Tokens, Words

pytest.importorskip("numba")
SPACES = "\t\n\x0b\x0c\r\x1c\x1d\x1f\x85\xa0\u1680\u2000\u2028\u202f\u205f\u3000\u200b \u180e\ufeff"
SIGNS = st.one_of(st.sampled_from(SPACES + "aab.,-'é漢😀"), st.characters(codec="utf-8"))
TEXTS = st.lists(st.text(SIGNS, max_size=60), max_size=6)
SPLITTERS = (Splitter(), PythonSplitter(), Tokens())


def listed(found: Words) -> list[list[str]]:
    each = found.values if found.codes is None else found.values.gather(found.codes)
    return [each.slice(start, count).to_list() for start, count in zip(found.starts[:-1], found.counts(), strict=True)]


@settings(deadline=None)  # the first call compiles
@given(TEXTS)
def test_words_are_those_of_the_pattern(texts):
    series = pl.Series(texts, dtype=pl.String)
    for splitter in SPLITTERS:
        assert listed(splitter.split(series)) == series.str.extract_all(splitter.pattern()).to_list()
    assert listed(PythonSplitter().split(series)) == [text.split() for text in texts]


@settings(deadline=None)  # the first call compiles
@given(TEXTS)
def test_totals_and_medians(texts):
    series = pl.Series(texts, dtype=pl.String)
    for splitter in SPLITTERS:
        fast, plain = splitter.split(series), Words.of_lists(series.str.extract_all(splitter.pattern()))
        np.testing.assert_array_equal(fast.totals(fast.lengths()), plain.sums(plain.lengths()))
        np.testing.assert_array_equal(gopher.medians(fast), gopher.medians(plain))
        np.testing.assert_array_equal(gopher.medians(plain), [
            np.median([len(word) for word in one]) if one else 0 for one in listed(plain)])


def test_long_words_have_a_median():
    texts = [["a", "b" * 300, "c" * 1000], ["x"], [], ["d" * 256, "e" * 255]]
    found = PythonSplitter().split(pl.Series([" ".join(text) for text in texts]))
    assert gopher.medians(found).tolist() == [300, 1, 0, 255.5]


def test_texts_that_are_a_slice_of_others():
    series = pl.Series(["one two", "three two", "four", "", "two five"])[1:]
    assert listed(Splitter().split(series)) == [["three", "two"], ["four"], [], ["two", "five"]]


@pytest.mark.parametrize("profile", ["default", "dolma-1.2.1", "datatrove-0.10.1"])
def test_all_measures_are_the_same_without_numba(profile, monkeypatch):
    frame = records([case["text"] for case in cases()])
    made = [one(profile=profile).attribute() for one in (GopherQuality, GopherRepetition)]
    fast = [one.measure(frame) for one in made]
    monkeypatch.setattr(words, "loops", lambda name: None)
    monkeypatch.setattr(gopher, "loops", lambda name: None)
    monkeypatch.setattr(words, "_last", None)
    for one, found in zip(made, fast, strict=True):
        assert found.equals(one.measure(frame))


@settings(deadline=None, max_examples=60)
@given(TEXTS, st.sampled_from([("word", 1, 2), ("word", 2, 4), ("character", 1, 1), ("character", 3, 5)]))
def test_scores_are_the_same_without_numba(texts, kind):
    unit, smallest, order = kind
    made = Features(unit=unit, smallest=smallest, order=order, bits=12)
    weights = np.random.default_rng(0).normal(size=1 << 12).astype(np.float32)
    series = pl.Series(texts, dtype=pl.String)
    fast = made.scores(series, weights, 0.5)
    with mock.patch.object(classifier, "loops", lambda name: None):
        np.testing.assert_allclose(fast, made.scores(series, weights, 0.5), rtol=0, atol=1e-12)
