"""What training runs say about stability: how each ended, how often they fail, and which formats are safe.

Lee et al. 2024 (arXiv 2405.18710) judge a number format by how robust training stays over seeds, learning rates and
data, not by one final loss. This module judges runs and grids of runs; it trains nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tilth.recipe import BadInput
from tilth.train.stability import middle_and_spread

Kind = Literal["converged", "spiking", "stalled", "diverged"]
Z95 = 1.959963984540054


@dataclass(frozen=True)
class Thresholds:
    """margin: nats above the best smoothed loss at which a run has diverged, and below the first loss that it must
    reach not to have stalled; smooth: share of the run that a smoothed loss averages; deviations, window, begin: of
    spikes, as in `tilth.train.stability`."""

    margin: float = 0.25
    smooth: float = 0.1
    deviations: float = 6.0
    window: int = 128
    begin: int = 32


@dataclass(frozen=True)
class Outcome:
    """How one run ended. first, best, final: losses in nats, the last two smoothed (final is None where training
    failed); diverged_at: the step from which the smoothed loss stayed above the margin, or at which training failed;
    spikes: steps far above those before them."""

    kind: Kind
    first: float
    best: float
    final: float | None
    spikes: int
    diverged_at: int | None = None

    @property
    def failed(self) -> bool:
        return self.kind in ("diverged", "stalled")


def judge(losses: Sequence[float], failed: bool, limits: Thresholds | None = None) -> Outcome:
    """The outcome of a run from its training losses, one a step. failed: training ended early because it was not
    finite. Diverged: so, or the smoothed loss at the end is above the best by the margin. Stalled: it never fell below
    the first loss by the margin. Spiking: it has spikes, and converged all the same."""
    limits = limits or Thresholds()
    values = np.asarray(losses, np.float64)
    if not len(values):
        if failed:
            return Outcome("diverged", math.nan, math.nan, None, 0, 0)
        raise BadInput("a run without a single training loss cannot be judged.")
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        values, failed = values[:bad[0]], True
    if not len(values):
        return Outcome("diverged", math.nan, math.nan, None, 0, 0)
    curve = smoothed(values, limits.smooth)
    first, best, spikes = float(values[0]), float(curve.min()), count_spikes(values, limits)
    if failed:
        return Outcome("diverged", first, best, None, spikes, len(values))
    above = curve > np.minimum.accumulate(curve) + limits.margin
    final = float(curve[-1])
    if above[-1]:
        calm = np.flatnonzero(~above)
        return Outcome("diverged", first, best, final, spikes, int(calm[-1]) + 1)
    kind: Kind = "stalled" if best > first - limits.margin else "spiking" if spikes else "converged"
    return Outcome(kind, first, best, final, spikes)


def smoothed(values: np.ndarray, share: float) -> np.ndarray:
    """Mean of each value and those before it, over `share` of the run (fewer at its beginning)."""
    window = max(1, round(share * len(values)))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def count_spikes(values: Sequence[float] | np.ndarray, limits: Thresholds) -> int:
    """Steps more than `deviations` median absolute deviations above the median of the `window` steps before."""
    found = 0
    for at in range(limits.begin, len(values)):
        middle, spread = middle_and_spread([float(value) for value in values[max(0, at - limits.window):at]])
        found += values[at] > middle + limits.deviations * spread
    return int(found)


def wilson(successes: int, runs: int, z: float = Z95) -> tuple[float, float]:
    """The interval of a proportion (Wilson 1927), 95 % by default: 18 of 188 gives 0.061 to 0.146; (0, 1) for no
    runs."""
    if not 0 <= successes <= runs:
        raise ValueError(f"{successes} of {runs} is no proportion")
    if not runs:
        return 0.0, 1.0
    share = successes / runs
    middle = share + z * z / (2 * runs)
    half = z * math.sqrt(share * (1 - share) / runs + z * z / (4 * runs * runs))
    low, high = ((middle + sign * half) / (1 + z * z / runs) for sign in (-1, 1))
    return max(low, 0.0) if successes else 0.0, min(high, 1.0) if successes < runs else 1.0


def chance_to_see(rate: float, runs: int) -> float:
    """Probability that `runs` runs show at least one failure of this rate: 10 runs at 10 % show one with 65 %."""
    return 1 - (1 - rate) ** runs


def runs_to_see(rate: float, power: float) -> int:
    """The fewest runs that show a failure of this rate with probability `power`: 22 at 10 % and 0.9, 29 at 0.95."""
    return math.ceil(math.log(1 - power) / math.log(1 - rate) - 1e-12)


def rate_sensitivity(finals: Mapping[float, float | None], first: float) -> float:
    """Mean over learning rates of min(final loss, first loss) minus the best final loss (Wortsman et al. 2023, arXiv
    2309.14322, section 2.2): 0 where every rate is as good as the best; None or NaN counts as the first loss.
    NaN where no rate has a final loss."""
    if all(end is None or math.isnan(end) for end in finals.values()):
        return math.nan
    ends = [first if end is None or math.isnan(end) else min(end, first) for end in finals.values()]
    return sum(ends) / len(ends) - min(ends)


def rank_test(higher: Sequence[float], lower: Sequence[float]) -> tuple[float, float]:
    """Whether one group lies above another: the share of pairs in which it does (ties half; 0.5 is chance), and the
    one-sided p of the Mann-Whitney test by its normal approximation with ties. NaN where a group is empty."""
    a, b = np.asarray(higher, np.float64), np.asarray(lower, np.float64)
    if not len(a) or not len(b):
        return math.nan, math.nan
    wins = float((a[:, None] > b[None]).sum() + 0.5 * (a[:, None] == b[None]).sum())
    n, (_, ties) = len(a) + len(b), np.unique(np.concatenate([a, b]), return_counts=True)
    variance = len(a) * len(b) / 12 * (n + 1 - float((ties**3 - ties).sum()) / (n * (n - 1)))
    excess = (wins - len(a) * len(b) / 2 - 0.5) / math.sqrt(variance) if variance > 0 else 0.0
    return wins / (len(a) * len(b)), 0.5 * math.erfc(excess / math.sqrt(2))
