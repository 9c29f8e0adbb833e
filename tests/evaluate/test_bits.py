"""Held-out bits per byte and the statistics: known models, each token once, nothing depends on the batch."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluate_toys import END, Bigram, MemoryPool, Recurrent, Uniform, byte_pool
from hypothesis import given, settings
from hypothesis import strategies as st

from tilth.data.held_out import EvalRows
from tilth.data.pool import Field, Pool, PoolWriter
from tilth.evaluate.bits import documents, held_out_bits
from tilth.evaluate.likelihood import Likelihood, Request, windows
from tilth.evaluate.statistics import mean, paired_difference, ratio
from tilth.models import TransformerConfig
from tilth.recipe import BadInput

TEXTS = [b"def f(x):\n    return x\n", b"a", b"hello, hello, hello " * 5, b"import os\n" * 3]


def test_uniform_model_gives_log2_of_the_vocabulary_per_token():
    found = held_out_bits(Likelihood(Uniform(300), length=16), byte_pool(TEXTS), END)
    tokens = sum(len(text) + 1 for text in TEXTS)
    np.testing.assert_allclose(found.bits, [(len(text) + 1) * math.log2(300) for text in TEXTS], rtol=1e-6)
    whole = found.bits_per_byte()
    assert whole["value"] == pytest.approx(tokens * math.log2(300) / sum(map(len, TEXTS)), rel=1e-6)
    assert (whole["n"], whole["tokens"], whole["bytes"]) == (4, tokens, tokens - 4)


@pytest.mark.parametrize(("length", "stride"), [(200, None), (8, 8), (8, 4), (8, 1)])
def test_bigram_model_equals_the_analytic_value(length, stride):
    """A bigram model needs one token of context, so windows that overlap change nothing; where they do not, the
    first token of each comes after an end of text."""
    logits = torch.randn(257, 257, generator=torch.Generator().manual_seed(1))
    model = Bigram(logits)
    found = held_out_bits(Likelihood(model, length=length, batch_tokens=30), byte_pool(TEXTS), END, stride=stride)
    table = torch.log_softmax(logits.double(), -1).numpy()
    new = length if stride is None else stride
    wanted = [-sum(table[END if new == length and at % length == 0 and at + length <= len(text) + 1 else a, b]
                   for at, (a, b) in enumerate(zip([END, *text], [*text, END], strict=True))) for text in TEXTS]
    np.testing.assert_allclose(found.nats, wanted, rtol=1e-6)
    assert all(rows * positions <= max(30, length) for rows, positions in model.seen)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(2, 60), first=st.integers(1, 59), length=st.integers(1, 20), stride=st.integers(1, 20))
def test_windows_score_each_token_once_with_the_context_that_fits(n, first, length, stride):
    first, stride = min(first, n - 1), min(stride, length)
    pieces = windows(np.arange(n), first, length, stride)
    np.testing.assert_array_equal(np.concatenate([piece.continuation for piece in pieces]), np.arange(first, n))
    for piece in pieces:
        assert 1 <= piece.inputs <= length
        assert piece.context[0] == 0
        np.testing.assert_array_equal(np.diff([*piece.context, *piece.continuation][1:]), 1)
        assert len(piece.context) >= min(piece.continuation[0], length + 1 - stride)
    assert all(len(piece.continuation) == stride for piece in pieces[1:-1])


def test_a_stride_longer_than_the_window_is_refused():
    with pytest.raises(BadInput, match="stride"):
        windows(np.arange(9), 1, 4, 5)


def test_the_result_does_not_depend_on_the_batch():
    pool = byte_pool([bytes(np.random.default_rng(i).integers(0, 256, 20 + 30 * i, np.uint8)) for i in range(6)])
    model = Recurrent(257).train()
    scores = [held_out_bits(Likelihood(model, length=32, batch_tokens=batch), pool, END, stride=16).nats
              for batch in (1, 100, 100_000)]
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-6)
    np.testing.assert_allclose(scores[2], scores[0], rtol=1e-6)
    assert model.training and model.drop.training


def test_hidden_and_head_give_the_same_as_logits(monkeypatch):
    class Plain(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, tokens):
            return self.inner(tokens)

    model = Recurrent(257)
    request = [Request(np.arange(3), np.arange(3, 20))]
    whole = Likelihood(Plain(model), length=32).score(request)[0]
    monkeypatch.setattr("tilth.evaluate.likelihood.LOGITS_BYTES", 4 * 257 * 5)
    parts = Likelihood(model, length=32).score(request)[0]
    np.testing.assert_allclose(parts.nats, whole.nats, rtol=1e-6)
    np.testing.assert_array_equal(parts.top, whole.top)


def test_bfloat16_is_close_and_unknown_types_are_refused():
    request = [Request(np.arange(3), np.arange(3, 20))]
    model = Recurrent(257)
    wide = Likelihood(model, length=32).score(request)[0].nats
    narrow = Likelihood(model, length=32, dtype="bfloat16").score(request)[0].nats
    np.testing.assert_allclose(narrow, wide, rtol=0.03)
    with pytest.raises(BadInput, match="bfloat16"):
        Likelihood(model, length=32, dtype="int4")


def test_units_of_a_document_are_put_together_and_sources_kept_apart():
    pool = MemoryPool([("x", "code", [1, 2], 2), ("x", "code", [3, END], 1), ("y", "prose", [4, END], 1)])
    assert [(d.record_id, d.source, d.tokens.tolist(), d.bytes) for d in documents(pool)] == [
        ("x", "code", [1, 2, 3, END], 3), ("y", "prose", [4, END], 1)]
    found = held_out_bits(Likelihood(Uniform(512), length=4), pool, END)
    assert found.by_source()["code"]["value"] == pytest.approx(4 * 9 / 3)
    assert found.by_source()["prose"]["value"] == pytest.approx(2 * 9 / 1)
    assert found.by_source()["prose"]["stderr"] is None


def test_an_empty_pool_and_requests_that_do_not_fit_are_refused():
    with pytest.raises(BadInput, match="empty"):
        held_out_bits(Likelihood(Uniform(8), length=4), MemoryPool([]), 0)
    with pytest.raises(ValueError, match="does not fit"):
        Likelihood(Uniform(8), length=4).score([Request(np.arange(4), np.arange(2))])


def test_standard_errors_by_hand():
    assert mean([1, 0, 1, 1]) == {"value": 0.75, "stderr": pytest.approx(math.sqrt(0.75 * 0.25 / 3)), "n": 4}
    assert mean([1])["stderr"] is None
    # Residuals of 3/2 over bottoms (1, 1): (-0.5, 0.5).
    assert ratio([1, 2], [1, 1]) == {"value": 1.5, "stderr": pytest.approx(math.sqrt(0.5 / 1 / 2) / 1), "n": 2}


def test_the_ratio_error_agrees_with_a_bootstrap():
    rng = np.random.default_rng(0)
    sizes = rng.integers(100, 2000, 200)
    tops = sizes * rng.normal(1.5, 0.2, 200)
    rows = rng.integers(0, 200, (4000, 200))
    drawn = tops[rows].sum(1) / sizes[rows].sum(1)
    assert ratio(tops, sizes)["stderr"] == pytest.approx(drawn.std(), rel=0.1)


def test_pairing_takes_out_what_is_hard_for_both():
    rng = np.random.default_rng(0)
    sizes = rng.integers(100, 2000, 100)
    hard = sizes * rng.normal(2, 0.5, 100)
    found = paired_difference(hard + 0.01 * sizes, hard, sizes)
    assert found["value"] == pytest.approx(0.01)
    assert found["stderr"] < 1e-9 < ratio(hard, sizes)["stderr"]
    low, high = paired_difference(rng.normal(0, 1, 400), rng.normal(0, 1, 400))["interval"]
    assert low < high
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(2 / 400), rel=0.2)
    with pytest.raises(ValueError, match="same items"):
        paired_difference([1, 2], [1])


def real_pool(folder: Path) -> Pool:
    """Three documents of 40 + 40 + 17, 5 and 90 tokens in units of at most 40; two bytes a token."""
    rng = np.random.default_rng(0)
    units = [("x", 40), ("x", 40), ("x", 17), ("y", 5), ("z", 40), ("z", 50)]
    fields = {"tokens": Field("uint16", ragged=True), "bytes": Field("int64")}
    with PoolWriter(folder, fields, vocab_size=64, end_of_text=0) as writer:
        writer.append({"tokens": [rng.integers(1, 64, n).astype(np.uint16) for _, n in units],
                       "bytes": np.array([2 * n for _, n in units])},
                      {"unit_id": [str(n) for n in range(6)], "record_id": [name for name, _ in units],
                       "source": ["a", "a", "a", "b", "a", "a"]})
    return Pool.open(folder)


@pytest.mark.parametrize(("length", "stride"), [(16, 16), (16, 8), (30, 7), (128, 128)])
def test_it_is_the_same_number_as_while_training(tmp_path, length, stride):
    """The transformer over packed windows of the real pool, as the loop's held-out loss sees it, and over ours."""
    pool = real_pool(tmp_path)
    model = TransformerConfig(vocab_size=64, layers=1, width=16, heads=2, context=128).build().initialize(0)
    nats = 0.0
    with torch.inference_mode():
        for batch in EvalRows(pool, length, stride).batches(3):
            logits = model(batch["tokens"], segments=batch["unit_index"], positions=batch["positions"])
            nats += torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(),
                                                      ignore_index=-100, reduction="sum").item()
    found = held_out_bits(Likelihood(model, length=length, batch_tokens=50), pool, pool.end_of_text, stride=stride)
    assert found.nats.sum() == pytest.approx(nats, rel=1e-6)
    assert found.bytes.tolist() == [194, 10, 180]
    assert found.by_source().keys() == {"a", "b"}
