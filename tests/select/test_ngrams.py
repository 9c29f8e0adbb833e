"""Linear models over hashed n-grams: exact bags, length without influence, fits that find what is there."""

import numpy as np
import pytest

from tilth.curate.linear import conjugate_gradients, fit_logistic, fit_ridge
from tilth.select.ngrams import CHUNK_TOKENS, NGrams
from tilth.select.reference import TokenArrays
from tilth.select.statistics import spearman


def arrays_of(*units):
    return TokenArrays([np.array(unit) for unit in units], 0)


def test_bags_hold_the_ngrams_of_each_unit():
    ngrams = NGrams(10, order=3, bits=12)
    units = arrays_of([1, 2, 1, 2], [3], [1, 2])
    bags = ngrams.bags(units, np.arange(3))
    assert bags.counts.tolist() == [4 + 3 + 2, 1, 2 + 1]
    first, last = (bags.features[start:start + count] for start, count in zip(bags.starts[[0, 2]], bags.counts[[0, 2]],
                                                                              strict=True))
    assert set(last.tolist()) <= set(first.tolist())
    assert sorted(first[first < 10].tolist()) == [1, 1, 2, 2] and bags.features[bags.starts[1]] == 3
    assert ((bags.features >= 0) & (bags.features < ngrams.size)).all()
    picked = ngrams.bags(units, np.array([2, 0]))
    assert picked.counts.tolist() == [3, 9] and sorted(picked.features[:3].tolist()) == sorted(last.tolist())


def test_scores_are_means_over_chunks_of_any_size(monkeypatch):
    rng = np.random.default_rng(0)
    units = arrays_of(*[rng.integers(0, 10, size) for size in rng.integers(0, 30, 200)])
    ngrams = NGrams(10, bits=8)
    weights = rng.normal(size=ngrams.size)
    whole = ngrams.scores(units, weights, 0.5)
    monkeypatch.setattr("tilth.select.ngrams.CHUNK_TOKENS", 37)
    assert np.allclose(whole, ngrams.scores(units, weights, 0.5), atol=1e-6) and CHUNK_TOKENS > 37
    assert (whole[units.lengths() == 0] == 0.5).all()
    assert ngrams.counts(units)[:10].sum() == units.lengths().sum()


def test_a_unit_said_twice_scores_the_same():
    """With single tokens alone: nothing marks an end, so there is no bias by length."""
    ngrams = NGrams(50, order=1)
    weights = np.random.default_rng(0).normal(size=50)
    once = np.array([4, 7, 7, 1, 30])
    scores = ngrams.scores(arrays_of(once, np.concatenate([once, once])), weights, 0.1)
    assert scores[0] == pytest.approx(scores[1])


def texts(kind, count, rng):
    """Kind 1 prefers the tokens from 50 up, kind 0 those below."""
    shares = np.ones(100)
    shares[50:] *= 2 if kind else 0.5
    return [rng.choice(100, rng.integers(20, 60), p=shares / shares.sum()) for _ in range(count)]


def test_fits_find_what_is_there():
    rng = np.random.default_rng(0)
    ngrams = NGrams(100, bits=10)
    train = arrays_of(*texts(0, 150, rng), *texts(1, 150, rng))
    fresh = arrays_of(*texts(0, 80, rng), *texts(1, 80, rng))
    label, bags = np.repeat([0.0, 1.0], 150), ngrams.bags(train, np.arange(300))
    for model in (fit_logistic(bags, label, ngrams.size, 1.0), fit_ridge(bags, label, ngrams.size, 1.0)):
        scores = ngrams.scores(fresh, model.weights, model.bias)
        assert np.mean(scores[80:, None] > scores[:80]) > 0.95
        noise = fit_ridge(bags, rng.permutation(label), ngrams.size, 1.0)
        assert abs(spearman(ngrams.scores(fresh, noise.weights), np.repeat([0, 1], 80))) < 0.6


def test_ridge_is_the_exact_solution():
    rng = np.random.default_rng(1)
    ngrams, units = NGrams(30, order=1), arrays_of(*[rng.integers(0, 30, 12) for _ in range(40)])
    bags, target = ngrams.bags(units, np.arange(40)), rng.normal(size=40)
    dense = np.zeros((40, 30))
    np.add.at(dense, (np.repeat(np.arange(40), 12), bags.features), 1 / 12)
    exact = np.linalg.solve(dense.T @ dense + 2.0 / 12 * np.eye(30), dense.T @ (target - target.mean()))
    assert np.allclose(fit_ridge(bags, target, 30, 2.0).weights, exact, atol=1e-4)
    assert np.allclose(conjugate_gradients(lambda v: np.diag([2.0, 5]) @ v, np.array([2.0, 5]), np.ones(2)), 1)
