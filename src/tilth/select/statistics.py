"""Rank statistics of scores."""

import numpy as np


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, equal values share their mean rank, float64 (n,)."""
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation; 0 where one side does not vary."""
    left, right = ranks(a), ranks(b)
    left, right = left - left.mean(), right - right.mean()
    scale = float(np.sqrt((left @ left) * (right @ right)))
    return float(left @ right) / scale if scale else 0.0
