"""What a run left to published laws, where they may not hold, and what missing the optimum costs, drawn."""

import math
from typing import Any

from markupsafe import Markup

from tilth.report.formats import finite, short, significant
from tilth.report.plots import Series, line_chart
from tilth.report.reading import Run, mapping


def advice(run: Run) -> dict[str, Any] | None:
    """What budget.json of the last pretraining stage says, as the template wants it; None where the recipe left nothing
    to the advisor."""
    found = mapping(mapping(run.json("pretrain", "budget.json")).get("advice"))
    stage = run.stage("pretrain")
    if not found or stage is None:
        return None
    lr, batch = finite(found.get("lr")), finite(found.get("batch_tokens"))
    doubts = texts(found.get("doubts"))
    check = found.get("check")
    return {"law": str(found.get("law", "")), "lr": significant(lr) if lr else "",
            "batch": short(batch) if batch else "",
            "parameters": short(finite(found.get("parameters"))), "tokens": short(finite(found.get("tokens"))),
            "prices": texts(found.get("prices")), "doubts": doubts, "chart": miss_chart(mapping(found.get("cost"))),
            "check": f"tilth sweep RECIPE {stage.name}.{check}" if check and doubts else ""}


def texts(value: Any) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def miss_chart(tables: dict[str, Any]) -> Markup | None:
    """Loss lost over the factor by which a rate or a batch misses the best one; a factor whose runs diverge is named
    in the note."""
    series, diverge = [], []
    for name, pairs in tables.items():
        known = [(finite(pair[0]), finite(pair[1])) for pair in pairs if isinstance(pair, list) and len(pair) == 2]
        places = [(x, y) for x, y in known if x is not None and x > 0]
        diverge += [f"{significant(x)} times the best {name}" for x, y in places if y is None]
        series.append(Series(name, [(x, math.nan if y is None else y) for x, y in places], marked=True))
    if not series:
        return None
    note = "Median of the cells of Step Law's published grid."
    if diverge:
        note += f" Runs diverge at {', '.join(diverge)}."
    return line_chart("What missing the optimum costs", series, x_label="factor of the best",
                      y_label="percent more loss", x_log=True, height=230, note=note)
