"""How often to take snapshots, what that costs, and how likely a group is to survive.

Young's first-order optimum (Young 1974, "A first order approximation to the optimum checkpoint interval"): with Ts
seconds of training lost to each snapshot and a mean time M between failures, T* = sqrt(2 Ts M), and the share of time
lost is Ts/T + T/(2M), about sqrt(2 Ts / M) at the optimum, plus what each restart costs.
"""

import math
from dataclasses import dataclass


def survival(members: int, failure: float, losses: int = 0, groups: int = 1) -> float:
    """The probability that every group of `members` loses at most `losses`, each failing independently with
    probability `failure` within the window: the sum of the first binomial terms, to the power of `groups`."""
    return sum(math.comb(members, lost) * failure**lost * (1 - failure) ** (members - lost)
               for lost in range(losses + 1)) ** groups


def young_interval(snapshot_seconds: float, between_failures: float) -> float:
    """Seconds between snapshots that lose the least time."""
    return math.sqrt(2 * snapshot_seconds * between_failures)


def lost_share(interval: float, snapshot_seconds: float, between_failures: float,
               restart_seconds: float = 0.0) -> float:
    """The share of all time lost at an interval: taking snapshots, training again what was lost, restarting."""
    return snapshot_seconds / interval + (interval / 2 + restart_seconds) / between_failures


@dataclass(frozen=True)
class Advice:
    """steps: between snapshots; interval: the same in seconds; lost_share: forecast at that interval; now_lost_share:
    at the interval in use."""

    steps: int
    interval: float
    lost_share: float
    now_lost_share: float


def advise(step_seconds: float, snapshot_seconds: float, between_failures: float, steps_now: int,
           restart_seconds: float = 0.0) -> Advice:
    """The interval for measured costs and an observed (or expected) mean time between failures, in whole steps."""
    interval = young_interval(max(snapshot_seconds, 1e-9), between_failures)
    steps = max(1, round(interval / step_seconds))
    best, now = (lost_share(many * step_seconds, snapshot_seconds, between_failures, restart_seconds)
                 for many in (steps, steps_now))
    return Advice(steps, interval, best, now)


@dataclass(frozen=True)
class Lost:
    """What happened. snapshots: taken; snapshot_seconds: of training that they took, in all; steps_again: trained a
    second time; restarts: seconds from failure to the first step, in all; seconds: of the run, from start to now."""

    failures: int
    snapshots: int
    snapshot_seconds: float
    steps_again: int
    restart_seconds: float
    step_seconds: float
    seconds: float

    @property
    def share(self) -> float:
        """The share of the run's time that failures and the precautions against them took."""
        lost = self.snapshot_seconds + self.steps_again * self.step_seconds + self.restart_seconds
        return lost / max(self.seconds, 1e-9)

    @property
    def between_failures(self) -> float:
        """Seconds; without a failure yet, the run's whole length stands for a lower bound of it."""
        return self.seconds / max(self.failures, 1)

    def forecast(self, interval_steps: int) -> float:
        """The share that the formula expects for the same failures, snapshots and restarts."""
        each = self.snapshot_seconds / max(self.snapshots, 1)
        restart = self.restart_seconds / max(self.failures, 1)
        return lost_share(interval_steps * self.step_seconds, each, self.between_failures, restart)
