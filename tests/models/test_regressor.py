"""The regressor: what it sees, what it costs, and where it begins."""

import pytest
import torch

from tilth.models.config import TransformerConfig
from tilth.models.regressor import RegressorConfig
from tilth.recipe import BadInput, parse


def built(dims=3, points=6, **more):
    return RegressorConfig(dims=dims, points=points, **more).build().initialize(0)


def test_a_prediction_sees_what_is_before_it_and_nothing_else():
    model, rng = built(), torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 6, 3, generator=rng), torch.randn(2, 6, generator=rng)
    before = model(x, y)
    for i in range(6):
        later_y, later_x = y.clone(), x.clone()
        later_y[:, i:] = torch.randn(2, 6 - i, generator=rng)
        later_x[:, i + 1:] = torch.randn(2, 5 - i, 3, generator=rng)
        after = model(later_x, later_y)
        assert torch.equal(after[:, :i + 1], before[:, :i + 1]), "changing y_i or anything later"
        if i < 5:
            assert not torch.allclose(after[:, i + 1:], before[:, i + 1:])


def test_without_examples_the_error_is_the_variance():
    x, y = torch.randn(4000, 6, 3), torch.randn(4000, 6)
    errors = (built()(x, y) - y).square().mean(0)
    assert torch.allclose(errors, torch.ones(6), atol=0.15)


def test_what_cannot_be_known_is_not_learned():
    """Values that say nothing of each other: were one seen before it is predicted, the error would fall below 1."""
    model, rng = built(dims=1, points=4), torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(100):
        x, y = torch.randn(64, 4, 1, generator=rng), torch.randn(64, 4, generator=rng)
        loss = (model(x, y) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert 0.93 < sum(losses[-50:]) / 50 < 1.15


def test_parameters_and_flops_are_counted():
    config = RegressorConfig(dims=3, points=6)
    model = config.build()
    position = model.body.config.context * 48
    assert sum(one.numel() for one in model.parameters()) == config.parameters()
    assert config.parameters() - position == pytest.approx(84_000, rel=0.03)
    assert config.flops_per_row() == pytest.approx(6 * 11 * (config.parameters() - position), rel=0.1)


def test_initial_weights_depend_on_the_seed_alone():
    one, two = built(), RegressorConfig(dims=3, points=6).build().initialize(0)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_what_does_not_fit_is_refused():
    with pytest.raises(BadInput, match="points of 3 numbers"):
        built()(torch.zeros(1, 6, 2), torch.zeros(1, 6))
    with pytest.raises(BadInput, match="not known yet"):
        RegressorConfig().build()
    with pytest.raises(BadInput, match="without a vocabulary"):
        parse(RegressorConfig, {"body": {"vocab_size": 8}})
    assert RegressorConfig(body=TransformerConfig(width=64)).body.vocab_size == 0
