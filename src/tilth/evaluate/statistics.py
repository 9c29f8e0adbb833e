"""Standard errors, and whether one model is better than another on the same items."""

from collections.abc import Sequence
from typing import Any

import numpy as np

RESAMPLES = 2000
MINIMUM_FOR_ERROR = 2


def mean(values: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """{value, stderr, n}: the mean of independent values and its standard error (null for fewer than two)."""
    found = np.asarray(values, np.float64)
    error = float(found.std(ddof=1) / np.sqrt(len(found))) if len(found) >= MINIMUM_FOR_ERROR else None
    return {"value": float(found.mean()), "stderr": error, "n": len(found)}


def ratio(tops: np.ndarray, bottoms: np.ndarray) -> dict[str, Any]:
    """{value, stderr, n}: sum(tops) / sum(bottoms) over independent documents.

    The standard error is that of the linearised ratio estimator (Cochran 1977, 6.4): the residuals top - value * bottom
    vary about zero, and their root mean square, over the mean bottom and the root of n, is the error.
    """
    tops, bottoms = np.asarray(tops, np.float64), np.asarray(bottoms, np.float64)
    value = float(tops.sum() / bottoms.sum())
    n, error = len(tops), None
    if n >= MINIMUM_FOR_ERROR:
        left = tops - value * bottoms
        error = float(np.sqrt((left @ left) / (n - 1) / n) / bottoms.mean())
    return {"value": value, "stderr": error, "n": n}


def paired_difference(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray,
                      weights: Sequence[float] | np.ndarray | None = None, *, level: float = 0.95,
                      resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """{value, stderr, interval: [low, high], n}: model `a` minus model `b` on the same items, in the same order.

    Without `weights` the difference of means (accuracy by item). With `weights` the difference of
    sum(a) / sum(weights) and sum(b) / sum(weights): give bits by document and bytes by document for bits per byte. The
    interval holds `level` of the bootstrap over items (pairs stay together), so that what is hard for both cancels.
    Raises ValueError where the two do not have the same items.
    """
    left = np.asarray(a, np.float64) - np.asarray(b, np.float64) if len(a) == len(b) else None
    if left is None or not len(left):
        raise ValueError(f"a paired difference needs the same items on both sides, not {len(a)} and {len(b)}")
    below = np.ones(len(left)) if weights is None else np.asarray(weights, np.float64)
    if len(below) != len(left):
        raise ValueError(f"{len(below)} weights for {len(left)} items")
    rng = np.random.default_rng(seed)
    drawn = np.empty(resamples)
    for number in range(resamples):
        picked = rng.integers(0, len(left), len(left))
        drawn[number] = left[picked].sum() / below[picked].sum()
    tail = (1 - level) / 2
    return ratio(left, below) | {"interval": np.quantile(drawn, [tail, 1 - tail]).tolist()}


def wilson(successes: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's (1927) interval of a share: (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)."""
    p, square = successes / n, z * z / n
    middle, half = p + square / 2, z * np.sqrt(p * (1 - p) / n + square / (4 * n))
    return float((middle - half) / (1 + square)), float((middle + half) / (1 + square))
