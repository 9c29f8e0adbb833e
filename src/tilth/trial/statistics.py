"""Paired differences over seeds and documents."""

from collections.abc import Sequence
from typing import Any

import numpy as np

RESAMPLES = 4000
# Student's t, 97.5 %, for 1 to 30 degrees of freedom.
T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
        2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)


def paired(a: np.ndarray, b: np.ndarray, weights: np.ndarray, *, resamples: int = RESAMPLES,
           seed: int = 0) -> dict[str, Any]:
    """a minus b, both (S seeds, D documents), seed by seed and document by document.

    The difference is sum(a - b) / (S sum(weights)): with bits and bytes of documents, bits per byte. `interval` (95 %)
    is the bootstrap over seeds and documents at once, both drawn with replacement, pairs kept together (crossed, as in
    Owen 2007, "The pigeonhole bootstrap"); what seeds add is widened by sqrt(S / (S - 1)), since a bootstrap of few
    seeds is too narrow. `interval_seeds` is Student's t over the seeds' differences, for these documents; None for one
    seed. `by_seed`: the difference of each.
    """
    if a.shape != b.shape or a.shape[1:] != weights.shape:
        raise ValueError(f"paired values must have one shape, not {a.shape}, {b.shape} and weights {weights.shape}")
    left, seeds = a - b, len(a)
    by_seed = left.sum(1) / weights.sum()
    mean = left.mean(0, keepdims=True)
    widened = mean + (left - mean) * np.sqrt(seeds / max(seeds - 1, 1))
    rng = np.random.default_rng(seed)
    drawn = np.empty(resamples)
    for number in range(resamples):
        documents = rng.integers(0, len(weights), len(weights))
        rows = widened[rng.integers(0, seeds, seeds)]
        drawn[number] = rows[:, documents].sum() / seeds / weights[documents].sum()
    return {"difference": float(by_seed.mean()), "interval": np.quantile(drawn, [0.025, 0.975]).tolist(),
            "interval_seeds": student(by_seed), "by_seed": by_seed.tolist(), "wins": int((by_seed < 0).sum()),
            "documents": len(weights)}


def student(values: Sequence[float] | np.ndarray) -> list[float] | None:
    """The 95 % interval of the mean of independent values by Student's t; None for fewer than two."""
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return None
    t = T975[len(values) - 2] if len(values) - 1 <= len(T975) else 1.96
    half = t * float(values.std(ddof=1)) / np.sqrt(len(values))
    return [float(values.mean() - half), float(values.mean() + half)]


def verdict(interval: Sequence[float], interval_seeds: Sequence[float] | None) -> str:
    """For a measure where less is better: `shows` or `reversed` where both intervals lie on one side of 0; else
    `unclear`, and always with a single seed."""
    if interval_seeds is None:
        return "unclear"
    ends = [*interval, *interval_seeds]
    return "shows" if max(ends) < 0 else "reversed" if min(ends) > 0 else "unclear"
