"""MATES: what helps the reference is drawn, nothing twice, nothing held back, costs as planned, exact state."""

import json

import numpy as np
import pytest
from select_toys import LENGTH, text_learner, text_probe, train

from tilth.data.pool import Pool, PoolWriter, token_field
from tilth.recipe import BadInput, parse
from tilth.select.ngrams import NGrams
from tilth.select.policy import PolicyConfig
from tilth.select.protocols import Plan
from tilth.select.reference import TokenArrays
from tilth.select.scorers import refit


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """300 units that count upwards (learnable) and 300 random ones, over the same 49 tokens."""
    folder, rng = tmp_path_factory.mktemp("kinds"), np.random.default_rng(0)
    with PoolWriter(folder, {"tokens": token_field(50)}, vocab_size=50, end_of_text=0) as writer:
        for source in ("counts", "noise"):
            names = [f"{source}{number}" for number in range(300)]
            tokens = [(rng.integers(0, 49) + np.arange(16)) % 49 + 1 if source == "counts" else
                      rng.integers(1, 50, 16) for _ in names]
            writer.append({"tokens": tokens}, {"unit_id": names, "record_id": names, "source": [source] * 300})
    return Pool.open(folder)


SELECTOR = {"kind": "mates", "reference": {"sources": ["counts"], "share": 0.1, "tokens": 200}, "keep": 0.4,
            "probes": 50, "held_back": 0.2, "anchors": 20, "temperature": 0.2, "scorer": {"kind": "ngrams", "bits": 12}}


def trained(kinds, stretch_units=40, **changes):
    """A policy with a probe of a model that has seen a little of everything."""
    policy = parse(PolicyConfig, {"selector": {**SELECTOR, **changes}}).build(kinds, 1, stretch_units)
    probe, spent = text_probe(kinds, learner=text_learner(50), rows=8)
    for _ in range(3):
        train(probe, np.random.default_rng(0).permutation(len(kinds)), 15)
    policy.bind(probe)
    return policy, probe, spent


def share(kinds, units):
    return float(np.mean(kinds.source[units] == 0))


@pytest.mark.parametrize("influence", ["step", "first", "batched"])
def test_what_helps_the_reference_is_drawn(kinds, influence):
    policy, probe, spent = trained(kinds, influence=influence)
    first = policy.draw(0)
    assert 0.25 < share(kinds, first) < 0.75 and spent.flops == 0
    drawn = [policy.draw(stretch) for stretch in (1, 2)]
    assert share(kinds, np.concatenate(drawn)) > 0.7
    stages = policy.report()["selector"]["stages"]
    assert [stage["stretch"] for stage in stages] == [1, 2] and all(stage["spearman"] > 0.2 for stage in stages)
    assert all(0.5 < stage["selectivity"] <= 1 for stage in stages)
    assert stages[0]["spearman_of_model_before"] is None and stages[1]["spearman_of_model_before"] > 0.2
    assert stages[1]["anchors_spearman_with_last"] == pytest.approx(1)  # the model has not moved
    everything = np.concatenate([first, *drawn])
    assert len(set(everything.tolist())) == len(everything) and policy.selector.free[everything].all()
    plan = Plan(10**6, 8, LENGTH, probe.learner.flops_per_row, 3)
    assert policy.selector.planned_flops(plan) == pytest.approx(spent.flops, rel=0.1)
    assert policy.metrics()["influence_spearman"] == stages[1]["spearman"]


def test_the_state_is_exact(kinds):
    policy, probe, _ = trained(kinds)
    for stretch in range(2):
        policy.draw(stretch)
    restored, _, _ = trained(kinds)
    restored.load_state_dict(json.loads(json.dumps(policy.state_dict())))
    restored.bind(probe)
    assert (restored.draw(2) == policy.draw(2)).all()
    assert restored.report() == policy.report()


def test_frozen_measures_once(kinds):
    policy, _, spent = trained(kinds, frozen=True)
    policy.draw(0)
    policy.draw(1)
    cost = spent.flops
    policy.draw(2)
    assert len(policy.report()["selector"]["stages"]) == 1 and spent.flops < 1.01 * cost


def test_a_pass_ends_when_all_that_may_be_trained_on_was_drawn(kinds):
    policy, _, _ = trained(kinds, stretch_units=100, keep=1.0, probes=20, frozen=True)
    free = int(policy.selector.free.sum())
    stretches, drawn = 0, []
    while sum(map(len, drawn)) < free:
        drawn.append(policy.draw(stretches))
        stretches += 1
    assert sorted(np.concatenate(drawn).tolist()) == np.flatnonzero(policy.selector.free).tolist()


