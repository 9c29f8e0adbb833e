"""Worked examples of similarity, onset, order and laws, and the null simulations that they must survive."""

import numpy as np
import pytest

from tilth.evaluate.tracking.curves import Curve, above_chance
from tilth.evaluate.tracking.laws import LossLaw, fit_loss_law, fit_score_of_loss
from tilth.evaluate.tracking.together import (
    difference_correlation,
    domain_coherence,
    early_order,
    kendall,
    off_chance,
    size_gap,
)


def curve(task, scores, run="run", tokens=None, **more):
    scores = np.asarray(scores, float)
    return Curve(run, "small", task, 1e6, np.arange(1.0, len(scores) + 1) if tokens is None else tokens, scores, **more)


def test_levels_correlate_where_differences_do_not():
    a, b = [25, 27, 30, 34, 37, 39], [24, 25, 31, 33, 36, 40]
    assert np.corrcoef(a, b)[0, 1] == pytest.approx(0.984, abs=5e-4)
    assert difference_correlation(np.array([a, b], float))[0, 1] == pytest.approx(0.031, abs=5e-4)
    rng = np.random.default_rng(0)
    walks = np.cumsum(1 + rng.standard_normal((200, 2, 20)), axis=2)
    assert np.mean([np.corrcoef(pair)[0, 1] for pair in walks]) > 0.9
    assert abs(np.mean([difference_correlation(pair)[0, 1] for pair in walks])) < 0.05


def test_the_same_curve_twice_is_coherent_and_shuffled_labels_are_not():
    rng = np.random.default_rng(1)
    once, other = rng.random(12), rng.random(12)
    found = domain_coherence([curve("a", once), curve("b", once), curve("c", other)], {"a": "x", "b": "x", "c": "y"})
    assert found["within"] == pytest.approx(1.0)
    ps = []
    for _ in range(100):
        tasks = [curve(f"t{number}", rng.random(12)) for number in range(6)]
        labels = dict(zip([task.task for task in tasks], "xxxyyy", strict=True))
        ps.append(domain_coherence(tasks, labels, permutations=50)["p"])
    assert 0.35 < np.mean(ps) < 0.75
    with pytest.raises(ValueError, match="two domains"):
        domain_coherence([curve("a", once), curve("b", other)], {"a": "x", "b": "x"})


def test_early_and_final_order_worked_by_hand():
    early, final = (30.1, 28.4, 33.0, 27.9, 31.2), (45, 41, 52, 43, 44)
    assert kendall(early, final) == pytest.approx(0.6)
    runs = [curve("t", [e, e, f], run=str(e)) for e, f in zip(early, final, strict=True)]
    assert early_order(runs, 0.3) == pytest.approx(0.6)


def test_chance_is_zero_and_all_right_is_one():
    assert above_chance(np.array([0.25, 1.0, 0.4]), 0.25) == pytest.approx([0, 1, 0.2])


def test_pure_chance_never_leaves_chance_and_an_ability_does():
    rng = np.random.default_rng(2)
    never = [off_chance(curve("t", rng.binomial(400, 0.25, 12) / 400, chance=0.25), 400) is None for _ in range(200)]
    assert np.mean(never) >= 0.95
    assert off_chance(curve("t", [0.25, 0.4, 0.25, 0.5, 0.6], chance=0.25), 400) == 4.0
    assert off_chance(curve("t", [0.5, 0.5], chance=0.25, stderr=0.02)) == 1.0


def test_equal_at_equal_loss_is_apart_at_equal_tokens():
    tokens = np.geomspace(1, 100, 20)
    losses = 2 + tokens**-0.3, 2 + (8 * tokens) ** -0.3
    small, large = (curve("t", 1 - 0.4 * loss + 0.4, run=str(at), tokens=tokens) for at, loss in enumerate(losses))
    assert size_gap(small, large, *losses) < 0.1 * size_gap(small, large)
    with pytest.raises(ValueError, match="no common range"):
        size_gap(small, large, losses[0], losses[1] - 9)


def test_the_loss_law_is_found_again_from_points_without_noise():
    law = LossLaw(1.69, 406.4, 0.34, 410.7, 0.28)
    n, d = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e7, 1e10, 6), np.geomspace(1e8, 1e12, 10)))
    found = fit_loss_law(n, d, law(n, d))
    for name in ("E", "A", "alpha", "B", "beta"):
        assert getattr(found, name) == pytest.approx(getattr(law, name), rel=0.01), name
    with pytest.raises(ValueError, match="five numbers"):
        fit_loss_law(n[:5], d[:5], law(n, d)[:5])


def test_a_sigmoid_of_the_loss_extrapolates():
    losses = np.linspace(4, 2.5, 12)
    truth = 0.9 / (1 + np.exp(4 * (losses - 3)))
    fitted = fit_score_of_loss(losses[:8], truth[:8])
    assert fitted(losses[-1]) == pytest.approx(truth[-1], abs=0.08)
