"""Three sizes trained here, followed over twelve checkpoints: `TILTH_DATA=... python small.py FOLDER [--analysis]`.

Byte models on prose, code and generated strings; ten multiple-choice tasks of five abilities, bits per byte of prose
and code. Runs in FOLDER, one after the other, resumable; the curves go to small_curves.json, what they show to
small.json, both here. `--analysis` reads small_curves.json again and trains nothing.
"""

import os
import sys
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
from small_data import DOMAINS, QUESTIONS, write_data

from tilth.evaluate.tracking.baselines import last_value, power_law
from tilth.evaluate.tracking.curves import Curve
from tilth.evaluate.tracking.forecast import Forecaster, examples
from tilth.evaluate.tracking.intervals import conformal_bounds, covered, winkler
from tilth.evaluate.tracking.together import domain_coherence, early_order, kendall, off_chance, size_gap
from tilth.recipe import parse
from tilth.recipe.files import read_json, write_json
from tilth.stages import Recipe
from tilth.stages.runner import run_recipe
from tilth.stages.track import track_run
from tilth.trial.trial import share_stages

HERE = Path(__file__).parent
SHAPES = {"small": (1, 48, 2), "medium": (2, 96, 4), "large": (3, 128, 4)}  # layers, width, heads
RATES, SEEDS = (1e-3, 3e-3), (0, 1, 2)
LENGTH, STEPS, ROWS, CHECKPOINTS, EARLY, LATE, LEVEL = 128, 480, 16, 12, 0.3, 0.8, 0.8
ABILITIES = [f"{ability}-{form}" for ability in DOMAINS for form in (0, 1)]
TEXTS = ["held_out/prose", "held_out/code"]


