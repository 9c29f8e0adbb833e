"""A sweep: a small grid of a recipe's values, resumable cell by cell, ending in a table and fitted laws.

    SWEEP/sweep.json               the recipe; a sweep of another needs a folder of its own
    SWEEP/runs/VALUES-seed-K/      one run up to its training, as `tilth run` writes it; failed.json where it diverged
    SWEEP/result.json              every cell, the best, and what was fitted

The same command goes on where it stopped; more values or seeds run only what is new. Stages that do not depend on what
is swept (curate, tokenize) are made once.
"""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tilth.optim.fitting import Run, cells, fit_step_law, vertex
from tilth.recipe.console import say
from tilth.recipe.errors import BadInput, Diverged
from tilth.recipe.files import locked, read_json, read_json_lines, write_json
from tilth.report import text_table
from tilth.stages.commands import up_to
from tilth.stages.load import load_recipe
from tilth.stages.runner import run_recipe
from tilth.stages.stage import Hardware, Recipe
from tilth.trial.trial import only, share_stages

LAST = 0.05  # of the training lines, averaged where there is no held-out text


class Sweep:
    """name: of the recipe; fixed: changes to all cells; axes: {key: values as text}; seeds: counted up from the
    recipe's own."""

    def __init__(self, name: str, fixed: Sequence[str], axes: dict[str, list[str]], seeds: int, folder: Path,
                 hardware: Hardware | None = None, command: str = ""):
        self.name, self.fixed, self.axes, self.seeds = name, fixed, axes, seeds
        self.folder, self.hardware, self.command = folder, hardware or Hardware(), command
        self.points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]

    def run(self) -> dict[str, Any]:
        """Every cell that is not finished yet; returns the result as result.json holds it."""
        busy = BadInput(f"Another tilth process is working in {self.folder}. Wait for it, or choose another --folder.")
        with locked(self.folder / ".lock", lambda: busy):
            self._check_same()
            recipes = [self._recipe(point) for point in self.points]  # all of them are valid before the first is run
            for seed in range(self.seeds):
                for number, (point, recipe) in enumerate(zip(self.points, recipes, strict=True)):
                    say(f"sweep: {number + 1} of {len(recipes)}, seed {recipe.seed + seed}: {spelled(point)}")
                    self._run(recipe, self._folder(point, seed), seed)
            result = self._result(recipes)
            write_json(self.folder / "result.json", result)
        return result

    def _recipe(self, point: dict[str, str]) -> Recipe:
        return up_to(load_recipe(self.name, [*self.fixed, *(f"{key}={value}" for key, value in point.items())]),
                     "pretrain")

    def _folder(self, point: dict[str, str], seed: int) -> Path:
        """A readable name, made unique by a digest of the values; no part of it depends on the rest of the grid."""
        text = json.dumps(point, sort_keys=True)
        short = re.sub(r"[^A-Za-z0-9.+-]+", "_", "_".join(f"{key.split('.')[-1]}-{v}" for key, v in point.items()))
        digest = hashlib.sha256(text.encode()).hexdigest()[:6]
        return self.folder / "runs" / f"{short[:60]}-{digest}-seed-{seed}"

    def _check_same(self) -> None:
        known = {"recipe": load_recipe(self.name, self.fixed).model_dump(mode="json")}
        path = self.folder / "sweep.json"
        if path.exists() and read_json(path) != json.loads(json.dumps(known)):
            raise BadInput(f"{self.folder} holds a sweep of another recipe, or with other changes to all its cells. "
                           f"Put them back, or choose another --folder.")
        write_json(path, known)

    def _run(self, recipe: Recipe, folder: Path, seed: int) -> None:
        if (folder / "failed.json").exists():
            return say("  diverged before")
        share_stages(recipe, folder, self.folder / "runs")
        try:
            run_recipe(recipe.model_copy(update={"seed": recipe.seed + seed}), folder, self.hardware,
                       command=self.command)
        except Diverged as error:
            say(f"  {error}")
            write_json(folder / "failed.json", str(error))

    def _result(self, recipes: list[Recipe]) -> dict[str, Any]:
        rows = [self._row(point, recipe) for point, recipe in zip(self.points, recipes, strict=True)]
        whole = [row for row in rows if row["mean"] is not None]
        best = min(whole, key=lambda row: row["mean"]) if whole else None
        return {"recipe": recipes[0].name, "fixed": list(self.fixed), "axes": self.axes, "seeds": self.seeds,
                "measure": "held-out bits per byte" if all(row["held_out"] for row in rows) else "training loss, nats",
                "cells": rows, "best": best and best["values"], "optima": optima(self.axes, rows, best),
                "law": law(rows)}

    def _row(self, point: dict[str, str], recipe: Recipe) -> dict[str, Any]:
        """A cell: its seeds' losses (null where one diverged), and what the laws ask for."""
        found = [measure(self._folder(point, seed), only(recipe, "pretrain")) for seed in range(self.seeds)]
        done = [one for one in found if one is not None]
        losses = [None if one is None else one["loss"] for one in found]
        mean = float(np.mean([one["loss"] for one in done])) if len(done) == len(found) else None
        facts = {key: done[0][key] for key in ("parameters", "tokens", "lr", "batch_tokens", "held_out")} if done else {
            "held_out": True}
        return {"values": point, "losses": losses, "mean": mean, **facts}


