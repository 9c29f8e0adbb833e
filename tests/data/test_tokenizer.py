"""Tokenizers: lossless, deterministic, and deaf to special tokens in text."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Inner
from tokenizers import decoders, models, normalizers, pre_tokenizers

from tilth.data.tokenizer import (
    END_OF_TEXT,
    TOKENIZERS,
    BpeTokenizer,
    BytesTokenizer,
    FileTokenizer,
    Tokenizer,
    TokenizerConfig,
    byte_alphabet,
)
from tilth.recipe import BadInput, Config, one_of, parse

TEXTS = ["the quick brown fox jumps over the lazy dog, 12345 times.\n\n  def f(x):\n\treturn x\n"] * 3 + [
    "Größe und Äpfel, 日本語のテキスト, emoji 😀😀, don't we'll they're\r\n"] * 3


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return BpeTokenizer(vocab_size=320).build(TEXTS)


@pytest.fixture(scope="module")
def plain_bytes() -> Tokenizer:
    return BytesTokenizer().build([])


@settings(max_examples=150, deadline=None)
@given(text=st.text(st.characters(exclude_categories=("Cs",)), max_size=60))
def test_any_text_comes_back(bpe, plain_bytes, text):
    for tokenizer in (bpe, plain_bytes):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert int(tokenizer.token_bytes[tokenizer.encode(text)].sum()) == len(text.encode())


@settings(max_examples=100, deadline=None)
@given(text=st.text("ab é日😀\n1", max_size=40))
def test_offsets_from_bytes_are_those_of_the_library(bpe, text):
    encoded = bpe.inner.encode(text, add_special_tokens=False)
    assert bpe.offsets(text, bpe.encode(text)).tolist() == [list(pair) for pair in encoded.offsets]


def test_special_token_text_stays_text(bpe, plain_bytes):
    for tokenizer in (bpe, plain_bytes):
        ids = tokenizer.encode(f"a{END_OF_TEXT}b")
        assert tokenizer.end_of_text not in ids
        assert tokenizer.decode(ids) == f"a{END_OF_TEXT}b"


def test_special_token_text_stays_text_after_loading(bpe, tmp_path):
    bpe.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.end_of_text == bpe.end_of_text == 0
    assert loaded.vocab_size == 320
    assert loaded.end_of_text not in loaded.encode(END_OF_TEXT)
    assert (loaded.encode(TEXTS[0]) == bpe.encode(TEXTS[0])).all()


def test_training_twice_gives_the_same_bytes(bpe):
    assert BpeTokenizer(vocab_size=320).build(TEXTS).inner.to_str() == bpe.inner.to_str()


def test_more_vocabulary_than_the_data_supports():
    with pytest.raises(BadInput, match=r"larger than the data supports: got \d+ .*set vocab_size <= \d+"):
        BpeTokenizer(vocab_size=5000).build(TEXTS)


def test_sample_is_a_part_and_always_the_same():
    texts = [f"text number {number} " * 20 for number in range(200)]
    total = sum(map(len, texts))
    sampled = list(BpeTokenizer(sample_bytes=total // 4)._sample(texts))
    assert total / 8 < sum(map(len, sampled)) < total / 2
    assert sampled == list(BpeTokenizer(sample_bytes=total // 4)._sample(texts))


def test_bytes_ids_are_the_bytes(plain_bytes):
    assert plain_bytes.encode("é\0z").tolist() == list("é\0z".encode())
    assert (plain_bytes.end_of_text, plain_bytes.vocab_size) == (256, 257)


def test_byte_alphabet_is_the_librarys():
    assert sorted(byte_alphabet()) == sorted(pre_tokenizers.ByteLevel.alphabet())


def test_end_of_text_from_settings_or_name(bpe, tmp_path):
    bpe.inner.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path / "tokenizer.json").end_of_text == 0
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "x"}}))
    assert Tokenizer.load(tmp_path).end_of_text_token == "x"
    assert FileTokenizer(path=tmp_path, end_of_text=END_OF_TEXT).build([]).end_of_text == 0
    assert len(FileTokenizer(path=tmp_path).files()) == 2
    with pytest.raises(BadInput, match="no token 'nope'"):
        FileTokenizer(path=tmp_path, end_of_text="nope").build([])


def test_no_end_of_text_is_an_error(tmp_path):
    inner = Inner(models.BPE(vocab={"a": 0}, merges=[]))
    inner.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(BadInput, match="set `end_of_text`"):
        Tokenizer.load(tmp_path)


def test_broken_or_absent_file_is_bad_input(tmp_path):
    with pytest.raises(BadInput, match="no tokenizer at"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BadInput, match="not a tokenizer"):
        Tokenizer.load(tmp_path)


def test_offsets_of_a_tokenizer_that_is_not_byte_level():
    inner = Inner(models.WordLevel(vocab={"a": 0, "b": 1, "<eos>": 2, "?": 3}, unk_token="?"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.decoder = decoders.WordPiece()
    tokenizer = Tokenizer(inner, "<eos>")
    assert tokenizer.token_bytes is None
    assert tokenizer.offsets("A  b", tokenizer.encode("A  b")).tolist() == [[0, 1], [3, 4]]


class Holder(Config):
    tokenizer: one_of(TokenizerConfig, TOKENIZERS)


def test_choice_by_kind():
    assert parse(Holder, {"tokenizer": {"kind": "bpe", "vocab_size": 300}}).tokenizer.vocab_size == 300
    assert isinstance(parse(Holder, {"tokenizer": "bytes"}).tokenizer, BytesTokenizer)
    with pytest.raises(BadInput, match="did you mean 'bytes'"):
        parse(Holder, {"tokenizer": "byte"})


def test_ids_are_arrays(bpe):
    first, second = bpe.encode_batch(["a", ""])
    assert first.dtype == np.uint32
    assert second.shape == (0,)


def test_an_added_token_that_was_not_special_cannot_be_spelled(plain_bytes):
    inner = Inner.from_str(plain_bytes.inner.to_str().replace('"special": true', '"special": false').replace(
        '"special":true', '"special":false'))
    assert 256 in inner.encode(END_OF_TEXT).ids
    assert 256 not in Tokenizer(inner).encode(END_OF_TEXT)
