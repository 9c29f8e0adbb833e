"""How good a forecast's interval is, and intervals that keep their promise by construction.

The interval (Winkler) score of a central interval [l, u] at level 1 - alpha for what then was y is

    (u - l) + 2 / alpha * max(l - y, 0) + 2 / alpha * max(y - u, 0)

(Winkler 1972; Gneiting and Raftery 2007, eq. 43): narrow is good, a miss costs by how far. Less is better, and on
average no interval beats the true quantiles.
"""

from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A forecast: its middle, and the central interval of the level that was asked for."""

    value: float
    low: float
    high: float


def winkler(low: np.ndarray, high: np.ndarray, y: np.ndarray, level: float = 0.8) -> np.ndarray:
    """The interval score of each forecast."""
    low, high, y = (np.asarray(part, np.float64) for part in (low, high, y))
    missed = np.maximum(low - y, 0) + np.maximum(y - high, 0)
    return (high - low) + 2 / (1 - level) * missed


def covered(low: np.ndarray, high: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether each y lies in its interval, bool."""
    return (np.asarray(low) <= np.asarray(y)) & (np.asarray(y) <= np.asarray(high))


def conformal_bounds(residuals: np.ndarray, level: float = 0.8,
                     weights: np.ndarray | None = None) -> tuple[float, float]:
    """Lower and upper residual between which `level` of new ones fall.

    Split conformal prediction (Vovk et al. 2005; Lei et al. 2018) taken at both ends: the quantiles at alpha / 2 and
    1 - alpha / 2 of the calibration residuals, moved outwards by the finite-sample rank correction (n + 1) / n.
    `weights` make unequal groups count alike.
    """
    residuals = np.asarray(residuals, np.float64)
    weights = np.ones(len(residuals)) if weights is None else np.asarray(weights, np.float64)
    order = np.argsort(residuals)
    share = (np.cumsum(weights[order]) - weights[order] / 2) / weights.sum()
    effective = weights.sum() ** 2 / (weights @ weights)
    tail = max(0.0, (1 - level) / 2 * (1 + 1 / effective) - 1 / effective)
    return (float(np.interp(tail, share, residuals[order])), float(np.interp(1 - tail, share, residuals[order])))
