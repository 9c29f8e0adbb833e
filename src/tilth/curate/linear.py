"""Linear models over bags of n-grams, exact up to the tolerance of conjugate gradients.

An item is the average of its n-grams, as in fastText (Joulin et al. 2017, https://arxiv.org/abs/1607.01759): with bag
B(x) of features,

    score(x) = bias + 1 / |B(x)| sum_{g in B(x)} w_g

so length by itself moves no score. Two fits, both convex, so that the same data gives the same model: ridge regression
for a number, logistic regression (Newton's method) for two classes. What the n-grams are of is the business of others:
words and characters of text (`tilth.curate.classifier`), tokens of a pool (`tilth.select.ngrams`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Bags:
    """The n-grams of items: features int32 (G,), where each item's begin in them (U,), how many (U,); none is empty."""

    features: np.ndarray
    starts: np.ndarray
    counts: np.ndarray

    def times(self, weights: np.ndarray) -> np.ndarray:
        """X w: the mean weight of each item's n-grams, float64 (U,)."""
        return np.add.reduceat(weights[self.features], self.starts, dtype=np.float64) / self.counts

    def transposed(self, values: np.ndarray, size: int) -> np.ndarray:
        """X' r, float64 (size,)."""
        return np.bincount(self.features, np.repeat(values / self.counts, self.counts), size)

    def squares(self, values: np.ndarray, size: int) -> np.ndarray:
        """A lower bound of the diagonal of X' diag(r) X, for preconditioning, float64 (size,)."""
        return np.bincount(self.features, np.repeat(values / np.square(self.counts, dtype=np.float64), self.counts),
                           size)


@dataclass(frozen=True)
class Linear:
    """A fitted model: weights float64 (size,), bias."""

    weights: np.ndarray
    bias: float


def fit_ridge(bags: Bags, target: np.ndarray, size: int, penalty: float) -> Linear:
    """min_w sum (x w + b - y)^2 + penalty / mean bag size * |w|^2, b the mean of y. The scale makes `penalty` a number
    of order one whatever the lengths: the square of an average of n unit features is about 1 / n."""
    bias, ones = float(target.mean()), np.ones(len(target))
    scaled = penalty / float(bags.counts.mean())
    weights = conjugate_gradients(lambda w: bags.transposed(bags.times(w), size) + scaled * w,
                                  bags.transposed(target - bias, size), bags.squares(ones, size) + scaled)
    return Linear(weights, bias)


def fit_logistic(bags: Bags, label: np.ndarray, size: int, penalty: float, rounds: int = 12) -> Linear:
    """min sum log(1 + exp(-y (x w + b))) + penalty / (2 mean bag size) |w|^2 for labels 0 and 1, by Newton's method."""
    scaled, weights = penalty / float(bags.counts.mean()), np.zeros(size)
    bias = float(np.log(label.mean() / (1 - label.mean())))
    for _ in range(rounds):
        guess = 1 / (1 + np.exp(-np.clip(bags.times(weights) + bias, -30, 30)))
        curve = np.maximum(guess * (1 - guess), 1e-6)
        down = bags.transposed(label - guess, size) - scaled * weights
        step = conjugate_gradients(lambda w, c=curve: bags.transposed(c * bags.times(w), size) + scaled * w,  # type: ignore[misc]
                                   down, bags.squares(curve, size) + scaled, most=30)
        weights, bias = weights + step, bias + float((label - guess).sum() / curve.sum())
        if np.abs(step).max() < 1e-4 * max(np.abs(weights).max(), 1.0):
            break
    return Linear(weights, bias)


def conjugate_gradients(apply: Callable[[np.ndarray], np.ndarray], right: np.ndarray, diagonal: np.ndarray,
                        most: int = 100, tolerance: float = 1e-5) -> np.ndarray:
    """Solve A x = right for a positive definite A, preconditioned by its diagonal."""
    found, left = np.zeros_like(right), right.copy()
    scaled = left / diagonal
    direction, size = scaled.copy(), float(left @ scaled)
    first = size
    for _ in range(most):
        if size <= tolerance**2 * first or size == 0:
            break
        image = apply(direction)
        step = size / float(direction @ image)
        found += step * direction
        left -= step * image
        scaled = left / diagonal
        before, size = size, float(left @ scaled)
        direction = scaled + size / before * direction
    return found
