"""The rivals: compressors as their libraries give them, byte models against slow references."""

import lzma
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilth.evaluate.ngram import BITS, END, SMOOTHINGS, SYMBOLS, NGram, best_ngram, count_ngrams, discounts
from tilth.evaluate.rivals import rivals, take_bytes, unigram_bits
from tilth.recipe import BadInput

TEXTS = [b"the cat sat on the mat; the cat ate the rat", b"a rat sat on the cat", b"the mat ate a cat, a mat\n" * 3]
documents = st.lists(st.binary(max_size=40) | st.text("abc ", max_size=40).map(str.encode), min_size=1, max_size=5)


def symbols_of(text: bytes, order: int) -> list[int]:
    return [END] * (order - 1) + list(text) + [END]


class Slow:
    """The formulas of the module with dictionaries, one symbol at a time."""

    def __init__(self, texts: list[bytes], order: int, smoothing: str):
        self.order, self.smoothing = order, smoothing
        raw = [Counter() for _ in range(order + 1)]
        for text in texts:
            line = symbols_of(text, order)
            for at in range(order - 1, len(line)):
                for size in range(1, order + 1):
                    raw[size][tuple(line[at - size + 1 : at + 1])] += 1
        self.counts = raw
        if smoothing == "kneser_ney":
            self.counts = [Counter(gram[1:] for gram in raw[size + 1]) for size in range(order)] + [raw[order]]
        self.after = [defaultdict(dict) for _ in range(order + 1)]
        for size in range(1, order + 1):
            for gram, count in self.counts[size].items():
                self.after[size][gram[:-1]][gram[-1]] = count

    def probability(self, gram: tuple[int, ...]) -> float:
        if not gram:
            return 1 / SYMBOLS
        shorter, seen = self.probability(gram[1:]), self.after[len(gram)].get(gram[:-1])
        if not seen:
            return shorter
        count, total = seen.get(gram[-1], 0), sum(seen.values())
        if self.smoothing == "witten_bell":
            return (count + len(seen) * shorter) / (total + len(seen))
        take = discounts(np.array(list(self.counts[len(gram)].values())))
        mass = sum(take[min(other, 3)] for other in seen.values())
        return (count - take[min(count, 3)] + mass * shorter) / total


def pack(gram: tuple[int, ...]) -> int:
    key = 0
    for symbol in gram:
        key = key << BITS | symbol
    return key


@settings(max_examples=15, deadline=None)
@given(train=documents, held_out=documents, order=st.integers(1, 5), smoothing=st.sampled_from(SMOOTHINGS))
def test_ngram_equals_slow_reference(train, held_out, order, smoothing):
    fast, slow = NGram.train(train, order, smoothing), Slow(train, order, smoothing)
    grams = [tuple(line[at - order + 1 : at + 1]) for text in held_out
             for line in [symbols_of(text, order)] for at in range(order - 1, len(line))]
    wanted = [slow.probability(gram) for gram in grams]
    found = fast.probability(np.array([pack(gram) for gram in grams]))
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    total = fast.bits(*count_ngrams(held_out, order))
    assert total == pytest.approx(-sum(map(math.log2, wanted)))


@settings(max_examples=15, deadline=None)
@given(train=documents, context=st.lists(st.integers(0, END), min_size=4, max_size=4),
       smoothing=st.sampled_from(SMOOTHINGS))
def test_ngram_sums_to_one(train, context, smoothing):
    model = NGram.train(train, 5, smoothing)
    seen = [END] * 3 + list(train[0][:1] or [END])
    for known in (context, seen):
        everything = np.array([pack((*known, symbol)) for symbol in range(SYMBOLS)])
        found = model.probability(everything)
        assert found.min() > 0
        assert found.sum() == pytest.approx(1, abs=1e-12)


def test_counts_do_not_depend_on_chunks(monkeypatch):
    whole = count_ngrams(TEXTS, 5)
    monkeypatch.setattr("tilth.evaluate.ngram.CHUNK_BYTES", 1)
    for a, b in zip(whole, count_ngrams(TEXTS, 5), strict=True):
        np.testing.assert_array_equal(a, b)
    assert whole[1].sum() == sum(len(text) + 1 for text in TEXTS)


def test_the_slice_picks_the_smoothing_and_all_text_is_counted():
    model, scores = best_ngram(TEXTS, 5)
    assert set(scores) == set(SMOOTHINGS)
    assert model.smoothing == min(scores, key=scores.get)
    everything = NGram.train(TEXTS, 5, model.smoothing)
    keys, counts = count_ngrams([b"the rat sat"], 5)
    assert model.bits(keys, counts) == everything.bits(keys, counts)
    assert best_ngram([b"one document"], 5)[0].order == 5


def test_unknown_smoothing_and_no_text_are_refused():
    with pytest.raises(ValueError, match="smoothing"):
        NGram.train(TEXTS, 5, "laplace")
    with pytest.raises(ValueError, match="at least one"):
        NGram.train([], 5, "witten_bell")


def test_unigram_by_hand():
    # Training: "aab" and its end mark. p(a) = 3/261, p(end) = 2/261.
    assert unigram_bits([b"aab"], [b"a"]) == pytest.approx(math.log2(261 / 3) + math.log2(261 / 2))


def test_rivals_equal_their_libraries_and_the_5gram_beats_the_unigram():
    rng = np.random.default_rng(0)
    held_out = [rng.choice(TEXTS) + bytes(rng.integers(97, 110, 90_000, np.uint8)) for _ in range(4)]
    found = rivals(iter([*TEXTS * 20]), held_out)
    whole = b"".join(held_out)
    preset = 9 | lzma.PRESET_EXTREME
    pieces = [whole[:262144], whole[262144:]]
    assert found["xz"]["value"] == 8 * len(lzma.compress(whole, preset=preset)) / len(whole)
    assert found["xz_256k"]["value"] == 8 * sum(len(lzma.compress(p, preset=preset)) for p in pieces) / len(whole)
    assert {entry["n"] for entry in found.values()} == {4}
    assert {entry["bytes"] for entry in found.values()} == {len(whole)}
    own = rivals(TEXTS, TEXTS)
    assert own["byte_5gram"]["value"] < own["unigram"]["value"]


def test_training_text_is_capped_by_whole_documents():
    assert take_bytes(iter([b"ab", b"", b"cd", b"ef"]), 3) == [b"ab", b"cd"]
    assert rivals([b"ab", b"cd", b"ef"], [b"a"], train_bytes=3)["unigram"]["train_bytes"] == 4


def test_no_text_is_bad_input():
    with pytest.raises(BadInput, match="held-out"):
        rivals(TEXTS, [b""])
    with pytest.raises(BadInput, match="training"):
        rivals([], TEXTS)
