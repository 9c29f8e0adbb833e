"""Weights by loss: the published values, scale and shift, no gradient, one weight over any split of the batch."""

import numpy as np
import pytest
import torch

from tilth.recipe import parse
from tilth.select.policy import PolicyConfig
from tilth.select.weighers import ByLoss, linupper
from tilth.stages.pretraining import WeighByLoss

FIVE = torch.tensor([1.0, 2, 3, 4, 5])
PUBLISHED = {
    ("linupper", 1.0): [.0926, .1526, .2516, .2516, .2516], ("linupper", 0.4): [.0244, .0851, .2969, .2969, .2969],
    ("quadratic", 1.0): [.1117, .2365, .3036, .2365, .1117], ("quadratic", 0.4): [.0367, .2395, .4475, .2395, .0367],
    ("extremes", 1.0): [.2793, .1694, .1027, .1694, .2793], ("extremes", 0.4): [.3766, .1079, .0309, .1079, .3766]}


def batch_of(count):
    return {"unit_id": torch.arange(count), "source": torch.zeros(count), "weight": torch.ones(count)}


def shares(pool, losses, kind, **fields):
    weigher = parse(PolicyConfig, {"weigher": {"kind": kind, **fields}}).build(pool, 0).weigher
    weights = weigher.weights(batch_of(len(losses)), losses)
    assert weights.mean() == pytest.approx(1, abs=1e-6)
    return weights / len(losses), weigher


@pytest.mark.parametrize(("kind", "temperature"), PUBLISHED)
def test_published_values(pool, kind, temperature):
    found, weigher = shares(pool, FIVE, kind, temperature=temperature)
    assert found.tolist() == pytest.approx(PUBLISHED[kind, temperature], abs=5e-5)
    assert weigher.metrics()["effective_units"] == pytest.approx(1 / float(found.square().sum()), rel=1e-5)
    for other in (FIVE + 7, FIVE * 3.5):
        assert shares(pool, other, kind, temperature=temperature)[0].tolist() == pytest.approx(found.tolist(), abs=1e-6)


@pytest.mark.parametrize("kind", ["linupper", "quadratic", "extremes"])
def test_a_large_temperature_and_equal_losses_are_uniform(pool, kind):
    assert shares(pool, FIVE, kind, temperature=100)[0].tolist() == pytest.approx([.2] * 5, abs=.0015)
    for count in (1, 4):
        found, weigher = shares(pool, torch.full((count,), 2.0), kind)
        assert found.tolist() == [1 / count] * count
        assert weigher.metrics()["effective_units"] == pytest.approx(count)


def test_the_largest_weight_of_linupper():
    hard = ByLoss(linupper, 1.0, 0).weights(batch_of(8), torch.tensor([1.0] * 7 + [2.0])) / 8
    easy = ByLoss(linupper, 1.0, 0).weights(batch_of(8), torch.tensor([1.0] + [2.0] * 7)) / 8
    assert float(hard.max()) == pytest.approx(1 / (1 + 7 * np.exp(-1)))
    assert float(easy.max()) == pytest.approx(1 / (7 + np.exp(-1)))


def test_trimming_takes_the_range_from_an_outlier():
    losses = torch.cat([torch.linspace(1, 3, 19), torch.tensor([1000.0])])
    plain, trimmed = (ByLoss(linupper, 1.0, 0, trim).weights(batch_of(20), losses) for trim in (0.0, 0.1))
    assert float(plain[:19].max() / plain[:19].min()) < 1.01 < 2 < float(trimmed[:19].max() / trimmed[:19].min())


def test_weights_carry_no_gradient():
    theta = torch.randn(6, requires_grad=True)
    x = torch.randn(9, 6)
    losses = (x @ theta).square()
    weights = ByLoss(linupper, 0.5, 0).weights(batch_of(9), losses)
    assert not weights.requires_grad
    (weights / 9 * losses).sum().backward()
    alone = [torch.autograd.grad((x[i] @ theta).square(), theta)[0] for i in range(9)]
    assert torch.allclose(theta.grad, sum(weights[i] / 9 * alone[i] for i in range(9)), atol=1e-5)


@pytest.mark.parametrize("micro", [1, 2, 8])
def test_one_set_of_weights_over_any_split_of_the_batch(pool, micro):
    """One worker with 8 units and four with 2 see the same global losses, hence the same weights."""
    losses = torch.tensor([3.0, 1, 4, 1, 5, 9, 2, 6])
    policy = parse(PolicyConfig, {"weigher": "linupper"}).build(pool, 0)
    parts = WeighByLoss(policy).between([{"loss": part} for part in losses.split(micro)],
                                        [batch_of(micro) for _ in range(8 // micro)])
    whole = policy.weigher.weights(batch_of(8), losses)
    assert torch.equal(torch.cat([part["weight"] for part in parts]), whole)


def regression(strength, temperature, corrupt, seed, steps):
    """Balanced test error of SGD on y = x.theta: 10 common coordinates, 30 that are active in a tenth of the samples;
    a share `corrupt` of the targets with noise of standard deviation 20. The published toy."""
    rng = torch.Generator().manual_seed(seed)
    truth, theta = torch.randn(40, generator=rng), torch.zeros(40)
    weigher = ByLoss(strength, temperature, 0) if strength else None
    errors = {}
    for step in range(1, max(steps) + 1):
        active = torch.cat([torch.ones(64, 10), (torch.rand(64, 1, generator=rng) < 0.1).expand(64, 30).float()], 1)
        x = torch.randn(64, 40, generator=rng) * active
        noise = 20 * torch.randn(64, generator=rng) * (torch.rand(64, generator=rng) < corrupt)
        residual = x @ theta - x @ truth - noise
        weights = torch.ones(64)
        if weigher and step > 50:
            weights = weigher.weights(batch_of(64), residual.square())
        theta = theta - 0.02 * 2 * (weights * residual) @ x / 64
        if step in steps:
            errors[step] = float((theta - truth).square().sum())
    return errors


def test_it_wins_on_clean_targets_and_loses_on_corrupt_ones():
    """The published signs: five times below uniform on clean data, above it where 5 % of the targets are noise."""
    clean = [[regression(f, 1.0, 0.0, seed, [500])[500] for seed in range(5)] for f in (None, linupper)]
    assert np.mean(clean[0]) > 5 * np.mean(clean[1])
    corrupt = [[regression(f, 0.4, 0.05, seed, [1500])[1500] for seed in range(5)] for f in (None, linupper)]
    assert np.mean(corrupt[1]) > 2 * np.mean(corrupt[0])


def test_warm_up(pool):
    policy = parse(PolicyConfig, {"weigher": {"kind": "linupper", "warmup": 7}}).build(pool, 0)
    assert policy.needs_losses and WeighByLoss(policy).starts == 7 and policy.metrics() == {}
