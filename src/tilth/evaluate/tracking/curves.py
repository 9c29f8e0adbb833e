"""Scores of one task over the checkpoints of one run, and what an early part of them shows.

`K` checkpoints, in the order of their tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

# Slopes look back this far in log tokens: a factor of 12, so that the steep start does not count for all time.
REACH = np.log(12.0)


@dataclass(frozen=True)
class Curve:
    """`tokens` and `scores` (K,) of `task` in the run `run`, a model of `size` parameters.

    group: what is left out together when a forecast is checked (runs of one size, which resemble each other); chance:
    the score of one who knows nothing; stderr: the standard error of one score, if known.
    """

    run: str
    group: str
    task: str
    size: float
    tokens: np.ndarray
    scores: np.ndarray
    chance: float = 0.0
    stderr: float | None = None

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.scores) or np.any(np.diff(self.tokens) <= 0):
            raise ValueError(f"the curve of {self.task} in {self.run} needs one score a checkpoint, tokens ascending")

    def until(self, tokens: float) -> "Curve":
        """The part that was seen when the run had read `tokens`."""
        seen = self.tokens <= tokens
        return replace(self, tokens=self.tokens[seen], scores=self.scores[seen])

    def after(self, tokens: float) -> "Curve":
        """The checkpoints from `tokens` on."""
        late = self.tokens >= tokens
        return replace(self, tokens=self.tokens[late], scores=self.scores[late])

    @property
    def normalised(self) -> np.ndarray:
        """a' = (a - c) / (1 - c): 0 at chance, 1 when all is right."""
        return above_chance(self.scores, self.chance)


def above_chance(scores: np.ndarray | float, chance: float) -> np.ndarray:
    """a' = (a - c) / (1 - c)."""
    return (np.asarray(scores, np.float64) - chance) / (1 - chance)


def recent(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Log tokens and scores of the checkpoints within `REACH` of the last one."""
    positive = curve.tokens > 0
    x, y = np.log(curve.tokens[positive]), curve.scores[positive]
    near = x >= x[-1] - REACH if len(x) else np.zeros(0, bool)
    return x[near], y[near]


def slope(curve: Curve) -> float:
    """Gain a unit of log tokens over the recent checkpoints, by least squares; 0 from fewer than two."""
    x, y = recent(curve)
    if len(x) < 2:
        return 0.0
    x = x - x.mean()
    return float(x @ y / (x @ x))


def level(curve: Curve, checkpoints: int = 3) -> float:
    """The mean of the last scores: less noisy than the last, and a little behind it."""
    return float(curve.scores[-checkpoints:].mean())


def common_grid(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (K,) that all the curves have, and their scores there, (curves, K)."""
    tokens = curves[0].tokens
    for curve in curves[1:]:
        tokens = np.intersect1d(tokens, curve.tokens)
    return tokens, np.array([curve.scores[np.searchsorted(curve.tokens, tokens)] for curve in curves])
