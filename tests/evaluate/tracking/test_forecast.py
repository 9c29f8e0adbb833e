"""Intervals by hand, baselines on exact curves, and a forecaster that finds a known drift and keeps its promise."""

import numpy as np
import pytest

from tilth.evaluate.tracking.baselines import last_value, power_law
from tilth.evaluate.tracking.curves import Curve, level, slope
from tilth.evaluate.tracking.forecast import Forecaster, examples
from tilth.evaluate.tracking.intervals import conformal_bounds, covered, winkler
from tilth.recipe import BadInput

TOKENS = np.linspace(0.05, 1.0, 20)


def drifting(seed, sizes=(1e7, 1e8, 1e9, 1e10), tasks=6, noise=0.004):
    """Scores that rise by a rate of each task in log tokens, faster in larger models, with noise."""
    rng = np.random.default_rng(seed)
    rates = rng.uniform(0.0, 0.05, tasks)
    return [Curve(f"run-{size:g}", f"{size:g}", f"task{task}", size, TOKENS,
                  0.5 + rates[task] * (1 + 0.1 * np.log10(size)) * np.log(TOKENS / 0.05)
                  + noise * rng.standard_normal(20), 0.25) for size in sizes for task in range(tasks)]


def split(curves, size):
    cut = {curve.run: 0.3 for curve in curves}
    targets = {curve.run: TOKENS[TOKENS >= 0.8] for curve in curves}
    found = examples(curves, cut, targets)
    return [one for one in found if one.group != size], [one for one in found if one.group == size]


def test_the_interval_score_worked_by_hand():
    assert winkler([1.0], [3.0], [2.0], 0.8) == pytest.approx([2.0])
    assert winkler([1.0, 1.0], [3.0, 3.0], [0.5, 3.2], 0.8) == pytest.approx([2 + 10 * 0.5, 2 + 10 * 0.2])
    assert covered([1, 1], [3, 3], [3, 4]).tolist() == [True, False]


def test_conformal_bounds_hold_what_they_promise():
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(300):
        errors = rng.standard_normal(41)
        low, high = conformal_bounds(errors[:40])
        hits.append(low <= errors[40] <= high)
    assert 0.74 < np.mean(hits) < 0.88
    few = conformal_bounds(np.arange(5.0))
    assert few == (0.0, 4.0), "five errors cannot promise less than their whole range"


def test_baselines_on_a_curve_that_is_a_power_law():
    scores = 0.8 - 0.1 * TOKENS**-0.5
    seen = Curve("r", "s", "t", 1e6, TOKENS, scores).until(0.3)
    assert last_value(seen, np.array([0.9, 1.0])).tolist() == [scores[5]] * 2
    assert power_law(seen, TOKENS[-4:]) == pytest.approx(scores[-4:], abs=0.01)
    falling = Curve("r", "s", "t", 1e6, TOKENS, 0.5 - 0.1 * TOKENS).until(0.3)
    assert power_law(falling, np.array([1.0]))[0] == pytest.approx(falling.scores[-1], abs=0.02)


def test_slope_and_level_look_at_the_recent_past():
    curve = Curve("r", "s", "t", 1e6, np.array([1e-6, 1.0, 2.0, 4.0]), np.array([9.0, 0.1, 0.2, 0.3]))
    assert slope(curve) == pytest.approx(0.1 / np.log(2))
    assert level(curve) == pytest.approx(0.2)
    assert slope(curve.until(1e-5)) == 0.0
    with pytest.raises(ValueError, match="ascending"):
        Curve("r", "s", "t", 1e6, np.array([2.0, 1.0]), np.zeros(2))


def test_a_known_drift_is_forecast_better_than_by_the_last_value():
    scores, rivals, hits = [], [], []
    for seed in range(8):
        curves = drifting(seed)
        for size in ("1e+08", "1e+09"):
            history, new = split(curves, size)
            found = Forecaster().fit(history).predict(new)
            y = np.array([one.target for one in new])
            low, high = np.array([[one.low, one.high] for one in found]).T
            gap = np.array([one.target - one.last for one in history])
            below, above = conformal_bounds(gap)
            last = np.array([one.last for one in new])
            scores.append(winkler(low, high, y).mean())
            rivals.append(winkler(last + below, last + above, y).mean())
            hits.append(covered(low, high, y).mean())
    assert np.mean(scores) < 0.8 * np.mean(rivals)
    assert 0.68 < np.mean(hits) < 0.95


def test_late_scores_do_not_leak_into_a_forecast():
    curves = drifting(0)
    history, new = split(curves, "1e+09")
    spoiled = [Curve(c.run, c.group, c.task, c.size, c.tokens, np.where(c.tokens > 0.3, 0.0, c.scores), c.chance)
               if c.group == "1e+09" else c for c in curves]
    first = Forecaster().fit(history).predict(new)
    assert first == Forecaster().fit(split(spoiled, "1e+09")[0]).predict(split(spoiled, "1e+09")[1])


def test_one_size_is_no_history():
    history, _ = split(drifting(0, sizes=(1e7,)), "none")
    with pytest.raises(BadInput, match="at least two"):
        Forecaster().fit(history)
