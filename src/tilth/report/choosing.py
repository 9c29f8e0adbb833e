"""Model-aware selection: how well the influence model predicted, how far what helps has moved, what choosing cost."""

import math
from typing import Any

import numpy as np

from tilth.report.formats import count, finite, percent, visible
from tilth.report.plots import Series, line_chart
from tilth.report.reading import Run, listing, mapping
from tilth.report.scale import Point
from tilth.select.statistics import spearman

CORRELATION = "rank correlation"


def choosing(run: Run) -> dict[str, Any] | None:
    """{charts, costs, note}; None where nothing was measured while the model trained."""
    summary = run.summary("pretrain")
    selector = mapping(mapping(summary.get("policy")).get("selector"))
    stages = [one for one in listing(selector.get("stages")) if finite(one.get("stretch")) is not None]
    if not stages:
        return None
    return {"charts": [prediction_chart(stages), drift_chart(stages), selectivity_chart(stages)],
            "costs": _costs(mapping(selector.get("flops")), finite(summary.get("flops"))),
            "note": _note(stages)}


def points(stages: list[dict[str, Any]], key: str) -> list[Point]:
    """(stretch, value) of each measurement; a gap where there is no value."""
    return [(float(one["stretch"]), math.nan if (value := finite(one.get(key))) is None else value) for one in stages]


def prediction_chart(stages: list[dict[str, Any]]) -> Any:
    """The influence model against what was measured; that of the stretch before shows what a frozen one would be."""
    return line_chart("Influence: predicted against measured", [
        Series("on held-out units", points(stages, "spearman"), marked=True),
        Series("by the model before", points(stages, "spearman_of_model_before"), marked=True)],
        x_label="stretch", y_label=CORRELATION)


def drift_chart(stages: list[dict[str, Any]]) -> Any:
    """The influence of the same units now against that at earlier checkpoints."""
    first = _anchors(stages[0])
    since = [(float(one["stretch"]), spearman(first, now) if len(first) and len(now := _anchors(one)) == len(first)
              else math.nan) for one in stages]
    return line_chart("Influence of the same units, from checkpoint to checkpoint", [
        Series("with the measurement before", points(stages, "anchors_spearman_with_last"), marked=True),
        Series("with the first measurement", since[1:], marked=True)], x_label="stretch", y_label=CORRELATION)


def selectivity_chart(stages: list[dict[str, Any]]) -> Any:
    return line_chart("Selectivity of the draw", [Series("drawn", points(stages, "selectivity"), marked=True)],
                      x_label="stretch", y_label="0: at random, 1: the best")


def _anchors(stage: dict[str, Any]) -> np.ndarray:
    found = stage.get("anchors")
    values = [finite(one) for one in found] if isinstance(found, list) else []
    return np.array([value for value in values if value is not None])


def _costs(flops: dict[str, Any], whole: float | None) -> list[tuple[str, str]]:
    """(what, share of the run's FLOPs) of each part, and of all."""
    parts = [(name, value) for name, given in flops.items() if (value := finite(given)) is not None]
    if not parts or not whole:
        return []
    return [(visible(name), percent(value / whole, 2)) for name, value in [
        *parts, ("all choosing", sum(value for _, value in parts))]]


def _note(stages: list[dict[str, Any]]) -> str:
    probed = finite(stages[0].get("probed"))
    agreement = finite(stages[0].get("agreement_with_steps"))
    units = f"{count(probed)} units were measured each time. " if probed is not None else ""
    return units + (f"First order agrees with true steps to a rank correlation of {agreement:.2f}." if agreement
                    is not None else "")