def recipe(shape: str, rate: float, seed: int, text: Path) -> Recipe:
    layers, width, heads = SHAPES[shape]
    return parse(Recipe, {"name": "small", "seed": seed, "stages": {
        "curate": {"kind": "curate", "inputs": [{"kind": "jsonl", "path": str(text)}],
                   "held_out": {"share": 0.015, "minimum_bytes": 30_000}},
        "tokenize": {"kind": "tokenize", "tokenizer": {"kind": "bytes"}, "unit_tokens": LENGTH},
        "pretrain": {"kind": "pretrain", "model": {"layers": layers, "width": width, "heads": heads,
                                                   "feed_forward": 3 * width, "context": LENGTH},
                     "optimizer": {"kind": "adamw", "lr": rate}, "schedule": {"kind": "constant", "warmup": 0.05},
                     "length": LENGTH, "batch_tokens": ROWS * LENGTH, "budget": {"steps": STEPS},
                     "held_out_every": 1e9, "checkpoint": {"steps": STEPS // CHECKPOINTS, "keep": CHECKPOINTS}}}})


def train(folder: Path, data: Path) -> None:
    """Every run and its tracking; small_curves.json grows run by run."""
    tasks = write_data(folder / "data", data)
    found: dict[str, Any] = {}
    for seed, shape, rate in product(SEEDS, SHAPES, RATES):
        name = f"{shape}-{rate:g}-seed-{seed}"
        place = folder / "runs" / name
        made = recipe(shape, rate, seed, folder / "data" / "text.jsonl")
        share_stages(made, place, folder / "runs")
        run_recipe(made, place)
        tracking = track_run(place, [str(task) for task in tasks], [], False, 1.0, None, "cpu")
        found[name] = curves_of(tracking, shape, rate, seed)
        write_json(HERE / "small_curves.json", found)


def curves_of(tracking: dict[str, Any], shape: str, rate: float, seed: int) -> dict[str, Any]:
    """Tokens, and per task accuracy and smooth score (mean log-probability of the right answer, or minus bits per
    byte)."""
    points = tracking["points"]
    metric = dict.fromkeys([*TEXTS, "held_out"], "bits_per_byte") | dict.fromkeys(ABILITIES, "accuracy")
    values = {task: [round(point["results"][task][metric[task]]["value"], 5) for point in points] for task in metric}
    smooth = {task: [round(point["results"][task]["gold_log_probability"]["value"], 5) for point in points]
              for task in ABILITIES}
    return {"shape": shape, "rate": rate, "seed": seed, "parameters": tracking["parameters"],
            "tokens": [point["tokens"] for point in points], "flops": [point["flops"] for point in points],
            "values": values, "smooth": smooth, "evaluation_seconds": sum(
                sum(point["seconds"].values()) for point in points)}


def curves(found: dict[str, Any], kind: str) -> list[Curve]:
    """kind: `accuracy`, or `smooth` (log-probability; of text, minus bits per byte)."""
    made = []
    for name, run in found.items():
        for task in [*ABILITIES, *TEXTS]:
            text = task in TEXTS
            scores = -np.array(run["values"][task]) if text else np.array(
                run["values" if kind == "accuracy" else "smooth"][task])
            made.append(Curve(name, run["shape"], task, float(run["parameters"]), np.array(run["tokens"], float),
                              scores, 0.25 if kind == "accuracy" and not text else 0.0))
    return made


def coherence(found: dict[str, Any]) -> dict[str, Any]:
    domains = {task: DOMAINS[task[:-2]] for task in ABILITIES} | dict.fromkeys(TEXTS, "language")
    return {kind: {key: value for key, value in domain_coherence(curves(found, kind), domains).items()
                   if key != "tasks"} for kind in ("accuracy", "smooth")}


def seeds(found: dict[str, Any]) -> list[int]:
    """The seeds of which all six runs are there."""
    return [seed for seed in SEEDS if sum(run["seed"] == seed for run in found.values()) == len(SHAPES) * len(RATES)]


def transfer(found: dict[str, Any]) -> dict[str, Any]:
    """Gap of accuracy above chance between neighbouring sizes of one rate and seed, over pairs that share losses."""
    rows = []
    for (rate, seed), (a, b) in product(product(RATES, seeds(found)), pairwise(SHAPES)):
        runs = [f"{shape}-{rate:g}-seed-{seed}" for shape in (a, b)]
        losses = [np.array(found[run]["values"]["held_out"]) for run in runs]
        for task in ABILITIES:
            pair = [next(one for one in curves(found, "accuracy") if (one.run, one.task) == (run, task))
                    for run in runs]
            try:
                rows.append((size_gap(*pair), size_gap(*pair, *losses)))
            except ValueError:
                continue
    tokens, loss = np.array(rows).T
    return {"pairs": len(rows), "tokens": float(tokens.mean()), "loss": float(loss.mean()),
            "smaller_at_equal_loss": float((loss < tokens).mean())}


def orders(found: dict[str, Any]) -> dict[str, Any]:
    """Kendall tau over the six runs of a seed between 30 % and the end, mean over seeds: the task's accuracy, its
    smooth score, and the training's held-out loss, each against the final accuracy (of text: bits per byte)."""
    made: dict[str, dict[str, float]] = {}
    for task in [*ABILITIES, *TEXTS]:
        rows = []
        for seed in seeds(found):
            runs = {name: run for name, run in found.items() if run["seed"] == seed}
            final = [one.scores[-1] for one in curves(runs, "accuracy") if one.task == task]
            smooth = [one for one in curves(runs, "smooth") if one.task == task]
            at = [np.interp(EARLY * one.tokens[-1], one.tokens, one.scores) for one in smooth]
            loss = [-np.interp(EARLY * run["tokens"][-1], run["tokens"], run["values"]["held_out"])
                    for run in runs.values()]
            rows.append((early_order([one for one in curves(runs, "accuracy") if one.task == task], EARLY),
                         kendall(at, final), kendall(loss, final)))
        made[task] = dict(zip(("own", "smooth", "loss"), np.mean(rows, axis=0).round(3).tolist(), strict=True))
    means = {name: float(np.mean([one[name] for one in made.values()])) for name in ("own", "smooth", "loss")}
    return {"tasks": made, "mean": means}


def starts(found: dict[str, Any]) -> dict[str, Any]:
    """Tokens (thousands) from which each task stays above chance, median over the runs of a size; null: not in most."""
    made: dict[str, Any] = {}
    for shape, task in product(SHAPES, ABILITIES):
        tokens = [off_chance(one, QUESTIONS) for one in curves(found, "accuracy")
                  if (one.group, one.task) == (shape, task)]
        middle = np.median([np.inf if one is None else one for one in tokens])
        made.setdefault(task, {})[shape] = None if np.isinf(middle) else round(float(middle) / 1e3)
    return made


def forecasts(found: dict[str, Any]) -> dict[str, Any]:
    """Each size left out in turn, as in run.py: accuracies of the last fifth from the first 30 %."""
    chosen = [one for one in curves(found, "accuracy") if one.task in ABILITIES]
    cut = {one.run: EARLY * one.tokens[-1] for one in chosen}
    targets = {one.run: one.tokens[one.tokens >= LATE * one.tokens[-1]] for one in chosen}
    asked = examples(chosen, cut, targets)
    y = np.array([one.target for one in asked])
    group = np.array([one.group for one in asked])
    bounds: dict[str, tuple[np.ndarray, np.ndarray]] = {name: (np.zeros(len(y)), np.zeros(len(y)))
                                                       for name in ("forecast", "last value", "power law")}
    middles = {name: np.concatenate([rule(one.until(cut[one.run]), targets[one.run]) for one in chosen])
               for name, rule in (("last value", last_value), ("power law", power_law))}
    for shape in SHAPES:
        test = group == shape
        made = Forecaster().fit([one for one, out in zip(asked, test, strict=True) if not out]).predict(
            [one for one, out in zip(asked, test, strict=True) if out], LEVEL)
        bounds["forecast"][0][test], bounds["forecast"][1][test] = [one.low for one in made], [one.high for one in made]
        for name, middle in middles.items():
            below, above = conformal_bounds((y - middle)[~test], LEVEL)
            bounds[name][0][test], bounds[name][1][test] = middle[test] + below, middle[test] + above
    return {name: {part: {"winkler": float(winkler(*both, y, LEVEL)[rows].mean()),
                          "coverage": float(covered(*both, y)[rows].mean()), "forecasts": int(rows.sum())}
                   for part, rows in (("all", np.ones(len(y), bool)), *((s, group == s) for s in SHAPES))}
            for name, both in bounds.items()}


def main() -> int:
    data = os.environ.get("TILTH_DATA")
    if "--analysis" not in sys.argv:
        if not data or len(sys.argv) < 2:
            print("Set TILTH_DATA to the folder that holds text/, and name a folder for the runs.", file=sys.stderr)
            return 2
        train(Path(sys.argv[1]), Path(data))
    found = read_json(HERE / "small_curves.json")
    found = {name: run for name, run in found.items() if run["seed"] in seeds(found)}
    result = {"seeds": seeds(found), "domain_coherence": coherence(found), "size_gap": transfer(found),
              "kendall_at_30_percent": orders(found),
              "off_chance_thousands": starts(found), "forecast": forecasts(found)}
    write_json(HERE / "small.json", result)
    for name, value in result.items():
        print(name, value)
    return 0


if __name__ == "__main__":
    sys.exit(main())
