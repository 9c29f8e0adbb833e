"""Laws of the best learning rate and batch from measured runs, with bootstrap intervals.

A run is (parameters N, tokens D, rate, tokens of a step, loss); a cell is all runs of one (N, D).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilth.optim.advisor import Advice, PowerLaw
from tilth.recipe.errors import BadInput

NEAR_BEST = 0.0025  # runs within 0.25 % of their cell's best loss stand for its optimum (Li et al. 2025, released tool)
LARGEST_LOG = 700.0  # beyond it a factor is no number of float64
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """One measured run. loss: the smoothed or held-out one, in any unit; not finite where it diverged."""

    parameters: float
    tokens: float
    lr: float
    batch_tokens: float
    loss: float


def cells(runs: Sequence[Run]) -> dict[tuple[float, float], list[Run]]:
    """Finite runs by (parameters, tokens)."""
    found: dict[tuple[float, float], list[Run]] = {}
    for run in runs:
        if math.isfinite(run.loss):
            found.setdefault((run.parameters, run.tokens), []).append(run)
    return found


@dataclass(frozen=True)
class Fitted:
    """A law, the central `level` intervals of its coefficients over the bootstrap, and how many runs it stands on.
    A coefficient that the runs do not identify (one size only, say) is fixed at 0 with the interval (0, 0)."""

    law: PowerLaw
    intervals: dict[str, tuple[float, float]]
    runs: int


def fit_step_law(runs: Sequence[Run], resamples: int = 1000, level: float = 0.95, seed: int = 0) -> Fitted:
    """Least squares of log lr on (log N, log D) and of log batch on log D over the near-best runs of every cell, the
    mean over `resamples` draws of those runs with replacement: the recipe of the released Step Law tool."""
    near = [run for group in cells(runs).values() for run in near_best(group)]
    if len(near) < 3:
        raise BadInput(f"{len(near)} runs are near the best of their size and length; a law needs at least 3.")
    logs = np.log([[run.parameters, run.tokens, run.lr, run.batch_tokens] for run in near])
    rng = np.random.default_rng(seed)
    samples = (logs[rng.integers(0, len(logs), len(logs))] for _ in range(resamples))
    drawn = [_coefficients(sample) for sample in samples if _identifies(sample, logs)]
    draws = np.array(drawn or [_coefficients(logs)])
    log_c, alpha, beta, log_d, gamma = draws.mean(0)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    if max(abs(log_c), abs(log_d)) > LARGEST_LOG:
        raise BadInput(f"The {len(near)} runs near the best do not determine a law (a factor of e^{log_d:.0f}): give "
                       f"more sizes, more lengths, or a grid whose best batch is not at its edge.")
    names = ("log_c", "alpha", "beta", "log_d", "gamma")
    intervals = {name: (float(low[i]), float(high[i])) for i, name in enumerate(names)}
    law = PowerLaw(math.exp(log_c), float(alpha), float(beta), math.exp(log_d), float(gamma))
    return Fitted(law, intervals, len(near))


def near_best(group: Sequence[Run]) -> list[Run]:
    """The runs of a cell within 0.25 % of its best loss."""
    best = min(run.loss for run in group)
    return [run for run in group if run.loss <= best * (1 + NEAR_BEST)]


def _coefficients(logs: Array) -> tuple[float, ...]:
    """(log c, alpha, beta, log d, gamma) of rows (log N, log D, log lr, log batch)."""
    log_c, alpha, beta = _least_squares(logs[:, :2], logs[:, 2])
    log_d, gamma = _least_squares(logs[:, 1:2], logs[:, 3])
    return log_c, alpha, beta, log_d, gamma


def _identifies(sample: Array, logs: Array) -> bool:
    """Whether a sample tells the slopes over sizes and tokens apart as well as all runs do."""
    ranks = [np.linalg.matrix_rank(rows[:, :2] - rows[:, :2].mean(0), tol=1e-6) for rows in (sample, logs)]
    return bool(ranks[0] == ranks[1])


def _least_squares(x: Array, y: Array) -> list[float]:
    """Intercept and slopes; a column that does not vary has slope 0."""
    varies = np.ptp(x, axis=0) > 1e-9
    slopes = np.zeros(x.shape[1])
    if varies.any():
        centred = x[:, varies] - x[:, varies].mean(0)
        slopes[varies] = np.linalg.lstsq(centred, y - y.mean(), rcond=None)[0]
    return [float(y.mean() - x.mean(0) @ slopes), *map(float, slopes)]


def excess(runs: Sequence[Run], law: Callable[[float, float], Advice]) -> dict[tuple[float, float], float]:
    """For each cell, the loss of the run nearest to the law's advice (in log rate and log batch) over the cell's best,
    minus 1."""
    found = {}
    for cell, group in cells(runs).items():
        advice = law(*cell)
        nearest = min(group, key=lambda run: _distance(run, advice))
        found[cell] = nearest.loss / min(run.loss for run in group) - 1
    return found


def _distance(run: Run, advice: Advice) -> float:
    return math.log(run.lr / advice.lr) ** 2 + math.log(run.batch_tokens / advice.batch_tokens) ** 2


@dataclass(frozen=True)
class Vertex:
    """The best value of one hyperparameter by a parabola in its logarithm; `inside`: between the values tried;
    `interval`: None with one seed a value."""

    at: float
    interval: tuple[float, float] | None
    loss: float
    inside: bool


def vertex(values: Sequence[float], losses: Sequence[Sequence[float]], resamples: int = 1000, level: float = 0.95,
           seed: int = 0) -> Vertex | None:
    """Fit mean loss = p + q log(x) + r log(x)^2 through the best value and its two neighbours each side; `losses`: for
    each value its seeds. The interval resamples seeds; None where the curve is not convex or has under 3 points."""
    order = np.argsort(values)
    x = np.log(np.asarray(values, float)[order])
    table = [np.asarray(losses[i], float) for i in order]
    kept = [i for i, seeds in enumerate(table) if np.isfinite(seeds).all() and len(seeds)]
    if len(kept) < 3:
        return None
    x, table = x[kept], [table[i] for i in kept]
    found = _parabola(x, np.array([seeds.mean() for seeds in table]))
    if found is None:
        return None
    if max(len(seeds) for seeds in table) < 2:
        return Vertex(math.exp(found[0]), None, found[1], bool(x[0] < found[0] < x[-1]))
    rng = np.random.default_rng(seed)
    drawn = [_parabola(x, np.array([rng.choice(seeds, len(seeds)).mean() for seeds in table]))
             for _ in range(resamples)]
    at = [one[0] for one in drawn if one is not None]
    low, high = np.exp(np.quantile(at, [(1 - level) / 2, (1 + level) / 2])) if at else (0.0, math.inf)
    return Vertex(math.exp(found[0]), (float(low), float(high)), found[1], bool(x[0] < found[0] < x[-1]))


def _parabola(x: Array, y: Array) -> tuple[float, float] | None:
    """Place and height of the minimum, by least squares around the lowest point; None if it opens downwards."""
    best = int(y.argmin())
    near = slice(max(0, min(best - 2, len(x) - 5)), max(best + 3, 5))
    r, q, p = np.polyfit(x[near] - x[best], y[near], 2)
    if r <= 0:
        return None
    at = float(np.clip(-q / (2 * r), x[0] - x[best], x[-1] - x[best]))
    return at + float(x[best]), float(p + q * at + r * at * at)
