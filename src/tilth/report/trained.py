"""The part of the page about a stage of kind train: its loss, and what was measured of its model."""

from typing import Any

from markupsafe import Markup

from tilth.report.charts import with_mean
from tilth.report.concepts import FIT_HEADER, fit_rows
from tilth.report.formats import decimals, finite, seconds, short
from tilth.report.plots import Series, line_chart
from tilth.report.reading import Run, mapping
from tilth.report.svg import COLOURS

Table = tuple[str, tuple[str, ...], list[list[str]]]


def trained(run: Run) -> dict[str, Any] | None:
    """`did` (one line), `charts`, `tables`; None where no such stage has trained."""
    lines = [line for line in run.json_lines("train", "metrics.jsonl") if finite(line.get("loss")) is not None]
    if not lines:
        return None
    summary, last = run.summary("train"), lines[-1]
    did = [f"{short(summary.get('parameters'))} parameters" if summary else "", f"{last.get('step')} steps",
           short(finite(last.get("flops")), "FLOP"), seconds(finite(last.get("seconds")))]
    losses = [(float(line["step"]), float(line["loss"])) for line in lines if finite(line.get("step")) is not None]
    charts = [line_chart("Loss", with_mean("training", losses), x_label="step", y_label="loss",
                         show=lambda value: decimals(value, 3))]
    tables: list[Table] = []
    for name, found in mapping(run.json("train", "results.json")).items():
        more_charts, more_tables = _measured(str(name), mapping(found))
        charts += more_charts
        tables += more_tables
    return {"did": ", ".join(filter(None, did)), "charts": charts, "tables": tables}


def _measured(name: str, found: dict[str, Any]) -> tuple[list[Markup], list[Table]]:
    if "families" in found:
        return _families(name, {key: mapping(one) for key, one in mapping(found["families"]).items()})
    if "concepts" in found:
        return _concepts(name, found)
    groups = {key: group if isinstance(group, dict) else {"": group} for key, group in found.items()}
    flat = [[f"{key} {inner}".strip(), _number(value)] for key, group in groups.items()
            for inner, value in group.items() if finite(value) is not None]
    return [], [(name, ("figure", "value"), flat)]


def _families(name: str, families: dict[str, dict[str, Any]]) -> tuple[list[Markup], list[Table]]:
    """Error by number of examples, a curve a family, and the late errors beside the variance."""
    names = list(families)
    charts = []
    for at in range(0, len(names), COLOURS):
        curves = [Series(one, [(float(k), error) for k, error in enumerate(map(finite, _items(families[one].get(
            "error")))) if error is not None]) for one in names[at:at + COLOURS]]
        charts.append(line_chart("Error by number of examples", curves, x_label="examples", y_label="squared error",
                                 y_log=True))
    rows = [[one, _number(found.get("late")), _number(found.get("variance"))] for one, found in families.items()]
    return charts, [(f"{name}: squared error over the last positions", ("functions", "error", "variance"), rows)]


def _concepts(name: str, found: dict[str, Any]) -> tuple[list[Markup], list[Table]]:
    """Accuracy over all and the rarest, the fit against counts, and accuracy by count."""
    tail = mapping(found.get("long_tail"))
    rows = [["all concepts", _number(found.get("balanced_accuracy"))],
            [f"the {len(_items(tail.get('concepts')))} rarest (at most {tail.get('most_frequent')} captions)",
             _number(tail.get("balanced_accuracy"))]]
    tables: list[Table] = [(f"{name}: accuracy in percent", ("test", "accuracy"), rows)]
    fit = mapping(found.get("fit"))
    if fit:
        tables.append((f"{name}: accuracy against counts", FIT_HEADER, fit_rows({"fit": fit})))
    by_count = sorted((float(row["count"]), float(row["accuracy"])) for row in map(mapping, _items(
        found["concepts"])) if finite(row.get("count")) and finite(row.get("accuracy")) is not None)
    chart = line_chart("Accuracy by count, a point a concept", [Series("concept", by_count, marked=True)],
                       x_label="training captions that name it", y_label="accuracy, percent", x_log=True)
    return [chart], tables


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _number(value: Any) -> str:
    return decimals(finite(value), 3)
