"""A mixture by influence: the source that helps the reference gains, once; costs are planned; the state is exact."""

import json

import numpy as np
import pytest
from select_toys import LENGTH, text_learner, text_probe, train

from tilth.data.pool import Pool, PoolWriter, token_field
from tilth.recipe import BadInput, parse
from tilth.select.policy import PolicyConfig
from tilth.select.protocols import Plan
from tilth.select.reference import Reference, TokenArrays


def counts(rng):
    return (rng.integers(0, 49) + np.arange(16)) % 49 + 1


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("kinds"), np.random.default_rng(0)
    with PoolWriter(folder, {"tokens": token_field(50)}, vocab_size=50, end_of_text=0) as writer:
        for source, number in (("counts", 100), ("noise", 300)):
            names = [f"{source}{one}" for one in range(number)]
            tokens = [counts(rng) if source == "counts" else rng.integers(1, 50, 16) for _ in names]
            writer.append({"tokens": tokens}, {"unit_id": names, "record_id": names, "source": [source] * number})
    return Pool.open(folder)


@pytest.fixture
def policy(kinds, tmp_path, monkeypatch):
    path = tmp_path / "target.jsonl"
    path.write_text("")
    rng = np.random.default_rng(9)
    monkeypatch.setattr(Reference, "units", lambda self, pool, seed: TokenArrays([counts(rng) for _ in range(12)], 0))
    mixture = {"kind": "influence", "reference": {"path": str(path)}, "probes": 30}

    def build():
        return parse(PolicyConfig, {"mixture": mixture}).build(kinds, 1, 40)
    return build


def test_the_source_that_helps_gains_once(kinds, policy):
    first = policy()
    probe, spent = text_probe(kinds, learner=text_learner(50), rows=8)
    train(probe, np.random.default_rng(0).permutation(len(kinds)), 15)
    first.bind(probe)
    before = first.draw(0)
    assert spent.flops == 0 and np.mean(kinds.source[before] == 0) == pytest.approx(0.25, abs=0.03)
    drawn = first.draw(1)
    cost, report = spent.flops, first.report()["mixture"]
    assert report["help"]["counts"] > 0 > report["help"]["noise"] and report["shares"]["counts"] > 0.5
    assert np.mean(kinds.source[drawn] == 0) == pytest.approx(report["shares"]["counts"], abs=0.05)
    assert first.mixture.planned_flops(Plan(0, 8, LENGTH, probe.learner.flops_per_row, 3)) == pytest.approx(cost,
                                                                                                           rel=0.1)
    restored = policy()
    restored.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert (restored.draw(2) == first.draw(2)).all() and spent.flops == cost
    assert restored.report() == first.report()


def test_it_needs_a_reference_of_its_own_and_a_model(kinds, policy):
    with pytest.raises(BadInput, match="with a `path`"):
        parse(PolicyConfig, {"mixture": {"kind": "influence"}}).build(kinds, 1)
    asked = policy()
    asked.draw(0)
    with pytest.raises(BadInput, match="asks the model"):
        asked.draw(1)
