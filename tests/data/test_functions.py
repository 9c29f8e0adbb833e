"""Families of functions: their variance, their shape, the mixture, and a stream that is the same however it is cut."""

import numpy as np
import pytest
import torch

from tilth.data.functions import VARIANCE, Combination, FunctionsConfig, Linear, Sinusoid, TwoLayer, draw_points
from tilth.recipe import BadInput, parse

FUNCTIONS = 4000
FAMILIES = {"dense": (Linear(), 20), "sparse": (Linear(nonzero=2), 20), "network": (TwoLayer(), 20),
            "sinusoid": (Sinusoid(frequencies=(1, 4)), 1)}


def outputs(family, dims, distribution="normal", points=4, seed=0):
    rng = np.random.default_rng(seed)
    x = draw_points(rng, (FUNCTIONS, points, dims), distribution)
    return x, family.values(rng, x, VARIANCE[distribution])


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_unit_variance(name, distribution):
    family, dims = FAMILIES[name]
    _, y = outputs(family, dims, distribution)
    squares = np.square(y).mean(1)  # a function each: values of one function are not independent
    assert abs(squares.mean() - 1) < 3 * squares.std() / np.sqrt(FUNCTIONS)
    _, y = outputs(family.model_copy(update={"variance": 4 / 3}), dims, distribution)
    assert np.square(y).mean() == pytest.approx(4 / 3 * squares.mean(), rel=1e-9)


@pytest.mark.parametrize("nonzero", [1, 2, 7, None])
def test_a_sparse_function_has_exactly_so_many_coordinates_placed_at_random(nonzero):
    beta = Linear(nonzero=nonzero).coefficients(np.random.default_rng(1), FUNCTIONS, 20, 1.0)
    some = nonzero or 20
    assert set((beta != 0).sum(1)) == {some}
    share = some / 20
    assert np.abs((beta != 0).mean(0) - share).max() <= 4 * np.sqrt(share * (1 - share) / FUNCTIONS)


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_the_mixture_has_its_shares(share):
    config = FunctionsConfig(families={"a": Linear(), "b": Linear(nonzero=1)}, shares={"a": share, "b": 1 - share},
                             dims=4, points=4)
    _, _, family = config.sample(np.random.default_rng(2), 10_000)
    assert abs((family == 0).mean() - share) < 3 * np.sqrt(share * (1 - share) / 10_000)


@pytest.mark.parametrize(("weight", "pure"), [(1.0, 0), (0.0, 1)])
def test_a_combination_at_its_ends_is_the_pure_family(weight, pure):
    first, second = Linear(), Sinusoid(frequencies=(1, 4))
    x, mixed = outputs(Combination(first=first, second=second, weight=weight), 1)
    rng = np.random.default_rng(0)
    assert np.array_equal(x, draw_points(rng, (FUNCTIONS, 4, 1), "normal"))
    both = first.values(rng, x, 1.0), second.values(rng, x, 1.0)
    assert np.array_equal(mixed, both[pure])


def config():
    return FunctionsConfig(families={"line": Linear(), "wave": Sinusoid()}, points=5, dims=1, distribution="uniform")


def test_sequences_are_the_same_however_they_are_asked_for():
    whole = config().build(lambda name: None, 3).next(150)
    stream = config().build(lambda name: None, 3)
    parts = [stream.next(rows) for rows in (1, 62, 64, 23)]
    for name, values in whole.items():
        assert torch.equal(values, torch.cat([part[name] for part in parts])), name
    assert torch.equal(whole["unit_id"], torch.arange(150))
    other = config().build(lambda name: None, 4).next(150)
    assert not torch.equal(whole["y"], other["y"])


def test_a_stream_goes_on_where_it_was():
    stream = config().build(lambda name: None, 0)
    stream.next(70)
    state = stream.state_dict()
    ahead = stream.next(9)
    again = config().build(lambda name: None, 0)
    again.load_state_dict(state)
    assert torch.equal(again.next(9)["y"], ahead["y"])


def test_what_does_not_fit_is_refused():
    with pytest.raises(BadInput, match="functions of one number"):
        outputs(Sinusoid(), 2)
    with pytest.raises(BadInput, match="only 3 coordinates"):
        outputs(Linear(nonzero=4), 3)
    with pytest.raises(BadInput, match="shares must give every family"):
        parse(FunctionsConfig, {"families": {"a": "linear", "b": "sinusoid"}, "shares": {"a": 1}})
    with pytest.raises(BadInput, match="did you mean 'sinusoid'"):
        parse(FunctionsConfig, {"families": {"a": "sinusoids"}})
