"""Encoding whole batches gives the ids of the library: the same pieces, the same merges, whatever is remembered."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tilth.data import encoding
from tilth.data.encoding import Encoder, Memory
from tilth.data.splitting import SENTINEL, piece_starts
from tilth.data.tokenizer import SPLIT, BpeTokenizer, BytesTokenizer, byte_alphabet
from tilth.data.tokenizer import Tokenizer as Ours

LIBRARY = pre_tokenizers.Split(Regex(SPLIT), "isolated")
PARTS = st.lists(st.sampled_from(
    ["a", "B", "s", "t", "re", "ll", "'", "''", " ", "  ", "\n", "\r\n", "\r", "\t", "1", "2345", ".", "!?", "...", "é",
     "中文", "\u00a0", "\u3000", "\u2028", "²", "ſ", "'S", "'Ve", "\u0301", "😀", "_", "\0", "\x85", "ﬆ", "½"]),
    max_size=14).map("".join)
ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
WORDS = ["the field waits for rain, and the seed isn't there", "don't 12345 you've\n\n  said: it's 3.14!",
         "été à Köln 中文"]


def pieces(text: str) -> list[str]:
    points = np.append(np.frombuffer(text.encode("utf-32-le"), np.uint32), np.uint32(SENTINEL))
    starts = piece_starts(points).tolist()
    return [text[begin:end] for begin, end in pairwise(starts)]


@pytest.fixture(scope="module")
def tokenizer() -> Ours:
    return BpeTokenizer(vocab_size=300, min_frequency=1).build(WORDS * 3)


def library(tokenizer: Ours, texts: list[str]) -> list[list[int]]:
    return [one.ids for one in tokenizer.inner.encode_batch(texts, add_special_tokens=False)]


def as_lists(ids: list[np.ndarray]) -> list[list[int]]:
    return [one.tolist() for one in ids]


@settings(max_examples=400, deadline=None)
@given(PARTS | ANY)
def test_pieces_are_where_the_regular_expression_puts_them(text):
    assert pieces(text) == ([piece for piece, _ in LIBRARY.pre_tokenize_str(text)] if text else [])


def test_every_character_alone_and_beside_its_kinds():
    points = [*range(0x700), *range(0x700, 0x3000, 31), *range(0x3000, 0xD800, 397), *range(0xE000, 0x110000, 4001)]
    for first in range(0, len(points), 100):
        text = "|".join(f"a{chr(point)}b {chr(point)}1{chr(point)}\n" for point in points[first:first + 100])
        assert pieces(text) == [piece for piece, _ in LIBRARY.pre_tokenize_str(text)], hex(points[first])


@settings(deadline=None)
@given(st.lists(PARTS | ANY, max_size=5))
def test_ids_are_those_of_the_library(tokenizer, texts):
    assert as_lists(tokenizer._fast.encode(texts)) == library(tokenizer, texts)


@pytest.mark.parametrize(("slots", "batch", "longest"), [(8, 10, 128), (64, 3, 2), (1 << 12, 1 << 17, 1)])
def test_a_small_memory_changes_nothing(tokenizer, monkeypatch, slots, batch, longest):
    monkeypatch.setattr(encoding, "BATCH", batch)
    monkeypatch.setattr(encoding, "LONGEST", longest)
    texts = [*WORDS, "", "x" * 300, "\n" * 9, *WORDS]
    encoder = Encoder(tokenizer.inner.model, byte_alphabet(), slots)
    for _ in range(3):
        assert as_lists(encoder.encode(texts)) == library(tokenizer, texts)


def test_pieces_of_one_hash_are_told_apart(tokenizer, monkeypatch):
    monkeypatch.setattr(Encoder, "_hashes", lambda self, content, begin, end: np.full(len(begin), 7, np.uint64))
    encoder = Encoder(tokenizer.inner.model, byte_alphabet(), 64)
    for _ in range(2):
        assert as_lists(encoder.encode(WORDS)) == library(tokenizer, WORDS)


def test_memory_finds_what_it_was_told_and_nothing_else():
    memory = Memory(16)
    told = {key: memory.add(key, b"ab", [key]) for key in (3, 5, 3)}
    assert told == {3: False, 5: True} and memory.entries == 2
    assert memory.find(np.array([3, 5, 9], np.uint64)).tolist() == [0, 1, -1]


def test_a_corpus_cannot_forge_the_end_of_a_document(tokenizer):
    [ids] = tokenizer.encode_batch(["<|endoftext|>"])
    assert tokenizer.end_of_text not in ids.tolist()
    assert tokenizer.decode(ids) == "<|endoftext|>"


def test_other_tokenizers_go_to_the_library():
    assert BytesTokenizer().build([])._fast is None
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    inner.train_from_iterator(WORDS, trainers.BpeTrainer(vocab_size=280, special_tokens=["<|endoftext|>"]))
    gpt2 = Ours(inner)
    assert gpt2._fast is None
    assert as_lists(gpt2.encode_batch(WORDS)) == library(gpt2, WORDS)


def test_lone_surrogates_are_the_librarys_to_refuse(tokenizer):
    with pytest.raises(TypeError):
        tokenizer.encode_batch(["a\ud800"])
