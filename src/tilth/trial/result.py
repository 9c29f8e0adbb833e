"""The result of a trial: one table, one plot, and JSON in the form of the project's evidence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

import tilth
from tilth.recipe.console import duration, quantity
from tilth.recipe.errors import BadInput
from tilth.recipe.files import read_json_lines, write_bytes
from tilth.report.plots import Series, line_chart
from tilth.report.tables import text_table
from tilth.report.templating import environment
from tilth.trial.statistics import paired, verdict

METRIC = "held-out bits per byte, less is better"
CODE_LENGTHS = (("bits", "bytes"), ("gold_bits", "gold_bytes"))  # of held-out text, and of a task's right answers
HEADER = ("recipe", "bits per byte", "± seeds", "difference", "95 % interval", "by seeds", "wins", "FLOPs", "tokens",
          "time", "CPU time")


@dataclass(frozen=True)
class Finished:
    """One run: bits and bytes of each held-out document (D,), what it cost, where its metrics are; `tasks`
    {task: {measure: one value a question}}."""

    seed: int
    bits: np.ndarray
    bytes: np.ndarray
    flops: float
    seconds: float
    cpu_seconds: float
    tokens: int
    steps: int
    folder: Path
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def bits_per_byte(self) -> float:
        return float(self.bits.sum() / self.bytes.sum())


def summarise(finished: Mapping[str, Sequence[Finished]], budget: float, tolerance: float,
              measure: str = "held_out") -> dict[str, Any]:
    """What result.json holds: the keys of evidence for the first challenger, all challengers in `comparisons`, all
    runs in `runs`. BadInput where the runs did not measure the same documents."""
    baseline, *challengers = finished
    _check_documents(finished)
    comparisons = {name: _compare(name, finished[name], baseline, finished[baseline], budget, tolerance)
                   for name in challengers}
    if measure != "held_out":
        for found in comparisons.values():
            found["metric"] = f"bits per byte of {measure}, less is better"
    return {**comparisons[challengers[0]], "comparisons": comparisons, "tilth": tilth.__version__,
            "runs": {name: [_row(run) for run in runs] for name, runs in finished.items()}}


def _check_documents(finished: Mapping[str, Sequence[Finished]]) -> None:
    runs = [(name, run) for name, several in finished.items() for run in several]
    for name, run in runs:
        if not np.array_equal(run.bytes, runs[0][1].bytes):
            raise BadInput(f"The runs of '{name}' and '{runs[0][0]}' were measured on different held-out text, so they "
                           f"cannot be compared: give both recipes the same curate stage.")


def _compare(name: str, runs: Sequence[Finished], baseline: str, others: Sequence[Finished], budget: float,
             tolerance: float) -> dict[str, Any]:
    """One challenger against the baseline, with the keys of evidence."""
    found = paired(np.stack([run.bits for run in runs]), np.stack([run.bits for run in others]), runs[0].bytes)
    off = max(abs(run.flops / budget - 1) for run in [*runs, *others])
    seconds = {key: float(np.mean([run.seconds for run in several])) for key, several in
               ((name, runs), (baseline, others))}
    return {"method": name, "claim": f"{name} ends below {baseline} at equal FLOPs, choosing included",
            "published": None, "baseline": baseline, "metric": METRIC, "value": _mean(runs),
            "baseline_value": _mean(others), **found, "seeds": [run.seed for run in runs],
            "budget": f"{budget:.4g} FLOP a run (off by {100 * off:.2g} % at most); mean time {seconds[name]:.3g} s "
                      f"against {seconds[baseline]:.3g} s",
            "equal_budget": off <= tolerance, "tasks": _tasks(runs, others),
            "verdict": _verdict(found, [run.flops / budget for run in runs], [run.flops / budget for run in others],
                                tolerance)}


def _verdict(found: Mapping[str, Any], spent: Sequence[float], spent_by_baseline: Sequence[float],
             tolerance: float) -> str:
    """The verdict, where budgets were equal. A challenger that wins with less than the budget has won all the same:
    what choosing costs comes in lumps, and can leave a rest that no step fits in."""
    says = verdict(found["interval"], found["interval_seeds"])
    low, high = min(spent), max(*spent, *spent_by_baseline)
    equal = high <= 1 + tolerance and min(spent_by_baseline) >= 1 - tolerance
    return says if equal and (low >= 1 - tolerance or says == "shows") else "unequal budgets"


def _tasks(runs: Sequence[Finished], others: Sequence[Finished]) -> dict[str, Any]:
    """Paired differences of every task measure, question by question; code lengths also as bits per byte."""
    found: dict[str, Any] = {}
    for task, measures in runs[0].tasks.items():
        for bits, size in CODE_LENGTHS:
            a, b = (np.array([run.tasks.get(task, {}).get(bits, ()) for run in side], np.float64)
                    for side in (runs, others))
            weights = np.array(measures.get(size, ()), np.float64)
            if len(weights) and a.shape[1:] == b.shape[1:] == weights.shape:
                found[f"{task}/bits_per_byte"] = {"value": float(a.mean(0).sum() / weights.sum()),
                                                  "baseline_value": float(b.mean(0).sum() / weights.sum()),
                                                  **paired(a, b, weights)}
        for measure, values in measures.items():
            sides = [[run.tasks.get(task, {}).get(measure, ()) for run in side] for side in (runs, others)]
            if values and all(len(one) == len(values) for side in sides for one in side):
                a, b = (np.array(side, np.float64) for side in sides)
                found[f"{task}/{measure}"] = {"value": float(a.mean()), "baseline_value": float(b.mean()),
                                              **paired(a, b, np.ones(len(values)))}
    return found


def _mean(runs: Sequence[Finished]) -> float:
    return float(np.mean([run.bits_per_byte for run in runs]))


def _row(run: Finished) -> dict[str, Any]:
    return {"seed": run.seed, "bits_per_byte": run.bits_per_byte, "flops": run.flops, "seconds": run.seconds,
            "cpu_seconds": run.cpu_seconds, "tokens": run.tokens, "steps": run.steps}


def cells(result: Mapping[str, Any]) -> list[list[str]]:
    """The table's rows, the baseline first."""
    rows = []
    for name, runs in result["runs"].items():
        score = [run["bits_per_byte"] for run in runs]
        found = result["comparisons"].get(name)
        compared = ["", "", "", ""] if found is None else [
            f"{found['difference']:+.4f}", _interval(found["interval"]), _interval(found["interval_seeds"]),
            f"{found['wins']} of {len(runs)}"]
        spread = f"{np.std(score, ddof=1):.4f}" if len(score) > 1 else "-"
        means = {key: float(np.mean([run[key] for run in runs])) for key in ("flops", "tokens", "seconds",
                                                                             "cpu_seconds")}
        rows.append([name, f"{np.mean(score):.4f}", spread, *compared, quantity(means["flops"]),
                     quantity(means["tokens"]), duration(means["seconds"]), duration(means["cpu_seconds"])])
    return rows


