"""`corpus.html`: what a curated corpus is made of, before the rules and after them.

Every attribute that was measured is shown for all documents that were read, and for those that stayed: numbers as
distributions, names (languages, say) as shares. Beside them sources and licences, the funnel of rules with examples,
and the largest clusters of duplicates. Only the files of the curate stage are read, attributes column by column.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from markupsafe import Markup

import tilth
from tilth.recipe import BadInput
from tilth.recipe.files import write_bytes
from tilth.report.formats import percent, short, significant, visible
from tilth.report.reading import Run, read_run
from tilth.report.scale import fit
from tilth.report.sections import data, training_data
from tilth.report.sources import read_sources
from tilth.report.svg import WIDTH, canvas, figure, join, tag
from tilth.report.templating import environment

BINS, HEIGHT, MOST_COLUMNS, MOST_NAMES, MOST_CLUSTERS = 32, 120, 60, 12, 12
LEFT, BOTTOM = 2, 22


@dataclass(frozen=True)
class Column:
    """One attribute: its distribution as a chart, or its names as a table of (name, share before, share after)."""

    name: str
    chart: Markup | None = None
    shares: list[tuple[str, str, str]] | None = None


def write_corpus_page(run_folder: Path | str, output: Path | None = None) -> Path:
    """Write the page (default `RUN/corpus.html`) and return its path; BadInput where nothing was curated."""
    run = read_run(run_folder)
    path = output or run.folder / "corpus.html"
    write_bytes(path, render(run).encode("utf-8", errors="replace"))
    return path


def render(run: Run) -> str:
    """The page as HTML text."""
    stage = run.stage("curate")
    found = data(run)
    if stage is None or found is None:
        raise BadInput(f"{run.folder} holds no curated corpus yet (no report of a curate stage).")
    return environment().get_template("corpus.html.j2").render(
        run=run, tilth_version=tilth.__version__, data=found, columns=columns(stage.folder),
        training_data=training_data(read_sources(run)), clusters=clusters(stage.folder), most_rows=40)


def columns(folder: Path) -> list[Column]:
    """The attributes of a curated folder, numbers first, in the order in which they were measured."""
    paths = sorted(folder.glob("attributes-*.parquet"))
    if not paths:
        return []
    frame = pl.scan_parquet(paths)
    schema = frame.collect_schema()
    kept = frame.select(pl.col("dropped_by").is_null()).collect().to_series().to_numpy()
    numbers = [name for name, kind in schema.items() if kind.is_numeric() or kind == pl.Boolean][:MOST_COLUMNS]
    names = [name for name, kind in schema.items() if kind == pl.String and name not in ("id", "dropped_by")]
    found = [Column(name, chart=chart) for name in numbers
             if (chart := _distribution(name, _numbers(frame, name), kept)) is not None]
    return found + [Column(name, shares=_shares(frame, name)) for name in names[:MOST_COLUMNS]]


def _numbers(frame: pl.LazyFrame, name: str) -> np.ndarray:
    return frame.select(pl.col(name).cast(pl.Float64)).collect().to_series().to_numpy()


def _distribution(name: str, values: np.ndarray, kept: np.ndarray) -> Markup | None:
    """Documents by value, all that were read and those that stayed; None without a finite value."""
    good = np.isfinite(values)
    if not good.any():
        return None
    edges, log = bin_edges(values[good])
    before, after = (np.histogram(np.clip(values[mask], edges[0], edges[-1]), edges)[0] for mask in (good, good & kept))
    middle = [float(np.median(values[mask])) if mask.any() else math.nan for mask in (good, good & kept)]
    missing = f"; {percent(1 - good.mean())} have none" if not good.all() else ""
    note = (f"median {significant(middle[0])} before, {significant(middle[1])} after{missing}"
            f"{'; logarithmic' if log else ''}")
    return histogram(name, edges, before, after, log=log, note=note)


def bin_edges(values: np.ndarray) -> tuple[np.ndarray, bool]:
    """Edges (BINS + 1,) over the middle 99 % of the values (what lies outside goes to the outermost bins), and whether
    they rise by factors: where all values are positive and the largest is far from the median."""
    low, middle, high = (float(value) for value in np.quantile(values, [0.005, 0.5, 0.995]))
    if high <= low:
        low, high = low - 0.5, high + 0.5
    if low > 0 and high > 20 * middle:
        return np.geomspace(low, high, BINS + 1), True
    return np.linspace(low, high, BINS + 1), False


def histogram(title: str, edges: np.ndarray, before: np.ndarray, after: np.ndarray, *, log: bool = False,
              note: str = "") -> Markup:
    """Two histograms over the same bins, the second (a part of the first) in front."""
    top = max(int(before.max(initial=0)), 1)
    x = fit([float(edges[0]), float(edges[-1])], LEFT, WIDTH - 2, log=log, pad=0.0)
    width = (WIDTH - 2 - LEFT) / len(before)
    parts = []
    for at, (all_of_them, stayed) in enumerate(zip(before.tolist(), after.tolist(), strict=True)):
        label = (f"{significant(float(edges[at]))} to {significant(float(edges[at + 1]))}: {all_of_them} documents, "
                 f"{stayed} stay")
        bars = [tag("title", label)]
        for count, kind in ((all_of_them, "lost"), (stayed, "bar own")):
            tall = HEIGHT * count / top
            if tall:
                bars.append(tag("rect", x=LEFT + at * width + 0.5, y=HEIGHT - max(tall, 1.0), width=width - 1,
                                height=max(tall, 1.0), class_=kind))
        parts.append(tag("g", join(bars)))
    ticks = x.ticks(5)
    parts += [tag("text", short(tick) if abs(tick) >= 1000 else significant(tick), class_="tick", x=float(x(tick)),
                  y=HEIGHT + 16, text_anchor="middle") for tick in ticks if LEFT + 14 < x(tick) < WIDTH - 16]
    parts.append(tag("line", class_="axis", x1=LEFT, x2=WIDTH - 2, y1=HEIGHT, y2=HEIGHT))
    described = f"Distribution of {title} over documents, before and after the rules; {note}"
    return figure(title, canvas(title, described, HEIGHT + BOTTOM, parts), note=note)


def _shares(frame: pl.LazyFrame, name: str) -> list[tuple[str, str, str]]:
    """The most frequent names of a column and their shares of documents before and after."""
    counted = frame.group_by(name).agg(before=pl.len(), after=pl.col("dropped_by").is_null().sum()).sort(
        "before", name, descending=[True, False], nulls_last=True).collect()
    whole = [max(int(counted[side].sum()), 1) for side in ("before", "after")]
    rows = [(visible(value if value is not None else "none", 80), before, after)
            for value, before, after in counted.head(MOST_NAMES).iter_rows()]
    rest = counted.slice(MOST_NAMES)
    if len(rest):
        rows.append((f"{len(rest)} others", int(rest["before"].sum()), int(rest["after"].sum())))
    return [(label, percent(before / whole[0]), percent(after / whole[1])) for label, before, after in rows]


def clusters(folder: Path) -> dict[str, Any] | None:
    """Duplicates by rule: clusters, documents in them, and the largest ones with some of their ids."""
    path = folder / "clusters.parquet"
    if not path.exists():
        return None
    table = pl.scan_parquet(path).group_by("rule", "cluster").agg(
        size=pl.len(), kept=pl.col("kept").sum(), ids=pl.col("id").head(4)).collect()
    if not len(table):
        return None
    rules = table.group_by("rule").agg(clusters=pl.len(), documents=pl.col("size").sum(), largest=pl.col("size").max(),
                                       dropped=(pl.col("size") - pl.col("kept")).sum()).sort("rule")
    largest = table.sort("size", "rule", "cluster", descending=[True, False, False]).head(MOST_CLUSTERS)
    return {"rules": rules.to_dicts(),
            "largest": [{"rule": row["rule"], "size": row["size"], "ids": [visible(one, 80) for one in row["ids"]]}
                        for row in largest.to_dicts()]}
