"""Semantic deduplication: the published rule on a worked example, groups of copies, shares, the model's embeddings."""

import json

import numpy as np
import pytest
from select_toys import LENGTH, text_learner, text_probe, train

from tilth.data.pool import Pool, PoolWriter, token_field
from tilth.recipe import BadInput, parse
from tilth.select.policy import PolicyConfig
from tilth.select.protocols import Plan
from tilth.select.semdedup import BLOCK, redundancy


def test_the_least_typical_of_a_group_stays():
    """One cluster along (1, 0): a and b 10 degrees apart, c by itself; b is nearest to the direction, so a stays."""
    angles = np.deg2rad([20.0, 10.0, -60.0])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    found = redundancy(vectors, np.zeros(3, int), vectors[:, 0])
    assert found[2] == -1  # the least typical of all
    assert found[0] == pytest.approx(np.cos(np.deg2rad(80)), abs=1e-6)
    assert found[1] == pytest.approx(np.cos(np.deg2rad(10)), abs=1e-6)
    apart = redundancy(vectors, np.array([0, 1, 1]), vectors[:, 0])
    assert apart[[0, 2]].tolist() == [-1, -1]


def test_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    place, near = rng.integers(0, 3, 200), rng.normal(size=200).astype(np.float32)
    whole = redundancy(vectors, place, near)
    assert BLOCK > 200
    monkeypatch.setattr("tilth.select.semdedup.BLOCK", 7)
    assert np.allclose(redundancy(vectors, place, near), whole, atol=1e-6)
    for unit in range(200):
        before = (place == place[unit]) & (near < near[unit])
        assert whole[unit] == pytest.approx(max((vectors[before] @ vectors[unit]).max(initial=-1), -1), abs=1e-5)


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """60 texts of 30 tokens; of the first 10, five near copies each stand at the end."""
    folder, rng = tmp_path_factory.mktemp("copies"), np.random.default_rng(0)
    texts = [rng.integers(1, 50, 30) for _ in range(60)]
    near = [np.where(np.arange(30) == rng.integers(30), rng.integers(1, 50), texts[number]) for number in range(10)
            for _ in range(5)]
    with PoolWriter(folder, {"tokens": token_field(50)}, vocab_size=50, end_of_text=0) as writer:
        names = [str(number) for number in range(110)]
        writer.append({"tokens": [*texts, *near]}, {"unit_id": names, "record_id": names, "source": ["a"] * 110})
    return Pool.open(folder)


GROUP = np.concatenate([np.arange(60), np.repeat(np.arange(10), 5)])


def test_of_each_group_of_copies_one_stays(copies):
    policy = parse(PolicyConfig, {"selector": {"kind": "semdedup", "threshold": 0.7, "clusters": 5}}).build(copies, 1)
    kept = np.flatnonzero(policy.selector.mask)
    assert sorted(GROUP[kept].tolist()) == list(range(60))  # each text once
    again = parse(PolicyConfig, {"selector": {"kind": "semdedup", "threshold": 0.7, "clusters": 5}}).build(copies, 1)
    assert (again.selector.mask == policy.selector.mask).all()
    report = policy.report()["selector"]
    assert report["selected"] == 60 and report["above_0.8"] <= 50 / 110 and report["above_0.99"] < report["above_0.8"]


def test_a_share_takes_the_most_redundant_first(copies):
    policy = parse(PolicyConfig, {"selector": {"kind": "semdedup", "keep": 0.6, "clusters": 5}}).build(copies, 1)
    assert policy.selector.mask.sum() == 66
    assert set(GROUP[np.flatnonzero(policy.selector.mask)].tolist()) == set(range(60))


def test_the_models_own_embeddings(copies):
    choice = {"selector": {"kind": "semdedup", "keep": 0.6, "embedding": "model", "clusters": 5}}
    policy = parse(PolicyConfig, choice).build(copies, 1, 30)
    probe, spent = text_probe(copies, learner=text_learner(50), rows=4)
    train(probe, np.arange(60))
    policy.bind(probe)
    assert len(policy.draw(0)) and spent.flops == 0
    policy.draw(1)
    mask = policy.selector.mask
    assert mask.sum() == 66 and len(set(GROUP[np.flatnonzero(mask)].tolist())) >= 57
    plan = Plan(0, 4, LENGTH, probe.learner.flops_per_row, 3)
    assert policy.selector.planned_flops(plan) == pytest.approx(spent.flops, rel=0.5)
    restored = parse(PolicyConfig, choice).build(copies, 1, 30)
    restored.load_state_dict(json.loads(json.dumps(policy.state_dict())))
    assert (restored.draw(2) == policy.draw(2)).all() and restored.report() == policy.report()


def test_embeddings_are_means_over_a_units_positions(copies):
    probe, spent = text_probe(copies, learner=text_learner(50))
    found = probe.embeddings(np.array([3, 80, 7]))  # of 30 tokens, in rows of 24
    for unit, vector in zip((3, 80, 7), found, strict=True):
        (batch,) = probe.unit_batches([unit])
        hidden = probe.learner.modules["model"].hidden(batch["tokens"], segments=batch["unit_index"],
                                                       positions=batch["positions"])
        inside = batch["unit_index"] >= 0
        assert np.allclose(vector, hidden[inside].mean(0).detach().numpy(), atol=1e-5)
    assert spent.flops > 0


def test_what_is_wrong_is_said(copies):
    with pytest.raises(BadInput, match="either `threshold`"):
        parse(PolicyConfig, {"selector": {"kind": "semdedup"}})
    policy = parse(PolicyConfig, {"selector": {"kind": "semdedup", "keep": 0.5, "embedding": "model",
                                               "start": 0}}).build(copies, 1)
    with pytest.raises(BadInput, match="use ngrams"):
        policy.draw(0)
