"""Which tasks move together, when an ability starts, what early scores say about the order at the end.

The questions are those of the Fine Line study (Yang et al. 2024, arXiv 2404.01204), in a form that can fail. Two rising
curves correlate whatever they measure: independent drifting walks of 20 points (drift 1, deviation 1) correlate by .95
on average, their differences by .01. So similarity is the correlation of first differences, never of levels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tilth.evaluate.tracking.curves import Curve, common_grid, recent

PERMUTATIONS = 2000


def difference_correlation(scores: np.ndarray) -> np.ndarray:
    """(tasks, tasks) Pearson correlation of the first differences of `scores` (tasks, K); 0 for a flat curve."""
    steps = np.diff(scores, axis=1)
    steps = steps - steps.mean(axis=1, keepdims=True)
    norms = np.sqrt((steps**2).sum(axis=1))
    steps = steps / np.where(norms > 0, norms, 1.0)[:, None]
    return steps @ steps.T


def domain_coherence(curves: Sequence[Curve], domains: Mapping[str, str], *, permutations: int = PERMUTATIONS,
                     seed: int = 0) -> dict[str, Any]:
    """{value, p, within, across, tasks}: mean difference correlation within domains minus that across them.

    `domains` names the domain of each task; curves of other tasks do not count. Where there are several runs, the
    correlations are averaged over them first (each run on its own checkpoints). p is the share of permuted labels (the
    true one among them) that reach the value. Raises ValueError where there is no pair within or none across.
    """
    tasks = sorted({curve.task for curve in curves if curve.task in domains})
    runs = sorted({curve.run for curve in curves})
    found = np.zeros((len(tasks), len(tasks)))
    for run in runs:
        mine = {curve.task: curve for curve in curves if curve.run == run}
        if any(task not in mine for task in tasks):
            raise ValueError(f"the run {run} lacks tasks that others have")
        found += difference_correlation(common_grid([mine[task] for task in tasks])[1]) / len(runs)
    labels = np.unique([domains[task] for task in tasks], return_inverse=True)[1]
    value, within, across = _coherence(found, labels)
    rng = np.random.default_rng(seed)
    drawn = [_coherence(found, rng.permutation(labels))[0] for _ in range(permutations)]
    p = (1 + sum(one >= value - 1e-12 for one in drawn)) / (permutations + 1)
    return {"value": value, "p": p, "within": within, "across": across, "tasks": tasks}


def _coherence(correlations: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
    pairs = np.triu(np.ones_like(correlations, bool), 1)
    same = labels[:, None] == labels[None]
    if not (pairs & same).any() or not (pairs & ~same).any():
        raise ValueError("coherence needs two tasks of one domain, and two domains")
    within, across = float(correlations[pairs & same].mean()), float(correlations[pairs & ~same].mean())
    return within - across, within, across


def off_chance(curve: Curve, questions: int | None = None) -> float | None:
    """Tokens of the first checkpoint from which the score stays two standard errors above chance; None: never.

    The error is the curve's own `stderr`, or that of chance over `questions`: sqrt(c (1 - c) / n).
    """
    error = curve.stderr
    if error is None:
        if questions is None:
            raise ValueError(f"when {curve.task} leaves chance is unknown without its standard error or its questions")
        error = float(np.sqrt(curve.chance * (1 - curve.chance) / questions))
    above = curve.scores > curve.chance + 2 * error
    if not len(above) or not above[-1]:
        return None
    below = np.flatnonzero(~above)
    return float(curve.tokens[below[-1] + 1 if len(below) else 0])


def kendall(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    """Kendall's tau-a: pairs in the same order minus pairs in the other, over all pairs; a tie counts for neither."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"an order needs at least two runs on both sides, not {len(a)} and {len(b)}")
    first, second = np.triu_indices(len(a), 1)
    return float(np.mean(np.sign(a[first] - a[second]) * np.sign(b[first] - b[second])))


def early_order(curves: Sequence[Curve], share: float) -> float:
    """Kendall tau between the runs' scores at `share` of their tokens and at their end, for curves of one task."""
    early = [float(np.interp(share * curve.tokens[-1], curve.tokens, curve.scores)) for curve in curves]
    return kendall(early, [curve.scores[-1] for curve in curves])


def size_gap(a: Curve, b: Curve, x_a: np.ndarray | None = None, x_b: np.ndarray | None = None,
             points: int = 50) -> float:
    """Mean absolute gap of the scores above chance at equal x, over the range that both curves cover.

    x: log tokens by default; give each curve's held-out loss to compare at equal loss, or tokens a parameter. Raises
    ValueError where the ranges do not meet.
    """
    first, second = (np.log(curve.tokens) if x is None else np.asarray(x, np.float64)
                     for curve, x in ((a, x_a), (b, x_b)))
    low, high = max(first.min(), second.min()), min(first.max(), second.max())
    if low > high:
        raise ValueError(f"the curves of {a.run} and {b.run} have no common range")
    at = np.linspace(low, high, points)
    return float(np.abs(_interpolated(first, a.normalised, at) - _interpolated(second, b.normalised, at)).mean())


def _interpolated(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    order = np.argsort(x, kind="stable")
    return np.interp(at, x[order], y[order])


def moving(curve: Curve) -> dict[str, float]:
    """{slope, noise}: gain a unit of log tokens over the recent checkpoints, and their deviation from that line."""
    x, y = recent(curve)
    if len(x) < 3:
        return {"slope": 0.0, "noise": 0.0}
    fitted = np.polyfit(x, y, 1)
    return {"slope": float(fitted[0]), "noise": float(np.sqrt(np.sum((np.polyval(fitted, x) - y) ** 2) / (len(x) - 2)))}
