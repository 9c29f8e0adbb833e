"""The fits in closed form reach the errors that are known for them."""

import numpy as np
import pytest

from tilth.data.functions import Combination, Linear, Sinusoid, draw_points
from tilth.evaluate.function_fits import Waves, dense_or_one_sparse, least_squares, one_coordinate

# Squared error of each fit from 14 examples for w a x + (1 - w) sqrt(2) sin(om x + ph), with a standard normal, om
# uniform on [1, 4], x uniform on [-2, 2], and 61 frequencies on the grid.
TABLE = {0: (0.919, 0.0, 0.0), 0.1: (0.742, 0.010, 0.0), 0.25: (0.537, 0.065, 0.0), 0.5: (0.232, 0.141, 0.0),
         0.75: (0.058, 0.085, 0.0), 0.9: (0.009, 0.061, 0.0), 1: (0.0, 0.069, 0.0)}


def examples(family, dims, count, points, seed=0, distribution="normal", spread=1.0):
    rng = np.random.default_rng(seed)
    x = draw_points(rng, (count, points, dims), distribution)
    return x, family.values(rng, x, spread)


@pytest.mark.parametrize("family", [Linear(), Linear(nonzero=1)], ids=["dense", "sparse"])
@pytest.mark.parametrize("k", range(1, 9))
def test_least_squares_errs_by_one_minus_k_over_d(k, family):
    x, y = examples(family, 8, 4000, k + 1)
    errors = np.square(least_squares(x[:, :k], y[:, :k], x[:, k]) - y[:, k])
    if k == 8:
        assert np.median(errors) < 1e-20
    else:
        assert abs(errors.mean() - (1 - k / 8)) < 3 * errors.std() / np.sqrt(len(errors))


def test_two_examples_identify_a_function_of_one_coordinate():
    x, y = examples(Linear(nonzero=1), 20, 1000, 3)
    said, left = one_coordinate(x[:, :2], y[:, :2], x[:, 2])
    assert np.square(said - y[:, 2]).max() < 1e-18 and left.max() < 1e-20


@pytest.mark.parametrize("k", [2, 5, 10])
def test_the_bayes_predictor_is_as_good_as_both_specialists(k):
    x, y = examples(Linear(nonzero=1), 20, 1000, k + 1)
    assert np.square(dense_or_one_sparse(x[:, :k], y[:, :k], x[:, k]) - y[:, k]).max() < 1e-18
    x, y = examples(Linear(), 20, 1000, k + 1)
    asked = x[:, :k], y[:, :k], x[:, k]
    assert np.array_equal(dense_or_one_sparse(*asked), least_squares(*asked))


@pytest.mark.parametrize(("k", "wanted"), [(5, 0.405), (10, 0.006), (15, 0.001)])
def test_lasso_finds_two_sparse_functions_before_least_squares_does(k, wanted):
    linear_model = pytest.importorskip("sklearn.linear_model", reason="needs scikit-learn")
    x, y = examples(Linear(nonzero=2), 20, 300, k + 1)
    errors = np.array([(linear_model.Lasso(alpha=0.01, fit_intercept=False, max_iter=5000).fit(a[:k], b[:k]).predict(
        a[k:])[0] - b[k]) ** 2 for a, b in zip(x, y, strict=True)])
    assert abs(errors.mean() - wanted) < 0.004 + 3 * errors.std() / np.sqrt(len(errors))
    assert errors.mean() < 0.9 * (1 - k / 20)


@pytest.mark.parametrize("weight", TABLE)
def test_fits_of_combinations(weight):
    """Within .01 and what 1,000 sequences leave open."""
    family = Combination(first=Linear(variance=4 / 3), second=Sinusoid(frequencies=(1, 4)), weight=weight)
    x, y = examples(family, 1, 1000, 15, distribution="uniform", spread=4 / 3)
    found = Waves(np.linspace(1, 4, 61)).fit(x[:, :14, 0], y[:, :14], x[:, 14, 0])
    for name, wanted in zip(("linear", "sinusoid", "joint"), TABLE[weight], strict=True):
        errors = np.square(found[name][0] - y[:, 14])
        assert abs(errors.mean() - wanted) < 0.01 + 3 * errors.std() / np.sqrt(len(errors)), name
    chosen = np.square(found["either"][0] - y[:, 14]).mean()
    assert chosen <= max(np.square(found[name][0] - y[:, 14]).mean() for name in ("linear", "sinusoid"))
