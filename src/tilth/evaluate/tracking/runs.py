"""The checkpoints of one run as curves, and a forecast of its end after every one of them.

A point is what was measured at one checkpoint: `{"step", "tokens", "flops", "results": {task: {metric: {value,
stderr, n, chance}}}}`, the results as in results.json. A tracking is `{"parameters", "total_tokens", "points",
"forecasts"}`, in the file RUN/tracking.json.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tilth.evaluate.tracking.curves import Curve
from tilth.evaluate.tracking.forecast import Example, Forecaster, examples
from tilth.evaluate.tracking.together import off_chance

FIRST_FORECAST = 4  # checkpoints that a forecast needs
LATE = 0.8
BYTE_BITS = 8.0
MOST = 20  # forecasts of one run, and checkpoints of its past to learn from: their pairs grow with the square


def run_curves(name: str, tracking: dict[str, Any]) -> list[Curve]:
    """A curve for each task's accuracy and for the bits per byte of held-out text, over checkpoints after step 0."""
    points = [point for point in tracking["points"] if point["tokens"] > 0]
    found = []
    for task in dict.fromkeys(task for point in points for task in point["results"]):
        metric = "bits_per_byte" if task.split("/")[0] == "held_out" else "accuracy"
        measured = [(point["tokens"], point["results"][task][metric]) for point in points
                    if metric in point["results"].get(task, {})]
        if measured:
            last = measured[-1][1]
            found.append(Curve(name, f"{tracking['parameters']}", task, float(tracking["parameters"]),
                               np.array([tokens for tokens, _ in measured], np.float64),
                               np.array([entry["value"] for _, entry in measured], np.float64),
                               BYTE_BITS if metric == "bits_per_byte" else last.get("chance", 0.0), last.get("stderr")))
    return found


def started(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """When each task with an accuracy left chance, `{"task", "tokens" or None}`, earliest first: the order of
    abilities."""
    found = [{"task": curve.task, "tokens": off_chance(curve)} for curve in curves
             if curve.task.split("/")[0] != "held_out" and curve.stderr is not None]
    return sorted(found, key=lambda one: (one["tokens"] is None, one["tokens"] or 0.0))


def forecasts(name: str, tracking: dict[str, Any], history: Sequence[dict[str, Any]] = (),
              level: float = 0.8) -> list[dict[str, Any]]:
    """The forecast of the run's end that was possible after each checkpoint, beside what then happened.

    history: trackings of finished runs; with two sizes among them the forecaster learns from those, else from this
    run's own past (every earlier checkpoint forecasts every later one up to then, one task left out at a time).
    """
    curves = run_curves(name, tracking)
    total = float(tracking["total_tokens"])
    before = [curve for number, other in enumerate(history) for curve in run_curves(f"history-{number}", other)]
    totals = {f"history-{number}": float(other["total_tokens"]) for number, other in enumerate(history)}
    learnt = len({curve.group for curve in before}) >= 2
    made = []
    for cut in thinned(sorted({float(tokens) for curve in curves for tokens in curve.tokens})[FIRST_FORECAST - 1:]):
        if cut >= total:
            continue
        known = _of_others(before, totals, cut / total) if learnt else _of_its_past(curves, cut)
        new = examples([curve for curve in curves if len(curve.until(cut).scores) >= 2], {name: cut},
                       {name: np.array([total])})
        if new and len({one.group for one in known}) >= 2:
            made.append(_forecast(Forecaster().fit(known), new, cut, total, level,
                                  f"{len(history)} finished runs" if learnt else "this run's own past")
                        | {"beyond": beyond(float(tracking["parameters"]), before) if learnt else None})
    return made


def beyond(size: float, history: Sequence[Curve]) -> float | None:
    """How many times larger than the largest size of the history, or smaller than its smallest; None inside. A forecast
    beyond carries the trends with size further than it has seen them, and its intervals have not held there."""
    sizes = [curve.size for curve in history]
    factor = max(size / max(sizes), min(sizes) / size) if sizes else 1.0
    return factor if factor > 1 else None


def _forecast(forecaster: Forecaster, new: Sequence[Example], cut: float, total: float, level: float,
              source: str) -> dict[str, Any]:
    """One forecast as it is written down; `happened` is null until the run has got there."""
    tasks = {example.task: {"value": found.value, "low": found.low, "high": found.high,
                            "happened": None if np.isnan(example.target) else float(example.target)}
             for example, found in zip(new, forecaster.predict(new, level), strict=True)}
    return {"made_at": cut, "target": total, "level": level, "from": source, "tasks": tasks}


def _of_others(curves: Sequence[Curve], totals: dict[str, float], share: float) -> list[Example]:
    """Late checkpoints of finished runs, from what they showed at the same share of their tokens."""
    late = max(LATE, share)
    cut = {run: share * total for run, total in totals.items()}
    targets = {curve.run: curve.tokens[curve.tokens > late * totals[curve.run]] for curve in curves}
    return [one for one in examples(curves, cut, targets) if not np.isnan(one.target)]


def thinned(tokens: Sequence[float]) -> list[float]:
    """All of them, or `MOST`, evenly spaced, the first and the last among them."""
    if len(tokens) <= MOST:
        return list(tokens)
    return [tokens[at] for at in np.linspace(0, len(tokens) - 1, MOST).round().astype(int)]


def _of_its_past(curves: Sequence[Curve], now: float) -> list[Example]:
    """What each earlier checkpoint would have said about each later one so far; the groups are the tasks."""
    seen = [curve.until(now) for curve in curves]
    times = thinned(sorted({float(tokens) for curve in seen for tokens in curve.tokens}))
    found = []
    for cut in times[1:-1]:
        targets = {curve.run: np.array([tokens for tokens in times if tokens > cut]) for curve in seen}
        found += examples(seen, {curve.run: cut for curve in seen}, targets)
    return [replace(one, group=one.task) for one in found if not np.isnan(one.target)]
