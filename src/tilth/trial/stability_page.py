"""What a stability study shows: the table and the answer for a terminal, and a page that opens offline."""

import math
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from markupsafe import Markup

import tilth
from tilth.recipe.files import write_bytes
from tilth.report.bars import Bar, bar_chart
from tilth.report.plots import Series, line_chart
from tilth.report.svg import COLOURS
from tilth.report.templating import environment

TEMPLATE = Path(__file__).with_name("stability.html.j2")
HEADER = ("format", "bits", "failed", "95 %", "spiking", "largest rate", "best rate", "loss", "excess", "at most",
          "sensitivity", "safe")


def write_page(path: Path, result: Mapping[str, Any]) -> None:
    template = environment().from_string(TEMPLATE.read_text(encoding="utf-8"))
    page = template.render(recipe=result["recipe"], answer=answer(result), header=HEADER, rows=rows(result),
                           reasons=reasons(result), rates=[f"{rate:g}" for rate in result["rates"]],
                           cells=cells(result), charts=charts(result), limits=result["thresholds"],
                           measure=result["measure"], seeds=result["seeds"], warned=warned(result),
                           version=tilth.__version__)
    write_bytes(path, page.encode())


def rows(result: Mapping[str, Any]) -> list[list[str]]:
    """The table's cells, a row a format."""
    found = []
    for row in result["formats"]:
        failed, (low, high) = row["diverged"] + row["stalled"], row["failed_interval"]
        found.append([row["format"], str(row["bits"]), f"{failed} of {row['runs']}", f"{low:.2f} to {high:.2f}",
                      str(row["spiking"]), _number(row["largest_rate"], "none"), _number(row["best_rate"], "none"),
                      "-" if row["best_loss"] is None else f"{row['best_loss']:.4f}",
                      _percent(row["excess"]), _percent(row["excess_upper"]),
                      "-" if row["sensitivity"] is None else f"{row['sensitivity']:.3f}",
                      "yes" if row["safe"] else "no"])
    return found


def reasons(result: Mapping[str, Any]) -> list[str]:
    """Why formats are not safe, a line a format."""
    return [f"{row['format']} is not safe: {row['because']}." for row in result["formats"] if not row["safe"]]


def _number(value: float | None, missing: str = "-") -> str:
    return missing if value is None else f"{value:g}"


def _percent(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{100 * value:+.2f} %"


def answer(result: Mapping[str, Any]) -> str:
    """One paragraph: how many bits this recipe needs, and how sure that is."""
    found, seeds = result["answer"], len(result["seeds"])
    seen = f"{100 * result['chance_to_see_a_failure_of_10_percent']:.0f} %"
    sure = (f"With {seeds} seed{'s' if seeds > 1 else ''} a cell, a failure that strikes one run in ten shows in "
            f"a cell with {seen}.")
    if found["format"] is None:
        return f"No format tried is safe for this recipe, the reference {result['reference']} included. {sure}"
    below = f"Not safe at as many bits or fewer: {', '.join(found['unsafe_below'])}." if found["unsafe_below"] else (
        "No narrower format was tried that is not safe.")
    if found["format"] == result["reference"]:
        return f"This recipe needs all of its {found['bits']} bits, as far as these formats tell. {below} {sure}"
    return (f"This recipe needs {found['bits']} bits: {found['format']} fails nowhere where {result['reference']} does "
            f"not, keeps the range of learning rates, and at {_number(result['reference_rate'])} loses at most "
            f"{100 * result['tolerance']:g} %. {below} {sure}")


def charts(result: Mapping[str, Any]) -> list[Markup]:
    found = [line_chart("Loss at the end, by learning rate", [Series(name, _finals(result, name), marked=True)
                                                              for name in names],
                        x_label="learning rate", y_label="nats a token", x_log=True,
                        note="Median of the seeds; a gap is a cell whose median run failed.")
             for names in groups(result)]
    found.append(bar_chart("Failed runs, over all learning rates", [_bar(row) for row in result["formats"]], most=1.0,
                           note="Diverged or stalled; in brackets the 95 % interval of Wilson."))
    for names in groups(result):
        curves = [Series(name, _sharpness(result, name)) for name in names]
        if any(series.points for series in curves):
            found.append(line_chart(f"Logit sharpness at the rate {result['reference_rate']:g}", curves,
                                    x_label="step", y_label="phi", note="Median of the seeds, on held-out text."))
    return found


def groups(result: Mapping[str, Any]) -> list[list[str]]:
    """Names of formats, as many to a chart as there are colours; the reference is in each."""
    first, *others = [row["format"] for row in result["formats"]]
    size = COLOURS - 1
    return [[first, *others[at:at + size]] for at in range(0, max(len(others), 1), size)]


def _finals(result: Mapping[str, Any], name: str) -> list[tuple[float, float]]:
    return [(cell["rate"], math.nan if cell["median"] is None else cell["median"]) for cell in result["cells"]
            if cell["format"] == name]


def _bar(row: Mapping[str, Any]) -> Bar:
    failed, (low, high) = row["diverged"] + row["stalled"], row["failed_interval"]
    return Bar(row["format"], failed / row["runs"], f"{failed} of {row['runs']} ({low:.2f} to {high:.2f})",
               highlight=row["safe"])


def _sharpness(result: Mapping[str, Any], name: str) -> list[tuple[float, float]]:
    """(step, median phi) at the reference's best rate."""
    cell = next((one for one in result["cells"]
                 if one["format"] == name and one["rate"] == result["reference_rate"]), None)
    by_step: dict[int, list[float]] = {}
    for run in cell["sharpness"] if cell else ():
        for step, phi, _ in run:
            if math.isfinite(phi):
                by_step.setdefault(step, []).append(phi)
    return [(step, median(values)) for step, values in sorted(by_step.items())]


def cells(result: Mapping[str, Any]) -> list[list[str]]:
    """A row a format, a column a rate: median loss, and failed runs where there are some."""
    found = []
    for row in result["formats"]:
        line = [row["format"]]
        for cell in (one for one in result["cells"] if one["format"] == row["format"]):
            loss = "failed" if cell["median"] is None else f"{cell['median']:.4f}"
            failed = f", {cell['failed']} of {len(cell['kinds'])} failed" if cell["failed"] else ""
            line.append(loss + failed)
        found.append(line)
    return found


def warned(result: Mapping[str, Any]) -> str:
    """One sentence on whether sharpness warned of divergence; empty where nothing can be said."""
    told = {step: one for step, one in (result["warning"] or {}).items() if one["sharpness"] is not None}
    if not told:
        return "No run diverged after a measurement of sharpness, so nothing can be said of it as a warning."
    step, one = next(iter(told.items()))
    return (f"At step {step}, a run that diverged later was sharper than one that never did in "
            f"{100 * one['sharpness']:.0f} % of pairs (one-sided p {one['sharpness_p']:.2g}; {one['later']} against "
            f"{one['never']} runs); its loss was higher in {100 * one['loss']:.0f} % (p {one['loss_p']:.2g}).")
