"""The probe: known influences, exact losses, no trace in weights, moments or random numbers, every pass counted."""

import copy

import numpy as np
import pytest
import torch
from select_toys import LENGTH, Scalar, Spent, sample, text_probe, train

from tilth.optim import AdamW, Muon
from tilth.recipe import BadInput
from tilth.select.probe import Probe, flat
from tilth.select.reference import Reference
from tilth.select.statistics import ranks, spearman
from tilth.train import LoopSettings

ORDERS = ("step", "first", "batched")


def scalar_probe(couples="none", lr=0.01):
    learner = Scalar(couples)
    optimizer = torch.optim.SGD(learner.modules.parameters(), lr=lr)
    return Probe(learner, {"main": optimizer}, LoopSettings(steps=1, rows=1, micro_rows=1, clip=None), spend=Spent())


def test_the_published_example():
    """w = 1, x = 2, y = 5, rate 0.01: w' = 1.06; the reference (1, 2) goes from 0.5 to 0.4418."""
    probe = scalar_probe()
    assert probe.effects([sample(2, 5)], [sample(1, 2)])[0] == pytest.approx(-0.0582, abs=1e-6)
    assert probe.effects([sample(2, 5)], [sample(1, 2)], "first")[0] == pytest.approx(-0.06, abs=1e-6)
    assert float(probe.learner.modules["model"].weight.detach()) == 1.0
    assert probe.spend.flops == pytest.approx((1 / 3 + 1 + 1 / 3) + 2)


def test_a_coupled_objective_is_an_error():
    with pytest.raises(BadInput, match="couples the units"):
        scalar_probe("batch").effects([sample(2, 5)], [sample(1, 2)])


def everything(probe):
    """Weights, moments, gradients, mode and random state, in bits."""
    states = [{key: (value.clone() if isinstance(value, torch.Tensor) else value) for key, value in state.items()}
              for one in flat(probe.optimizer) for state in one.state.values()]
    return [{name: tensor.clone() for name, tensor in probe.learner.modules.state_dict().items()}, states,
            copy.deepcopy([p.grad for p in probe.learner.modules.parameters()]), probe.learner.modules.training,
            torch.get_rng_state()]


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


@pytest.mark.parametrize("optimizer", [AdamW(lr=1e-2), Muon(lr=1e-2)])
@pytest.mark.parametrize("steps", [0, 5])
def test_probing_leaves_no_trace_and_repeats_exactly(pool, optimizer, steps):
    probe, _ = text_probe(pool, optimizer)
    train(probe, np.arange(60), steps)
    reference = probe.batches(np.arange(60, 80))
    units = np.arange(12)
    before = everything(probe)
    found = [(probe.losses(units), *(probe.influences(units, reference, order) for order in ORDERS))
             for _ in range(2)]
    assert equal(before, everything(probe))
    assert all((a == b).all() for a, b in zip(*found, strict=True))
    assert len(np.unique(found[0][1])) > 6


def test_the_step_is_the_optimizers_own(pool):
    probe, _ = text_probe(pool)
    train(probe, np.arange(60))
    reference = probe.batches(np.arange(60, 80))
    found = probe.influences(np.array([3]), reference)[0]
    before = probe._reference_loss(reference)
    probe._gradient(list(probe.unit_batches(np.array([3]))))
    probe._clip()
    probe.optimizer.step()
    assert probe._reference_loss(reference) - before == found


def test_losses_are_those_of_single_units(pool):
    probe, spent = text_probe(pool)
    units = np.array([7, 61, 2, 84])
    found = probe.losses(units)
    for unit, value in zip(units, found, strict=True):
        (batch,) = probe.unit_batches([unit])
        loss = probe._loss(batch)
        assert value == pytest.approx(float(loss.total.detach().sum() / loss.count.sum()), rel=1e-5)
    rows = sum(batch["tokens"].shape[0] for batch in probe.batches(units))
    assert spent.flops > rows * probe.learner.flops_per_row / 3


def test_units_longer_than_a_row_are_whole(pool):
    probe, _ = text_probe(pool)
    probe.length = 8
    assert np.isfinite(probe.losses(np.arange(len(pool)))).all()
    (batch,) = probe.unit_batches([int(pool.lengths().argmax())])
    assert batch["tokens"].shape[1] == 8 and int((batch["targets"] != -100).sum()) == pool.lengths().max()


def test_the_first_order_agrees_with_small_steps(pool):
    for optimizer in (AdamW(lr=1e-4), AdamW(lr=1e-2)):
        probe, _ = text_probe(pool, optimizer, clip=None)
        train(probe, np.arange(60))
        for order in ORDERS[1:]:
            assert probe.agreement(np.arange(0, 60, 2), probe.batches(np.arange(60, 80)), order=order) > 0.5


@pytest.mark.parametrize("optimizer", [AdamW(lr=1e-2), Muon(lr=1e-2)])
def test_whole_batches_give_the_same_first_order(pool, optimizer):
    """Where nothing is clipped, for two forward passes over the units and one step on the reference."""
    probe, spent = text_probe(pool, optimizer, clip=None)
    train(probe, np.arange(60))
    units, reference = np.arange(60), probe.batches(np.arange(60, 80))
    first, cost = probe.influences(units, reference, "first"), spent.flops
    batched = probe.influences(units, reference, "batched")
    assert np.corrcoef(first, batched)[0, 1] > 0.999
    assert np.abs(first - batched).max() < 0.02 * np.abs(first).max()
    assert spent.flops - cost < cost
    probe.settings.precision = "fp8"
    with pytest.raises(BadInput, match="FP8 layers round off"):
        probe.influences(units, reference, "batched")


def test_ranks_share_ties():
    assert ranks(np.array([3.0, 1, 3, 2])).tolist() == [3.5, 1, 3.5, 2]
    assert spearman(np.arange(5), -np.arange(5.0)) == pytest.approx(-1)
    assert spearman(np.arange(5), np.ones(5)) == 0


def test_a_few_long_documents_are_no_more_than_was_asked_for(pool, monkeypatch, tmp_path):
    long = [np.arange(30_000) % 50, np.arange(90) % 50]
    monkeypatch.setattr("tilth.select.reference.read_texts", lambda path: ["", ""])
    monkeypatch.setattr("tilth.select.reference.tokenized", lambda texts, pool: long)
    units = Reference(path=tmp_path, tokens=6144).units(pool, 0)
    assert units.lengths().max() == 384 and abs(units.lengths().sum() - 6144) < 384
    whole = Reference(path=tmp_path, tokens=1_000_000).units(pool, 0)
    assert whole.lengths().tolist() == [30_000, 90]


def test_a_reference_is_held_back_by_whole_records(pool):
    reference = Reference(share=0.2, tokens=50, sources=["big"])
    mask = reference.held_back(pool, 1)
    assert 0 < mask.sum() < 30 and (pool.source[mask] == 0).all()
    assert (mask == reference.held_back(pool, 1)).all() and (mask != reference.held_back(pool, 2)).any()
    units = reference.units(pool, 1)
    assert 20 < units.lengths().sum() < 80
    probe, _ = text_probe(pool)
    assert sum(float(probe._loss(batch).count.sum()) for batch in probe.batches(np.arange(len(units)), units)) == (
        units.lengths().sum())
    with pytest.raises(BadInput, match="'bigg', which the pool does not have; did you mean 'big'"):
        Reference(sources=["bigg"]).held_back(pool, 0)
    assert LENGTH >= 20