def measure(folder: Path, stage: str) -> dict[str, Any] | None:
    """Loss of a finished run and its place in the grid; None where it diverged."""
    if (folder / "failed.json").exists():
        return None
    manifest, decided = read_json(folder / stage / "manifest.json"), read_json(folder / stage / "budget.json")
    summary, fields = manifest["summary"], manifest["fields"]
    losses = [line["loss"] for line in read_json_lines(folder / stage / "metrics.jsonl")
              if line.get("loss") is not None]
    held_out = summary["held_out_bits_per_byte"]
    last = float(np.mean(losses[-max(1, round(LAST * len(losses))):]))
    advice = decided.get("advice") or {}
    lr = fields["optimizer"]["lr"]
    return {"loss": last if held_out is None else held_out, "held_out": held_out is not None,
            "parameters": summary["parameters_non_embedding"], "tokens": decided["tokens"],
            "lr": advice.get("lr") if lr == "auto" else lr, "batch_tokens": decided["rows"] * fields["length"]}


def optima(axes: dict[str, list[str]], rows: list[dict[str, Any]], best: dict[str, Any] | None) -> dict[str, Any]:
    """For each key with three numbers or more, the vertex of a parabola in its logarithm, the others at their best."""
    found: dict[str, Any] = {}
    for key, texts in axes.items():
        if best is None or len(texts) < 3 or not all(_positive(text) for text in texts):
            continue
        line = [row for row in rows if row["mean"] is not None
                and all(row["values"][other] == best["values"][other] for other in axes if other != key)]
        fitted = vertex([float(row["values"][key]) for row in line], [row["losses"] for row in line])
        found[key] = asdict(fitted) if fitted else None
    return found


def _positive(text: str) -> bool:
    try:
        return float(text) > 0
    except ValueError:
        return False


def law(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The law of rate and batch over sizes and tokens, where at least two of these were swept, with 90 % intervals."""
    runs = [Run(row["parameters"], row["tokens"], row["lr"], row["batch_tokens"], row["mean"]) for row in rows
            if row["mean"] is not None]
    # Whole steps make the tokens of one budget differ a little between batches: two digits are one cell.
    runs = [Run(run.parameters, float(f"{run.tokens:.1e}"), run.lr, run.batch_tokens, run.loss) for run in runs]
    if len(cells(runs)) < 2 or len(runs) < 6:
        return None
    fitted = fit_step_law(runs, level=0.9)
    return {**asdict(fitted.law), "intervals": fitted.intervals, "runs": fitted.runs, "cells": len(cells(runs))}


def spelled(point: dict[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in point.items())


def result_text(result: dict[str, Any]) -> str:
    """The table and the fits for people."""
    keys = list(result["axes"])
    rows = []
    for cell in sorted(result["cells"], key=lambda one: math.inf if one["mean"] is None else one["mean"]):
        seeds = [loss for loss in cell["losses"] if loss is not None]
        spread = f" +- {np.std(seeds, ddof=1):.4f}" if len(seeds) > 1 else ""
        rows.append([*(cell["values"][key] for key in keys),
                     "diverged" if cell["mean"] is None else f"{cell['mean']:.4f}{spread}"])
    lines = [text_table(rows, [*(key.removeprefix("pretrain.") for key in keys), result["measure"]])]
    for key, at in result["optima"].items():
        lines.append(f"{key}: " + ("no minimum between the values tried" if at is None else _optimum(at)))
    if result["law"]:
        fit = result["law"]
        lines.append(f"lr = {fit['c']:.3g} N^{fit['alpha']:.3f} D^{fit['beta']:.3f}, batch = {fit['d']:.3g} "
                     f"D^{fit['gamma']:.3f} ({fit['runs']} near-best runs of {fit['cells']} cells; 90 %: " + ", ".join(
                         f"{name} {low:.3g} to {high:.3g}" for name, (low, high) in fit["intervals"].items()) + ")")
    return "\n".join(lines)


def _optimum(at: dict[str, Any]) -> str:
    spread = at["interval"]
    known = f"95 % of resamples of the seeds: {spread[0]:.3g} to {spread[1]:.3g}" if spread else "one seed: no interval"
    return f"best near {at['at']:.3g} ({known})" + ("" if at["inside"] else "; at the edge: try values beyond")


def split_values(text: str) -> list[str]:
    """Values separated by commas that are not inside brackets or braces."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def run_sweep(name: str, changes: Sequence[str], seeds: int, folder: Path | None, hardware: Hardware,
              command: str) -> dict[str, Any]:
    """The command: `key=a,b,c` is swept, `key=a` changes all cells."""
    fixed = [one for one in changes if len(split_values(one)) == 1]
    swept = [one.partition("=") for one in changes if len(split_values(one)) > 1]
    if not swept:
        raise BadInput("Nothing to sweep: give at least one key with several values, such as "
                       "pretrain.optimizer.lr=1e-3,2e-3,4e-3.")
    axes = {key: list(dict.fromkeys(value.strip() for value in split_values(text))) for key, _, text in swept}
    folder = folder or Path("sweeps") / load_recipe(name).name
    result = Sweep(name, fixed, axes, seeds, folder, hardware, command).run()
    print(result_text(result))
    say(f"result: {folder / 'result.json'}")
    return result
