"""Abilities over tokens, and where they are heading: what RUN/tracking.json says, drawn."""

import math
from typing import Any

from markupsafe import Markup

from tilth.report.charts import X_LABEL
from tilth.report.formats import decimals, finite, short
from tilth.report.plots import Reference, Series, line_chart
from tilth.report.reading import Run, listing, mapping
from tilth.report.scale import Point

MOST_TASKS = 12


def tracking(run: Run) -> dict[str, Any] | None:
    """{charts, rows, made_at, source, more}: a chart a task, a row for its forecast; None where nothing was tracked."""
    found = mapping(run.own("tracking.json"))
    points = listing(found.get("points"))
    tasks = list(dict.fromkeys(task for point in points for task in mapping(point.get("results"))
                               if not task.startswith("held_out/")))
    made = listing(found.get("forecasts"))
    newest = made[-1] if made else {}
    off = {str(one.get("task")): one.get("tokens") for one in listing(found.get("started"))}
    charts = [chart for task in tasks[:MOST_TASKS] if (chart := _chart(task, points, newest)) is not None]
    if not charts:
        return None
    return {"charts": charts, "more": max(0, len(tasks) - MOST_TASKS), "source": str(newest.get("from", "")),
            "made_at": short(finite(newest.get("made_at"))) if newest else "", "level": finite(newest.get("level")),
            "rows": [_row(task, one, newest, off) for task, one in mapping(newest.get("tasks")).items()
                     if not task.startswith("held_out/")]}


def _metric(task: str) -> str:
    return "bits_per_byte" if task == "held_out" else "accuracy"


def _chart(task: str, points: list[dict[str, Any]], newest: dict[str, Any]) -> Markup | None:
    curve: list[Point] = []
    chance = None
    for point in points:
        entry = mapping(mapping(mapping(point.get("results")).get(task)).get(_metric(task)))
        tokens, value = finite(point.get("tokens")), finite(entry.get("value"))
        if tokens is not None and value is not None:
            curve.append((tokens, value))
            chance = finite(entry.get("chance"))
    if not curve:
        return None
    series = [Series(task, curve, marked=True), *_ahead(task, curve, newest)]
    references = [] if chance is None else [Reference("chance", chance)]
    return line_chart(task, series, x_label=X_LABEL, y_label=_metric(task).replace("_", " "), references=references,
                      show=lambda v: decimals(v, 3), show_x=short, height=230)


def _ahead(task: str, curve: list[Point], newest: dict[str, Any]) -> list[Series]:
    """The forecast's middle and the two ends of its interval, as lines from where it was made."""
    one = mapping(mapping(newest.get("tasks")).get(task))
    start, target = finite(newest.get("made_at")), finite(newest.get("target"))
    at = [y for x, y in curve if start is not None and x <= start]
    ends = {name: finite(one.get(key)) for name, key in
            (("forecast", "value"), ("lowest", "low"), ("highest", "high"))}
    if not at or start is None or target is None or any(end is None for end in ends.values()):
        return []
    return [Series(name, [(start, at[-1]), (target, math.nan if end is None else end)], faint=name != "forecast",
                   colour=1) for name, end in ends.items()]


def _row(task: str, one: Any, newest: dict[str, Any], off: dict[str, Any]) -> dict[str, str]:
    found = mapping(one)
    interval = " to ".join(decimals(finite(found.get(key)), 3) for key in ("low", "high"))
    happened, start = finite(found.get("happened")), finite(off.get(task))
    return {"task": task, "value": decimals(finite(found.get("value")), 3), "interval": interval,
            "target": short(finite(newest.get("target"))),
            "happened": "" if happened is None else decimals(happened, 3),
            "started": short(start) if start is not None else "not yet" if task in off else ""}