def _interval(found: Sequence[float] | None) -> str:
    return "-" if found is None else f"[{found[0]:+.4f}, {found[1]:+.4f}]"


def result_text(result: Mapping[str, Any]) -> str:
    """The table and one line a challenger, for a terminal."""
    lines = [f"{name}: {found['verdict']} ({found['budget']})" for name, found in result["comparisons"].items()]
    return "\n".join([text_table(cells(result), HEADER), *lines])


def chart(finished: Mapping[str, Sequence[Finished]]) -> Markup:
    """Held-out bits per byte over FLOPs: the mean of the seeds, each seed behind it."""
    series = []
    for colour, (name, runs) in enumerate(finished.items()):
        curves = [_curve(run) for run in runs]
        shared = min((len(curve) for curve in curves), default=0)
        series += [Series(f"{name}, seed {run.seed}", curve, faint=True, colour=colour)
                   for run, curve in zip(runs, curves, strict=True) if len(runs) > 1]
        mean = [tuple(np.mean([curve[place] for curve in curves], 0).tolist()) for place in range(shared)]
        series.append(Series(name, mean, marked=True, colour=colour))
    return line_chart("Held-out text", series, x_label="FLOPs", y_label="bits per byte",
                      note="Part of the held-out text, measured while training.")


def _curve(run: Finished) -> list[tuple[float, float]]:
    lines = read_json_lines(run.folder / "metrics.jsonl")
    return [(line["flops"], line["held_out"]["bits_per_byte"]) for line in lines if "held_out" in line]


TEMPLATE = Path(__file__).with_name("trial.html.j2")


def write_page(path: Path, result: Mapping[str, Any], finished: Mapping[str, Sequence[Finished]]) -> None:
    lines = [f"{name}: {found['verdict']}. {found['claim']}; {found['budget']}."
             for name, found in result["comparisons"].items()]
    template = environment().from_string(TEMPLATE.read_text(encoding="utf-8"))
    page = template.render(names=list(result["runs"]), header=HEADER, rows=cells(result), lines=lines,
                           chart=chart(finished), version=tilth.__version__)
    write_bytes(path, page.encode())