def test_a_model_that_predicts_nothing_chooses_at_random(kinds):
    """Constant predictions: every unit of the window has the same chance."""
    policy, _, _ = trained(kinds)
    policy.selector._learn = lambda stretch: None
    counts, trials = np.zeros(len(kinds)), 300
    candidates = np.flatnonzero(policy.selector.free)
    for trial in range(trials):
        counts[policy.selector.select(candidates, 1, np.random.default_rng(trial))] += 1
    expected = 40 / len(candidates)
    spread = np.abs(counts[candidates] / trials - expected) / np.sqrt(expected * (1 - expected) / trials)
    assert (spread < 3).mean() > 0.98


def test_a_warm_start_shrinks_towards_the_model_before():
    rng = np.random.default_rng(0)
    units = TokenArrays([rng.integers(0, 30, 12) for _ in range(40)], 0)
    bags, base = NGrams(30, order=1).bags(units, np.arange(40)), rng.normal(size=30)
    target = bags.times(base) + 0.5
    model = refit(bags, target, base, 1e6)
    assert np.allclose(model.weights, base) and model.bias == pytest.approx(0.5)


def test_what_cannot_be_measured_is_an_error(kinds):
    with pytest.raises(BadInput, match="leaves 0 units to measure"):
        parse(PolicyConfig, {"selector": {**SELECTOR, "held_back": 1e-9}}).build(kinds, 1)
    policy = parse(PolicyConfig, {"selector": SELECTOR}).build(kinds, 1, 40)
    policy.draw(0)
    with pytest.raises(BadInput, match="asks the model being trained"):
        policy.draw(1)


def test_a_task_predicts_its_targets_alone(kinds):
    """Changing the context's labels changes nothing, changing the target does."""
    probe, _ = text_probe(kinds, learner=text_learner(50))
    task = TokenArrays([np.arange(1, 13)], 0, skip=[9])
    (batch,) = probe.batches(np.array([0]), task)
    assert (batch["targets"][0] != -100).nonzero()[:, 0].tolist() == [9, 10, 11]
    before = probe._reference_loss([batch])
    other = TokenArrays([np.array([*range(1, 12), 40])], 0, skip=[9])
    assert probe._reference_loss(probe.batches(np.array([0]), other)) != before
    assert batch["targets"][0, :9].tolist() == [-100] * 9


@pytest.mark.parametrize("diversity", [{"kind": "quota", "cap": 1.5, "clusters": 6}, {"kind": "facility"}])
def test_chosen_in_stages_with_a_diversity_term_each_unit_once(kinds, diversity):
    """The dynamic form of choosing groups: anew at each stretch, with the current model, without repetition."""
    policy, probe, spent = trained(kinds, diversity=diversity)
    drawn = np.concatenate([policy.draw(stretch) for stretch in range(4)])
    assert len(set(drawn.tolist())) == len(drawn) == 160
    stages = policy.report()["selector"]["stages"]
    assert [stage["stretch"] for stage in stages] == [1, 2, 3] and all("likeness" in stage for stage in stages)
    plan = Plan(10**6, 8, LENGTH, probe.learner.flops_per_row, 4)
    assert policy.selector.planned_flops(plan) == pytest.approx(spent.flops, rel=0.1)


def test_choosing_is_held_to_its_share_by_fewer_probes(kinds):
    """Of the plan's FLOPs, training included; what does not pay for twenty probes is refused before training."""
    policy, probe, spent = trained(kinds, influence="batched", agreement=0, share=0.15)
    row = probe.learner.flops_per_row
    policy.tell_plan(Plan(10**6, 8, LENGTH, row, 3))
    assert len(policy.selector._units(1)) == 50
    plan = Plan(55, 8, LENGTH, row, 3)
    policy.tell_plan(plan)
    assert 20 <= len(policy.selector._units(1)) < 50
    for stretch in range(3):
        policy.draw(stretch)
    assert 0.1 * plan.training_flops < spent.flops <= 0.15 * (plan.training_flops + spent.flops)
    flops = policy.report()["selector"]["flops"]
    assert sum(flops.values()) == pytest.approx(spent.flops) and flops["probing"] > flops["learning"] > 0
    policy.tell_plan(Plan(10, 8, LENGTH, row, 3))
    with pytest.raises(BadInput, match=r"does not pay for 20 probes at each of 2 measurements"):
        policy.bind(probe)


def test_first_order_is_checked_against_true_steps_where_asked(kinds):
    policy, probe, spent = trained(kinds, influence="batched", agreement=25)
    policy.draw(0)
    policy.draw(1)
    policy.draw(2)
    first, second = policy.report()["selector"]["stages"]
    assert 0.5 < first["agreement_with_steps"] <= 1 and "agreement_with_steps" not in second
    plan = Plan(10**6, 8, LENGTH, probe.learner.flops_per_row, 3)
    assert policy.selector.planned_flops(plan) == pytest.approx(spent.flops, rel=0.1)
