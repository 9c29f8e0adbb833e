"""Is what a model can do with a concept a matter of how often it saw it? Performance against log10 of the count.

    performance = a + b log10(count)        b: points a decade of data

after Udandarao et al. 2024 (arXiv 2404.04125), who correlate means of bins (r > 0.9). A mean of bins hides most of what
varies: concept by concept r is below 0.5, and within one data set lower still, since easy data sets have frequent
concepts. All of these stand side by side here, with the slope that is left when every data set has a level of its own.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
from pydantic import Field

from tilth.recipe import BadInput, Config

Curve = tuple[np.ndarray, np.ndarray, np.ndarray]


class ConceptFit(Config):
    """How counts and performance are joined and fitted.

    bins: edges, equally spaced in the logarithm from least to most; skip_first, skip_last: bins left out of the
    correlation of bin means (that of the zeros, that of the few most frequent); zeros: `drop` them from fits by
    concept, or count them `as_one`; in bins they always count as one, in the first bin. least: concepts in fits by
    concept that a data set needs for a correlation of its own. resamples: of the bootstrap over concepts, within data
    sets.
    """

    bins: int = Field(12, ge=3)
    skip_first: int = Field(1, ge=0)
    skip_last: int = Field(1, ge=0)
    zeros: str = Field("drop", pattern="^(drop|as_one)$")
    least: int = Field(20, ge=3)
    resamples: int = Field(1000, ge=100)
    seed: int = 0

    def run(self, table: pl.DataFrame) -> dict[str, Any]:
        """table: columns `count`, `performance` and, where there are several, `dataset`. Everything as JSON."""
        counts, performance, dataset = columns_of(table)
        some = counts > 0
        keep = some if self.zeros == "drop" else np.ones(len(counts), bool)
        log, y, group = np.log10(np.maximum(counts[keep], 1)), performance[keep], dataset[keep]
        if len(np.unique(log)) < 2:
            raise BadInput(f"The {len(counts)} concepts have {len(np.unique(log))} different counts above 0; a slope "
                           f"needs two.")
        return {"concepts": len(counts), "zeros": int((~some).sum()), "zeros_are": ZEROS[self.zeros],
                "datasets": len(np.unique(dataset)),
                "fitted": int(keep.sum()), "bins": binned(counts, performance, self.bins, self.skip_first,
                                                          self.skip_last),
                "r": known(correlation(log, y)), "r_within_datasets": within(log, y, group, self.least),
                "intercept": float(y.mean() - slope(log, y, group) * log.mean()),
                "points_per_decade": self._with_interval(slope, log, y, group),
                "points_per_decade_within": self._with_interval(fixed_slope, log, y, group)}

    def _with_interval(self, statistic: Callable[[np.ndarray, np.ndarray, np.ndarray], float], log: np.ndarray,
                       y: np.ndarray, group: np.ndarray) -> dict[str, Any]:
        """A statistic with the 95 % interval of the bootstrap over concepts, drawn within their data sets."""
        rng = np.random.default_rng(self.seed)
        order = np.argsort(group, kind="stable")
        sizes = np.unique(group, return_counts=True)[1]
        first = np.repeat(np.cumsum(sizes) - sizes, sizes)
        size = np.repeat(sizes, sizes)
        drawn = []
        for _ in range(self.resamples):
            picked = order[first + (rng.random(len(y)) * size).astype(np.int64)]
            drawn.append(statistic(log[picked], y[picked], group[picked]))
        return {"value": statistic(log, y, group), "interval": np.nanquantile(drawn, [0.025, 0.975]).tolist()}


ZEROS = {"drop": "left out of fits by concept; in bins they count as 1, in the first bin",
         "as_one": "counted as 1, in fits and in bins"}


def columns_of(table: pl.DataFrame) -> Curve:
    """counts, performance (float64) and the number of each row's data set (int64); BadInput where a column lacks."""
    missing = [name for name in ("count", "performance") if name not in table.columns]
    if missing:
        raise BadInput(f"The table has no column {' or '.join(missing)}; it needs `count` and `performance`, a row for "
                       f"each concept, and perhaps `dataset`.")
    table = table.drop_nulls([name for name in ("count", "performance", "dataset") if name in table.columns])
    if len(table) < 2:
        raise BadInput(f"There are {len(table)} concepts with a count and a performance; nothing can be fitted.")
    counts = table["count"].cast(pl.Float64).to_numpy()
    if (counts < 0).any():
        raise BadInput("A count is negative.")
    names = table["dataset"] if "dataset" in table.columns else pl.Series([""] * len(table))
    dataset = names.cast(pl.String).rank("dense").to_numpy().astype(np.int64)
    return counts, table["performance"].cast(pl.Float64).to_numpy(), dataset


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's r; NaN where one side does not vary."""
    if len(x) < 2:
        return float("nan")
    left, right = x - x.mean(), y - y.mean()
    scale = np.sqrt((left @ left) * (right @ right))
    return float(left @ right / scale) if scale > 0 else float("nan")


