"""The other questions of the study on published curves: `TILTH_DATA=... python analysis.py` writes analysis.json.

Coherence of domains by first differences, when abilities start, whether an early score tells the final order of
models as well as an early loss does, the gap between sizes at equal tokens and at equal loss, and the loss law.
"""

import csv
import os
import sys
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from run import HERE, SIZES, TOKENS, read_curves

from tilth.evaluate.tracking.curves import Curve
from tilth.evaluate.tracking.laws import fit_loss_law
from tilth.evaluate.tracking.together import domain_coherence, early_order, off_chance, size_gap
from tilth.recipe.files import write_json

DOMAINS = {"arc_easy": "science", "arc_challenge": "science", "sciq": "science", "lambada_openai": "language",
           "winogrande": "language", "wsc": "language", "mmlu_mean": "examination", "logiqa": "examination",
           "piqa": "commonsense"}
QUESTIONS = {"arc_easy": 2376, "arc_challenge": 1172, "sciq": 1000, "lambada_openai": 5153, "winogrande": 1267,
             "wsc": 104, "mmlu_mean": 14042, "logiqa": 651, "piqa": 1838}


def coherence(curves: list[Curve]) -> dict[str, Any]:
    """Over all version-1 runs without shots, from 1 % of the tokens on."""
    chosen = [curve.after(0.01 * TOKENS) for curve in curves
              if curve.run.startswith("v1") and curve.run.endswith("/0")]
    return domain_coherence(chosen, {f"{task}/0": domain for task, domain in DOMAINS.items()})


def starts(curves: list[Curve]) -> dict[str, dict[str, float | None]]:
    """Tokens (billions) from which each task stays above chance, by size; null: never. Deduplicated, version 1."""
    found: dict[str, dict[str, float | None]] = defaultdict(dict)
    for curve in curves:
        task = curve.task.split("/")[0]
        if curve.run.startswith("v1") and curve.run.endswith("-deduped/0") and task != "lambada_openai":
            tokens = off_chance(curve, QUESTIONS[task])
            found[curve.group][task] = None if tokens is None else round(tokens / 1e9, 1)
    return dict(found)


def early_orders(curves: list[Curve], losses: dict[str, Curve]) -> dict[str, float]:
    """Kendall tau over runs between a score at 30 % and the final score, by task; and of the loss with each."""
    found = {}
    for task in DOMAINS:
        mine = [curve for curve in curves if curve.task == f"{task}/0" and curve.run in losses]
        found[task] = early_order(mine, 0.3)
        both = [_spliced(losses[curve.run], curve) for curve in mine]
        found[f"{task}, by loss"] = early_order(both, 0.3)
    return found


def _spliced(loss: Curve, curve: Curve) -> Curve:
    """A curve with minus the loss up to the end, and the task's final score last: its early order is the loss's."""
    scores = np.r_[-loss.scores[:-1], curve.scores[-1]]
    return Curve(curve.run, curve.group, curve.task, curve.size, loss.tokens, scores)


def read_losses(path: Path) -> dict[str, Curve]:
    """Log perplexity on lambada_openai without shots, by run: the only loss that the table has."""
    found: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["metric"] == "ppl" and row["shots"] == "0" and int(row["step"]) and "MtokBS" not in row["model"]:
                found[f"{row['suite']}/{row['model']}/0", row["size"].split("-")[0]][int(row["step"])] = float(
                    row["value"])
    curves = {}
    for (run, size), values in found.items():
        steps = np.array(sorted(values))
        tokens = steps / (143_000 if steps[-1] > 71_500 else 71_500) * TOKENS
        curves[run] = Curve(run, size, "loss", SIZES[size], tokens, np.log([values[step] for step in steps]))
    return curves


def transfer(curves: list[Curve], losses: dict[str, Curve]) -> dict[str, Any]:
    """Mean gap of a' between neighbouring sizes, at equal tokens and at equal loss."""
    gaps: dict[str, list[float]] = {"tokens": [], "loss": []}
    sizes = list(SIZES)
    for task in DOMAINS:
        by_size = {curve.group: curve for curve in curves
                   if curve.run.startswith("v1") and curve.run.endswith("-deduped/0") and curve.task == f"{task}/0"}
        for small, large in pairwise(sizes):
            a, b = by_size[small].after(0.02 * TOKENS), by_size[large].after(0.02 * TOKENS)
            x, y = (losses[curve.run].after(0.02 * TOKENS).scores for curve in (a, b))
            try:
                at_loss = size_gap(a, b, x, y)
            except ValueError:
                continue
            gaps["loss"].append(at_loss)
            gaps["tokens"].append(size_gap(a, b))
    return {"pairs": len(gaps["loss"]), **{name: float(np.mean(values)) for name, values in gaps.items()},
            "smaller_at_equal_loss": float(np.mean(np.array(gaps["loss"]) < np.array(gaps["tokens"])))}


def loss_law(path: Path) -> dict[str, Any]:
    """Fitted on all but the largest models trained on C4, and its error on those."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["dataset"] == "c4_original" and row["eval_set"] == "c4_val"]
    n, d, loss = (np.array([float(row[key]) for row in rows]) for key in ("params", "tokens", "loss"))
    largest = n == n.max()
    law = fit_loss_law(n[~largest], d[~largest], loss[~largest])
    error = np.abs(np.log(law(n[largest], d[largest]) / loss[largest]))
    return {"law": vars(law), "fitted_on": int((~largest).sum()), "held_out": int(largest.sum()),
            "largest": float(n.max()), "relative_error": float(error.mean())}


def main() -> int:
    folder = os.environ.get("TILTH_DATA")
    if not folder:
        print("Set TILTH_DATA to the folder that holds scaling/.", file=sys.stderr)
        return 2
    table = Path(folder) / "scaling" / "pythia_checkpoint_evals.csv"
    curves, losses = read_curves(table), read_losses(table)
    found = {"domain_coherence": coherence(curves), "off_chance_billions": starts(curves),
             "kendall_at_30_percent": early_orders(curves, losses), "size_gap": transfer(curves, losses),
             "loss_law": loss_law(Path(folder) / "scaling" / "overtraining_losses.csv")}
    write_json(HERE / "analysis.json", found)
    for name, value in found.items():
        print(name, value)
    return 0


if __name__ == "__main__":
    sys.exit(main())
