"""Several processes: the same numbers, bit for bit, for every way in which a model is asked."""

import numpy as np
import pytest
from evaluate_toys import byte_pool
from test_kinds import Bytes

from tilth.evaluate import EvaluateConfig, Likelihood, Request, measure
from tilth.evaluate.features import Classification
from tilth.evaluate.generation import Generation
from tilth.evaluate.paired import paired, rows
from tilth.evaluate.tasks import MultipleChoice
from tilth.models import TransformerConfig


def model(length=128):
    return TransformerConfig(layers=2, width=32, heads=4, feed_forward=64, context=length,
                             vocab_size=257).build().initialize(0)


def test_two_processes_give_the_numbers_of_one():
    questions = [{"query": f"What is {a} and {b}?", "choices": [str(a + b), str(a * b + 1)], "gold": 0}
                 for a in range(6) for b in range(5)]
    texts = [{"text": letter * (3 + at % 7), "label": letter} for at, letter in enumerate("abababababab")]
    written = [{"query": f"{at} ", "answer": "x", "aliases": []} for at in range(9)]
    config = EvaluateConfig(batch_tokens=128, rivals=False, tasks=[
        MultipleChoice(name="few", rows=questions, few_shot={"count": 3}),
        MultipleChoice(name="plain", rows=questions),
        Classification(name="probe", rows=texts), Generation(name="write", rows=written, max_tokens=6)])
    one, two = (measure(model(), Bytes(), length=128, config=config, quiet=True, workers=workers,
                        held_out=byte_pool([b"some text here", b"other text", b"x" * 300]))
                for workers in (1, 2))
    assert one.results == two.results
    for task, parts in one.items.items():
        for name, values in parts.items():
            assert np.array_equal(values, two.items[task][name]), (task, name)


def test_what_was_cached_is_forgotten_when_weights_change():
    asked = model()
    likelihood = Likelihood(asked, length=64)
    trunk = np.arange(40)
    requests = [Request(np.concatenate([trunk, [at]]), np.array([7, 8])) for at in range(50, 60)]
    before = likelihood.score(requests)
    asked.load_state_dict(TransformerConfig(layers=2, width=32, heads=4, feed_forward=64, context=128,
                                            vocab_size=257).build().initialize(1).state_dict())
    after, fresh = likelihood.score(requests), Likelihood(asked, length=64, share=False).score(requests)
    assert not np.allclose(before[0].nats, after[0].nats)
    assert [one.nats.sum() for one in after] == pytest.approx([one.nats.sum() for one in fresh], rel=1e-5)


def test_a_model_against_itself_differs_by_nothing_and_against_another_by_its_scores():
    questions = [{"query": f"{a}", "choices": ["x", "yy"], "gold": a % 2} for a in range(20)]
    config = EvaluateConfig(rivals=False, tasks=[MultipleChoice(name="t", rows=questions)])
    first, second = (measure(model().initialize(seed), Bytes(), length=128, config=config, quiet=True,
                             held_out=byte_pool([b"some text", b"more"])) for seed in (0, 1))
    same, apart = paired(first, first), paired(first, second)
    assert all(one["value"] == 0 and one["interval"] == [0, 0] for metrics in same.values() for one in metrics.values())
    for task, metric in (("t", "accuracy"), ("t", "brier"), ("t", "gold_bits_per_byte"), ("held_out", "bits_per_byte")):
        gap = first.results[task][metric]["value"] - second.results[task][metric]["value"]
        assert apart[task][metric]["value"] == pytest.approx(gap), (task, metric)
    assert len(rows(apart)) == sum(map(len, apart.values()))
