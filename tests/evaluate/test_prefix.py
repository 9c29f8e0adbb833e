"""What is shared is found, and sharing changes nothing but the work."""

import numpy as np
import pytest
import torch

from tilth.evaluate.likelihood import Likelihood, Request
from tilth.evaluate.prefix import Question, plan, trunks
from tilth.models import TransformerConfig


def model(**more):
    return TransformerConfig(layers=2, width=32, heads=4, feed_forward=64, context=256, vocab_size=61, **more).build() \
        .initialize(0)


def few_shot(seed=0, questions=12, shots=80, choices=4):
    """Questions after one long prefix, two of them after another, answers of different lengths."""
    rng = np.random.default_rng(seed)
    prefixes = [rng.integers(0, 61, shots) for _ in range(2)]
    found = []
    for number in range(questions):
        context = np.concatenate([prefixes[number < 2], rng.integers(0, 61, rng.integers(3, 12))])
        found += [Request(context, rng.integers(0, 61, rng.integers(1, 5))) for _ in range(choices)]
    return [found[row] for row in rng.permutation(len(found))]


def test_the_trunk_is_what_the_examples_are():
    requests = few_shot()
    groups, alone = plan([one.context for one in requests], [len(one.continuation) - 1 for one in requests], 4096)
    assert not alone
    assert sorted(group[0].trunk for group in groups) == [80, 80]
    rows = sorted(row for group in groups for bunch in group for one in bunch.questions for row in one.rows)
    assert rows == list(range(len(requests)))


def test_contexts_that_share_nothing_stay_in_plain_batches():
    contexts = [np.arange(40) * step for step in range(1, 6)]
    assert plan(contexts, [0] * 5, 4096) == ([], [0, 1, 2, 3, 4])
    [(trunk, group)] = trunks([Question(np.arange(30), (0,)), Question(np.arange(30)[:25], (1,))])
    assert trunk == 24 and len(group) == 2, "every context keeps a token of its own"


@pytest.mark.parametrize("more", [{}, {"kv_heads": 2}, {"positions": "learned"}, {"qk_norm": True}])
def test_sharing_gives_the_same_numbers(more):
    requests = few_shot()
    asked = model(**more)
    plain = Likelihood(asked, length=256, share=False).score(requests)
    for batch_tokens in (64, 8192):
        shared = Likelihood(asked, length=256, batch_tokens=batch_tokens).score(requests)
        for a, b in zip(plain, shared, strict=True):
            assert b.nats == pytest.approx(a.nats, rel=1e-6, abs=1e-6)
            assert (a.top == b.top).all()


def test_sharing_reads_fewer_positions():
    asked, read = model(), {True: 0, False: 0}
    hidden = asked.hidden
    for share in (True, False):
        def counted(tokens, cache=None, share=share):
            read[share] += tokens.numel()
            return hidden(tokens, cache=cache)
        asked.hidden = counted
        Likelihood(asked, length=256, share=share).score(few_shot())
    assert read[True] < 0.15 * read[False]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near(dtype):
    requests = few_shot(questions=3)
    exact = np.concatenate([one.nats for one in Likelihood(model(), length=256).score(requests)])
    half = np.concatenate([one.nats for one in Likelihood(model(), length=256, dtype=dtype).score(requests)])
    assert half == pytest.approx(exact, abs=0.05)
    assert torch.get_default_dtype() == torch.float32