def known(value: float) -> float | None:
    """A figure for JSON: None where there is none."""
    return value if np.isfinite(value) else None


def slope(x: np.ndarray, y: np.ndarray, group: np.ndarray) -> float:
    """Of the least-squares line through all concepts, whatever their data set."""
    left = x - x.mean()
    scale = left @ left
    return float(left @ y / scale) if scale > 0 else float("nan")


def fixed_slope(x: np.ndarray, y: np.ndarray, group: np.ndarray) -> float:
    """The slope with a level for each data set (fixed effects): what is left once data sets differ in difficulty."""
    return slope(centred(x, group), centred(y, group), group)


def centred(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Values less the mean of their group."""
    _, inverse, counts = np.unique(group, return_inverse=True, return_counts=True)
    return values - (np.bincount(inverse, values) / counts)[inverse]


def within(x: np.ndarray, y: np.ndarray, group: np.ndarray, least: int) -> dict[str, Any]:
    """The mean of r over data sets with at least `least` concepts that vary on both sides, and how many there are."""
    found = [correlation(x[group == one], y[group == one]) for one in np.unique(group) if (group == one).sum() >= least]
    some = [r for r in found if np.isfinite(r)]
    return {"mean": float(np.mean(some)) if some else None, "datasets": len(some)}


def binned(counts: np.ndarray, performance: np.ndarray, bins: int = 12, skip_first: int = 1,
           skip_last: int = 1) -> dict[str, Any]:
    """Bins as in the authors' plots: `bins` equally spaced edges from the least to the most log(max(count, 1)), bin i
    holds what is above edge i - 1 and at most edge i (the first: what equals the least); r is that of edges and bin
    means, without the first `skip_first` and the last `skip_last` bins, and without bins that are empty."""
    x = np.log(np.maximum(counts, 1))
    edges = np.linspace(x.min(), x.max(), bins)
    index = np.minimum(np.digitize(x, edges, right=True), bins - 1)
    sizes = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = np.bincount(index, performance, bins) / sizes
    used = np.arange(skip_first, bins - skip_last)
    used = used[sizes[used] > 0]
    return {"edges": np.exp(edges).tolist(), "sizes": sizes.tolist(),
            "means": [None if size == 0 else float(mean) for size, mean in zip(sizes, means, strict=True)],
            "used": used.tolist(), "r": known(correlation(edges[used], means[used]))}


def joined(counts: pl.DataFrame, performance: pl.DataFrame, names: dict[str, str] | None = None) -> pl.DataFrame:
    """One row for each concept of `performance` that `counts` knows, by name (never by position): columns dataset
    (where both have one), concept, count, performance. `names`: a concept's name in `performance` -> in `counts`."""
    on = ["dataset", "concept"] if {"dataset"} <= {*counts.columns} & {*performance.columns} else ["concept"]
    for table, what in ((counts, "counts"), (performance, "performances")):
        if "concept" not in table.columns:
            raise BadInput(f"The table of {what} has no column `concept`.")
        if table.select(on).is_duplicated().any():
            twice = table.filter(table.select(on).is_duplicated())["concept"][0]
            raise BadInput(f"The table of {what} holds the concept '{twice}' more than once; filter it to one model, "
                           f"one kind of count and one set of training data first.")
    renamed = performance.with_columns(pl.col("concept").cast(pl.String).replace(names or {}))
    value = "performance" if "performance" in performance.columns else "accuracy"
    if value not in performance.columns or "count" not in counts.columns:
        raise BadInput("The tables need a column `count`, and `performance` or `accuracy`.")
    keys = [pl.col(name).cast(pl.String) for name in on]
    found = renamed.with_columns(keys).join(counts.with_columns(keys).select(*on, "count"), on=on)
    if found.is_empty():
        raise BadInput("No concept has the same name in both tables.")
    dataset = ["dataset"] if "dataset" in found.columns else []
    return found.select(*dataset, "concept", "count", pl.col(value).alias("performance"))
