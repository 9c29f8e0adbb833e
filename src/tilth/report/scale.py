"""Axes of the charts: where values fall, which ticks are round, which points of a long series are kept."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from tilth.recipe import quantity

Point = tuple[float, float]


@dataclass(frozen=True)
class Scale:
    """Maps data in [low, high] to pixels in [start, end], linearly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        if self.log:
            share = (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high

    def ticks(self, about: int = 5) -> list[float]:
        return log_ticks(self.low, self.high, about) if self.log else linear_ticks(self.low, self.high, about)


def fit(values: Sequence[float], start: float, end: float, *, log: bool = False, pad: float = 0.04) -> Scale:
    """A scale that holds all finite `values` (positive ones if `log`), with `pad` of air at both ends."""
    usable = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
    if not usable:
        return Scale(1, 10, start, end, log) if log else Scale(0, 1, start, end)
    low, high = min(usable), max(usable)
    if log:
        factor = (high / low) ** pad if high > low * 1.001 else 1.25
        return Scale(low / factor, high * factor, start, end, True)
    air = (high - low) * pad if high - low > abs(high) * 1e-9 else abs(high) * 0.1 or 0.5
    return Scale(low - air, high + air, start, end)


def linear_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten inside [low, high], near `about` of them."""
    span = high - low
    if not (math.isfinite(span) and span > 0):
        return [low] if math.isfinite(low) else []
    magnitude = 10 ** math.floor(math.log10(span / about))
    step = min((factor * magnitude for factor in (1, 2, 2.5, 5, 10)), key=lambda s: abs(span / s - about))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def log_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Powers of ten, thinned or filled with 2 and 5; a range inside one decade gets linear ticks."""
    if not 0 < low < high:
        return [low] if low > 0 else []
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    inside = [10.0**power for power in decades if low <= 10.0**power <= high]
    if len(inside) > about + 1:
        return inside[::math.ceil(len(inside) / about)]
    if len(inside) >= 3:
        return inside
    filled = [factor * 10.0**power for power in decades for factor in (1, 2, 5)]
    filled = [value for value in filled if low <= value <= high]
    return filled if len(filled) >= 3 else linear_ticks(low, high, about)


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Labels of one axis: the same prefix and the same decimals for all, so that they compare at a glance."""
    if not ticks:
        return []
    largest = max(abs(tick) for tick in ticks)
    smallest = min((abs(tick) for tick in ticks if tick), default=1.0)
    if largest and largest / smallest > 1000:
        return [quantity(tick) if abs(tick) >= 0.01 or not tick else f"{tick:.0e}" for tick in ticks]
    if largest < 1e-3:
        return [f"{tick:.3g}" for tick in ticks]
    factor, prefix = next(((f, p) for f, p in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k"))
                           if largest >= f * 2 or (largest >= f and f > 1e3)), (1.0, ""))
    scaled = [tick / factor for tick in ticks]
    places = next((p for p in range(6) if all(math.isclose(round(v, p), v, abs_tol=1e-9) for v in scaled)), 6)
    return [f"{value:.{places}f}{prefix}" if value else "0" for value in scaled]


def thin(points: Sequence[Point], most: int = 2000) -> list[Point]:
    """At most `most` points: the smallest and largest value of each stretch, so that spikes and dips survive.

    A stretch that holds a value which is not finite keeps one, so that the line still breaks there.
    """
    if len(points) <= most:
        return list(points)
    stretches = max(1, (most - 2) // 3)
    kept = [points[0]]
    for index in range(stretches):
        begin = 1 + index * (len(points) - 2) // stretches
        end = 1 + (index + 1) * (len(points) - 2) // stretches
        kept.extend(_extremes(points, range(begin, end)))
    kept.append(points[-1])
    return kept


def _extremes(points: Sequence[Point], indices: range) -> list[Point]:
    good = [index for index in indices if math.isfinite(points[index][1])]
    chosen = {min(good, key=lambda i: points[i][1]), max(good, key=lambda i: points[i][1])} if good else set()
    broken = next((index for index in indices if not math.isfinite(points[index][1])), None)
    if broken is not None:
        chosen.add(broken)
    return [points[index] for index in sorted(chosen)]


def smooth(points: Sequence[Point], window: int) -> list[Point]:
    """Centred running mean over `window` points, narrower near the ends; a broken value stays a gap and ends a mean."""
    result: list[Point] = []
    stretch: list[Point] = []
    for x, y in [*points, (math.nan, math.nan)]:
        if math.isfinite(y):
            stretch.append((x, y))
            continue
        result.extend(_means(stretch, window // 2))
        result.append((x, math.nan))
        stretch = []
    return result[:-1]


def _means(stretch: Sequence[Point], half: int) -> list[Point]:
    sums = [0.0, *accumulate(y for _, y in stretch)]
    means = []
    for index, (x, _) in enumerate(stretch):
        reach = min(half, index, len(stretch) - 1 - index)
        means.append((x, (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)))
    return means
