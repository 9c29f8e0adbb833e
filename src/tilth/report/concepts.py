"""What an analysis of concepts shows: lines for a terminal, and a page that opens offline."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

import tilth
from tilth.recipe.files import write_bytes
from tilth.report.bars import Bar, bar_chart
from tilth.report.plots import Series, line_chart
from tilth.report.templating import environment

TEMPLATE = "concepts.html.j2"
SHOWN = 15  # concepts at either end of the table of counts
COUNT_HEADER = ("concept", "text", "image", "matched")
FIT_HEADER = ("what", "value", "95 % interval")


def write_page(path: Path, result: Mapping[str, Any]) -> None:
    """result: `counts` (a list of rows concept, text, image, matched), `alignment` and `fit`, each may be None."""
    counted = result.get("counts")
    page = environment().get_template(TEMPLATE).render(
        name=result["name"], sentences=sentences(result), fit_header=FIT_HEADER, fit_rows=fit_rows(result),
        count_header=COUNT_HEADER, count_rows=count_rows(counted) if counted else [], charts=charts(result),
        version=tilth.__version__)
    write_bytes(path, page.encode())


def sentences(result: Mapping[str, Any]) -> list[str]:
    """What was found, in words."""
    found = []
    counted, alignment, fit = result.get("counts"), result.get("alignment"), result.get("fit")
    if counted:
        absent = sum(row["text"] == 0 for row in counted)
        found.append(f"{len(counted)} concepts in {result['records']} texts; {absent} of them in no text.")
    if alignment and alignment["of_indexed"] is not None:
        found.append(f"{alignment['misaligned']} pairs of image and text each hold a concept, but none in common: "
                     f"{100 * alignment['of_indexed']:.2f} % of the {alignment['indexed']} pairs with a concept on "
                     f"both sides, {100 * alignment['of_all']:.2f} % of all {alignment['records']}.")
    if fit:
        all_of_it, inside = fit["points_per_decade"], fit["points_per_decade_within"]
        found.append(f"Ten times the count goes with {all_of_it['value']:+.2f} points of performance "
                     f"({_interval(all_of_it)}); within data sets with {inside['value']:+.2f} ({_interval(inside)}).")
        found.append(f"{fit['zeros']} of {fit['concepts']} concepts have a count of 0: {fit['zeros_are']}.")
        found.append("The r of bin means says how straight the average is, not how well a count predicts the "
                     "performance on one concept: read it beside the r by concept. Neither says that frequency is the "
                     "cause.")
    return found


def fit_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """The table of correlations and slopes."""
    fit = result.get("fit")
    if not fit:
        return []
    within = fit["r_within_datasets"]
    return [["r of bin means", _number(fit["bins"]["r"]), f"{len(fit['bins']['used'])} bins"],
            ["r by concept", _number(fit["r"]), f"{fit['fitted']} concepts"],
            ["mean r within a data set", _number(within["mean"]), f"{within['datasets']} data sets"],
            ["points a decade", _number(fit["points_per_decade"]["value"]), _interval(fit["points_per_decade"])],
            ["points a decade, a level for each data set", _number(fit["points_per_decade_within"]["value"]),
             _interval(fit["points_per_decade_within"])],
            ["performance at a count of 1", _number(fit["intercept"]), ""]]


def count_rows(counted: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The most and the least frequent concepts by text."""
    order = sorted(counted, key=lambda row: (-row["text"], row["concept"]))
    ends = order if len(order) <= 2 * SHOWN else [*order[:SHOWN], {}, *order[-SHOWN:]]
    return [[str(row["concept"]), *("-" if row[key] is None else str(row[key]) for key in COUNT_HEADER[1:])]
            if row else ["..."] * len(COUNT_HEADER) for row in ends]


def charts(result: Mapping[str, Any]) -> list[Markup]:
    found = []
    counted, fit = result.get("counts"), result.get("fit")
    if counted:
        decades = [0 if row["text"] == 0 else 1 + int(math.log10(row["text"])) for row in counted]
        labels = ["0", *(f"{10**one} to {10**(one + 1) - 1}" for one in range(max(decades)))]
        found.append(bar_chart("Concepts by how many texts hold them", [
            Bar(label, decades.count(at), str(decades.count(at))) for at, label in enumerate(labels)]))
    if fit:
        bins = fit["bins"]
        means = [(edge, mean) for edge, mean in zip(bins["edges"], bins["means"], strict=True) if mean is not None]
        ends = (bins["edges"][0], bins["edges"][-1])
        line = [(x, fit["intercept"] + fit["points_per_decade"]["value"] * math.log10(x)) for x in ends]
        found.append(line_chart("Performance by count", [Series("mean of a bin", means, marked=True),
                                                         Series("line through concepts", line)],
                                x_label="count", y_label="performance", x_log=True,
                                note="Bins are equally wide in the logarithm; the first holds the zeros. The line is "
                                     "that of single concepts with a count above 0."))
        names = [f"up to {edge:,.0f}" if edge >= 100 else f"up to {edge:.3g}" for edge in bins["edges"]]
        found.append(bar_chart("Concepts in each bin", [
            Bar(name, size, str(size)) for name, size in zip(names, bins["sizes"], strict=True)]))
    return found


def _number(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.3f}"


def _interval(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    return f"{low:.2f} to {high:.2f}"
