"""A forecast of late scores from early checkpoints, learnt from runs that went before.

For a run seen up to D0 tokens, with last score y and recent level m, the gain until D tokens is modelled as

    score(D) - y = g (m - y) + h (b . f + u_task),      h = ln(D / D0)

where f are features of the early part, each a rate a unit of log tokens: the task's own slope, what the task has
gained over chance so far (alone, by log size, by how evenly the whole run still moves), the run's mean slope over all
tasks, and log size. What scales with h is a drift, what does not is noise in the last score. b, g and the task effects
u are found together by ridge regression over all runs, tasks and late checkpoints, each size counting alike; the
penalty of u makes the pooling partial (Gelman and Hill 2007, ch. 12).

Intervals are conformal: every size is left out in turn, the others forecast it, and the errors, divided by a scale of
their task (its own error shrunk towards that of all tasks), give the quantiles. So they contain what a new size adds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tilth.evaluate.tracking.curves import Curve, level, slope
from tilth.evaluate.tracking.intervals import Interval, conformal_bounds
from tilth.recipe import BadInput

SIZE_UNIT = np.log(4e8)


@dataclass(frozen=True)
class Example:
    """A late score beside what was known before: features (F,), horizon h, the last score, whose it is."""

    task: str
    group: str
    features: np.ndarray
    horizon: float
    lag: float
    last: float
    target: float = np.nan


def examples(curves: Sequence[Curve], cut: dict[str, float], targets: dict[str, np.ndarray]) -> list[Example]:
    """One example a curve and target, from what each run showed up to `cut[run]` tokens at the `targets[run]` tokens.

    Targets that a curve has a score for carry it. Curves with fewer than two checkpoints before the cut are left out.
    """
    seen = {(curve.run, curve.task): curve.until(cut[curve.run]) for curve in curves}
    seen = {key: curve for key, curve in seen.items() if len(curve.scores) >= 2}
    pace = {run: float(np.mean([slope(curve) for (other, _), curve in seen.items() if other == run]))
            for run in {run for run, _ in seen}}
    found = []
    for curve in curves:
        early = seen.get((curve.run, curve.task))
        if early is None:
            continue
        known = dict(zip(curve.tokens.tolist(), curve.scores.tolist(), strict=True))
        for tokens in targets[curve.run]:
            found.append(Example(curve.task, curve.group, _features(early, pace[curve.run]),
                                 float(np.log(tokens / early.tokens[-1])), level(early) - early.scores[-1],
                                 float(early.scores[-1]), known.get(float(tokens), np.nan)))
    return found


def _features(seen: Curve, pace: float) -> np.ndarray:
    size, own = np.log(seen.size) - SIZE_UNIT, slope(seen)
    gained = level(seen) - seen.chance
    return np.array([own, own * size, gained, gained * size, pace, gained * pace])


@dataclass
class Forecaster:
    """`fit` on examples of finished runs, `predict` those of a new one; `shared` and `own` are the ridge penalties of
    common coefficients and of task effects, `prior` how many examples the pooled error scale counts for."""

    shared: float = 10.0
    own: float = 100.0
    prior: float = 20.0
    coefficients: np.ndarray = field(default_factory=lambda: np.zeros(0))
    tasks: list[str] = field(default_factory=list)
    residuals: np.ndarray = field(default_factory=lambda: np.zeros(0))
    residual_weights: np.ndarray = field(default_factory=lambda: np.zeros(0))
    scales: dict[str, float] = field(default_factory=dict)
    unit: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def fit(self, history: Sequence[Example]) -> "Forecaster":
        """Learn from finished runs of at least two groups; BadInput where there are fewer."""
        groups = sorted({example.group for example in history})
        if len(groups) < 2:
            raise BadInput(f"A forecast learns from finished runs of at least two sizes; there is {len(groups)}.")
        errors, sizes, names, weights = [], [], [], []
        for group in groups:
            rest = [example for example in history if example.group != group]
            left = [example for example in history if example.group == group]
            self._solve(rest)
            errors.append(np.array([one.target for one in left]) - self.middle(left))
            names += [one.task for one in left]
            sizes.append(np.sqrt([one.horizon for one in left]))
            weights.append(np.full(len(left), 1 / len(left)))
        error, root = np.concatenate(errors), np.concatenate(sizes)
        self._calibrate(error / root, np.array(names), np.concatenate(weights))
        self._solve(history)
        return self

    def middle(self, examples: Sequence[Example]) -> np.ndarray:
        """The forecast values, (n,)."""
        last = np.array([example.last for example in examples])
        return last + self._design(examples) @ self.coefficients

    def predict(self, examples: Sequence[Example], level: float = 0.8) -> list[Interval]:
        """Each example's forecast with its central interval."""
        middle = self.middle(examples)
        low, high = conformal_bounds(self.residuals, level, self.residual_weights)
        found = []
        for example, value in zip(examples, middle, strict=True):
            scale = self.scales.get(example.task, self.scales[""]) * np.sqrt(example.horizon)
            found.append(Interval(float(value), float(value + low * scale), float(value + high * scale)))
        return found

    def _design(self, examples: Sequence[Example]) -> np.ndarray:
        """(n, 1 + F + tasks): lag, features and task indicators, the last two times the horizon."""
        rates = np.array([example.features for example in examples]) / self.unit
        member = np.array([[float(example.task == task) for task in self.tasks] for example in examples])
        h = np.array([[example.horizon] for example in examples])
        lag = np.array([[example.lag] for example in examples])
        return np.concatenate([lag / self._lag_unit, h * rates, h * member], axis=1)

    def _solve(self, history: Sequence[Example]) -> None:
        self.tasks = sorted({example.task for example in history})
        self.unit = np.array([example.features for example in history]).std(axis=0) + 1e-12
        self._lag_unit = float(np.std([example.lag for example in history])) + 1e-12
        x = self._design(history)
        y = np.array([example.target - example.last for example in history])
        counts = {group: sum(one.group == group for one in history) for group in {one.group for one in history}}
        weight = np.array([len(history) / len(counts) / counts[example.group] for example in history])
        penalty = np.r_[0.0, np.full(len(self.unit), self.shared), np.full(len(self.tasks), self.own)]
        self.coefficients = np.linalg.solve(x.T @ (weight[:, None] * x) + np.diag(penalty + 1e-9), x.T @ (weight * y))

    def _calibrate(self, errors: np.ndarray, names: np.ndarray, weights: np.ndarray) -> None:
        pooled = float(np.average(np.abs(errors), weights=weights))
        self.scales = {"": pooled}
        for task in np.unique(names):
            mine = np.abs(errors[names == task])
            self.scales[str(task)] = float((mine.sum() + self.prior * pooled) / (len(mine) + self.prior))
        self.residuals = errors / np.array([self.scales[name] for name in names])
        self.residual_weights = weights
