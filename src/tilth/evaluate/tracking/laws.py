"""Laws: loss from parameters and tokens, and a task's score from the loss.

Both are small least-squares problems with several starts, solved by Levenberg and Marquardt's damped steps with
weights that make the loss Huber's (iteratively reweighted least squares).
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np

HUBER = 1e-3
STEPS = 400


@dataclass(frozen=True)
class LossLaw:
    """L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, arXiv 2203.15556, eq. 2)."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float

    def __call__(self, parameters: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        n, d = np.asarray(parameters, np.float64), np.asarray(tokens, np.float64)
        return self.E + self.A / n**self.alpha + self.B / d**self.beta


def fit_loss_law(parameters: np.ndarray, tokens: np.ndarray, losses: np.ndarray, delta: float = HUBER) -> LossLaw:
    """The law that minimises Huber(log L_fit - log L) with `delta`, from a grid of starts (Hoffmann et al., D.2).

    Raises ValueError from fewer than six points: five numbers are to be found.
    """
    n, d, y = (np.log(np.asarray(part, np.float64)) for part in (parameters, tokens, losses))
    if len(y) < 6:
        raise ValueError(f"the loss law has five numbers; {len(y)} points do not determine them")
    centre = n.mean(), d.mean()
    n, d = n - centre[0], d - centre[1]

    def model(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """log L and its derivatives by (log E, log A', alpha, log B', beta), terms taken at the mean size and tokens:
        the exponents then hardly move the coefficients, and every start converges."""
        logs = np.stack([np.full_like(y, theta[0]), theta[1] - theta[2] * n, theta[3] - theta[4] * d])
        total = np.logaddexp.reduce(logs, axis=0)
        share = np.exp(logs - total)
        return total, np.stack([share[0], share[1], -n * share[1], share[2], -d * share[2]], axis=1)

    base = y.min()
    starts = [np.array([base + floor, base + a, alpha, base + b, beta]) for floor, a, alpha, b, beta in
              product((-0.1, -0.7), (-1.5, -3.0), (0.2, 0.5), (-1.5, -3.0), (0.2, 0.5))]
    best = min((damped(model, y, start, delta) for start in starts), key=lambda found: found[1])[0]
    return LossLaw(float(np.exp(best[0])), float(np.exp(best[1] + best[2] * centre[0])), float(best[2]),
                   float(np.exp(best[3] + best[4] * centre[1])), float(best[4]))


@dataclass(frozen=True)
class ScoreOfLoss:
    """a'(L) = top / (1 + exp(rate (L - middle))): an ability as a sigmoid of the held-out loss."""

    top: float
    rate: float
    middle: float

    def __call__(self, loss: np.ndarray | float) -> np.ndarray:
        return self.top / (1 + np.exp(np.clip(self.rate * (np.asarray(loss, np.float64) - self.middle), -60, 60)))


def fit_score_of_loss(losses: np.ndarray, scores: np.ndarray) -> ScoreOfLoss:
    """Least squares over a grid of rate and middle, `top` solved exactly and kept in [0, 1]."""
    x, y = np.asarray(losses, np.float64), np.asarray(scores, np.float64)
    width = max(float(np.ptp(x)), 1e-3)
    rates = np.geomspace(0.5 / width, 30 / width, 40)[:, None, None]
    middles = np.linspace(x.min() - width, x.max() + width / 2, 80)[None, :, None]
    basis = 1 / (1 + np.exp(np.clip(rates * (x - middles), -60, 60)))
    tops = np.clip((basis * y).sum(-1) / (basis**2).sum(-1), 0.0, 1.0)
    errors = ((tops[..., None] * basis - y) ** 2).sum(-1)
    row, column = np.unravel_index(int(errors.argmin()), errors.shape)
    return ScoreOfLoss(float(tops[row, column]), float(rates[row, 0, 0]), float(middles[0, column, 0]))


def damped(model: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], y: np.ndarray, start: np.ndarray,
           delta: float) -> tuple[np.ndarray, float]:
    """Minimise sum Huber(model - y): (parameters, value). A step is taken if it lowers the value; the damping shrinks
    then, and grows otherwise."""
    theta, damping = start.copy(), 1e-2
    fitted, slopes = model(theta)
    value = huber(fitted - y, delta)
    for _ in range(STEPS):
        error = fitted - y
        weight = np.minimum(1.0, delta / np.maximum(np.abs(error), 1e-300))
        normal = slopes.T @ (weight[:, None] * slopes)
        # A term that has died out has no slope: a floor under the damping keeps the system solvable.
        floor = 1e-9 * max(float(np.diag(normal).max()), 1e-300)
        step = np.linalg.solve(normal + damping * np.diag(np.diag(normal) + floor), slopes.T @ (weight * error))
        there, there_slopes = model(theta - step)
        new = huber(there - y, delta)
        if not new < value:
            damping *= 4
            if damping > 1e12:
                break
            continue
        done = value - new < 1e-15 * value
        theta, fitted, slopes, value, damping = theta - step, there, there_slopes, new, max(damping / 4, 1e-9)
        if done:
            break
    return theta, value


def huber(errors: np.ndarray, delta: float) -> float:
    """Sum of errors^2 / 2 up to `delta`, linear beyond."""
    size = np.abs(errors)
    return float(np.where(size <= delta, size**2 / 2, delta * (size - delta / 2)).sum())
