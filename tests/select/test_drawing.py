"""Drawing by scores: softmax frequencies with the right sign, uniform where scores are equal, cuts by size."""

import numpy as np
import pytest

from tilth.select.drawing import (
    gumbel_top_k,
    pack_mask,
    selectivity,
    size_threshold,
    standardised,
    top_share,
    unpack_mask,
)

COSTS = np.array([-2.0, -1, 0, 1, 2])


def within(found, expected, trials):
    return np.abs(found - expected) <= 3 * np.sqrt(expected * (1 - expected) / trials) + 1e-9


def test_the_first_pick_follows_softmax():
    """s = (-2, -1, 0, 1, 2), lower better, tau 0.5: (.865, .117, .016, .002, .0003); the wrong sign: .878 first."""
    rng, trials = np.random.default_rng(0), 40_000
    picks = np.bincount([gumbel_top_k(-COSTS, 1, 0.5, rng)[0] for _ in range(trials)], minlength=5) / trials
    expected = np.exp(-COSTS / 0.5) / np.exp(-COSTS / 0.5).sum()
    assert expected == pytest.approx([.865, .117, .016, .002, .0003], abs=5e-4)
    assert within(picks, expected, trials).all()
    assert not within(np.array(.878), expected[0], trials)


def test_equal_scores_draw_uniformly():
    rng, trials = np.random.default_rng(1), 5000
    counts = np.zeros(10)
    for _ in range(trials):
        counts[gumbel_top_k(np.zeros(10), 2, 0.5, rng)] += 1
    assert within(counts / trials, np.full(10, 0.2), trials).all()


def test_effective_selectivity_of_a_fifth():
    """200k normal scores at tau 0.5: 1.14 standard deviations; the best fifth would be 1.40."""
    scores = np.random.default_rng(2).normal(size=200_000)
    drawn = gumbel_top_k(scores, 40_000, 0.5, np.random.default_rng(3))
    figures = selectivity(scores, drawn)
    assert len(set(drawn.tolist())) == 40_000
    assert figures["mean_score"] == pytest.approx(1.14, abs=0.01)
    assert figures["best_score"] == pytest.approx(1.40, abs=0.01)
    assert selectivity(scores, gumbel_top_k(scores, 40_000, 0, np.random.default_rng(3)))["selectivity"] == 1.0


def test_temperature_zero_takes_the_best_and_ties_by_order():
    assert gumbel_top_k(np.array([1.0, 3, 3, 2]), 3, 0, np.random.default_rng(0)).tolist() == [1, 2, 3]
    assert top_share(np.array([1.0, 3, 3, 2]), 0.25).tolist() == [False, True, False, False]
    assert standardised(np.full(4, 7.0)).tolist() == [0] * 4


def test_the_threshold_is_by_size():
    """Scores 0.9 (100 characters), 0.8 (300), 0.2 (600), a share of 0.35: the running sum exceeds 350 at 0.8."""
    scores, sizes = np.array([0.2, 0.9, 0.8]), np.array([600, 100, 300])
    assert size_threshold(scores, sizes, 0.35) == 0.8
    assert size_threshold(scores, sizes, 1.0) == 0.2


def test_masks_as_text():
    mask = np.random.default_rng(0).random(1003) < 0.3
    assert (unpack_mask(pack_mask(mask), 1003) == mask).all()
