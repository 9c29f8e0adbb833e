"""A rate that needs no total, against rates tuned for one: `TILTH_DATA=... python run.py FOLDER`; see protocol.md.

A cell is a stable phase of one seed with its decayed branches; finished cells stand in runs.json and
are skipped, so the same command goes on where it stopped. Runs are made in FOLDER and removed once they are read.
"""

import math
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tilth.optim import Constant, Cosine, Moment, Power, Schedule
from tilth.optim.fitting import vertex
from tilth.optim.schedules import POWER_SEQUENCE
from tilth.recipe import parse
from tilth.recipe.errors import Diverged
from tilth.recipe.files import read_json, write_json
from tilth.stages import Recipe
from tilth.stages.runner import run_recipe
from tilth.trial.statistics import student
from tilth.trial.trial import share_stages

HERE = Path(__file__).parent
LENGTH, BATCH, WARMUP, DECAY = 128, 512, 4_096, 0.1  # positions of a row; tokens of a step and of the warm-up
BUDGETS = (20_480, 81_920, 245_760)  # tokens
RATES = (0.004, 0.008, 0.016, 0.032)
TUNING_SEEDS, SEEDS = (10, 11), (0, 1, 2, 3, 4)
OTHER_BATCH, ITS_BUDGET = 2048, BUDGETS[1]
MODEL = {"kind": "transformer", "layers": 2, "width": 64, "heads": 2, "feed_forward": 128, "context": LENGTH,
         "mup": {"base_width": 32}}


def recipe(schedule: Schedule, lr: float, budgets: Sequence[int], batch: int, seed: int) -> Recipe:
    """A stable phase under `schedule`, and a branch for each budget that decays linearly to 0 over its last tenth, from
    the rate that the phase has there. A cosine runs to the end of its own budget, the last, and needs no branch."""
    whole = max(budgets) // batch
    own = isinstance(schedule, Cosine)
    common = {"kind": "pretrain", "model": MODEL, "length": LENGTH, "batch_tokens": batch, "held_out_every": 1e9,
              "held_out_tokens": 16_384}
    stages: dict[str, Any] = {
        "curate": {"kind": "curate", "inputs": [{"kind": "jsonl", "path": str(
            Path(os.environ["TILTH_DATA"]) / "text" / "en_novels.jsonl.zst")}], "held_out": {
                "share": 0.01, "minimum_bytes": 65_536}},
        "tokenize": {"kind": "tokenize", "tokenizer": {"kind": "bytes"}, "unit_tokens": LENGTH},
        "stable": {**common, "schedule": schedule.model_dump(), "optimizer": {"kind": "adamw", "lr": lr},
                   "budget": {"steps": whole if own else branch_step(whole)},
                   "checkpoint": {"keep_every": branch_step(min(budgets) // batch)}}}
    for budget in budgets:
        steps = budget // batch
        if own and steps == whole:
            continue
        at = branch_step(steps)
        moment = Moment(at - 1, whole, batch)
        stages[f"at-{budget}"] = {
            **common, "branch_from": {"stage": "stable", "step": at}, "budget": {"steps": steps - at},
            "schedule": {"kind": "wsd", "warmup": 0, "decay": 1},
            "optimizer": {"kind": "adamw", "lr": lr * schedule.factor(moment, lr)}}
    return parse(Recipe, {"name": "power-scheduler", "seed": seed, "stages": stages})


def branch_step(steps: int) -> int:
    """Where a run of `steps` begins to decay."""
    return steps - round(DECAY * steps)


class Cells:
    """The runs, on disk after each."""

    def __init__(self, path: Path, folder: Path):
        self.path, self.folder = path, folder
        self.runs: list[dict[str, Any]] = read_json(path) if path.exists() else []

    def losses(self, arm: str, schedule: Schedule, lr: float, budgets: Sequence[int], seed: int,
               batch: int = BATCH) -> dict[int, float]:
        """Held-out bits per byte by budget; infinite where the run diverged."""
        settings = {"arm": arm, "schedule": schedule.model_dump(), "lr": lr, "seed": seed, "batch": batch}
        found = next((run for run in self.runs if all(run[key] == value for key, value in settings.items())), None)
        if found is None:
            found = {**settings, **self._run(recipe(schedule, lr, budgets, batch, seed), budgets)}
            self.runs.append(found)
            write_json(self.path, self.runs)
            print(arm, f"rate {lr:.4g}, batch {batch}, seed {seed}", found["losses"], flush=True)
        return {int(budget): math.inf if loss is None else loss for budget, loss in found["losses"].items()}

    def _run(self, made: Recipe, budgets: Sequence[int]) -> dict[str, Any]:
        runs = self.folder / "runs"
        data = Recipe(name=made.name, stages={name: made.stages[name] for name in ("curate", "tokenize")})
        share_stages(data, runs / "data-seed-0", runs)
        run_recipe(data, runs / "data-seed-0")
        place = runs / "one-seed-0"
        shutil.rmtree(place, ignore_errors=True)
        share_stages(made, place, runs)
        try:
            summaries = run_recipe(made, place)
        except Diverged:
            return {"losses": dict.fromkeys(map(str, budgets)), "cpu_seconds": None}
        losses = {str(budget): summaries.get(f"at-{budget}", summaries["stable"])["held_out_bits_per_byte"]
                  for budget in budgets}
        shutil.rmtree(place)
        return {"losses": losses, "cpu_seconds": sum(one["cpu_seconds"] for name, one in summaries.items()
                                                     if name not in ("curate", "tokenize"))}


def stable(batch: int = BATCH) -> Constant:
    return Constant(warmup=WARMUP // batch)


def sweep(cells: Cells, budgets: Sequence[int], batch: int) -> dict[int, list[list[float]]]:
    """Of each budget, for each rate its tuning seeds' losses."""
    found = [[cells.losses("sweep", stable(batch), lr, budgets, seed, batch) for lr in RATES]
             for seed in TUNING_SEEDS]
    return {budget: [[row[place][budget] for row in found] for place in range(len(RATES))] for budget in budgets}


def best(losses: Sequence[Sequence[float]]) -> float:
    """The vertex of the parabola in the logarithm of the rate; where there is none, the best rate tried."""
    at = vertex(RATES, losses)
    return at.at if at else RATES[int(np.argmin([np.mean(seeds) for seeds in losses]))]


def fit(optima: dict[int, float]) -> tuple[float, float]:
    """a and b of eta = (BATCH / 4096) a T^b, by least squares in logarithms."""
    b, intercept = np.polyfit(np.log(list(optima)), np.log(list(optima.values())), 1)
    return float(math.exp(intercept) * POWER_SEQUENCE / BATCH), float(b)


def main() -> int:
    if "TILTH_DATA" not in os.environ or len(sys.argv) != 2:
        print("Set TILTH_DATA to the folder that holds text/, and name a folder for the runs.", file=sys.stderr)
        return 2
    cells = Cells(HERE / "runs.json", Path(sys.argv[1]))
    swept = sweep(cells, BUDGETS, BATCH)
    optima = {budget: best(losses) for budget, losses in swept.items()}
    a, b = fit(optima)
    rates, cap = list(optima.values()), optima[BUDGETS[0]]
    print(f"best rates {rates}, a {a:.4g}, b {b:.3f}", flush=True)
    if b >= 0:
        print("The best rate does not fall with the tokens here, so there is no power to schedule by.")
        return 1
    power = Power(a=a, b=b, warmup_tokens=WARMUP)
    tuning: dict[str, Any] = {
        "best rates": {str(budget): rate for budget, rate in optima.items()}, "a": a, "b": b, "cap": cap,
        "spearman": spearman(swept), "sweep": {str(budget): dict(zip(map(str, RATES), losses, strict=True))
                                               for budget, losses in swept.items()}}
    found: dict[str, list[dict[int, float]]] = {"smallest": [], "tuned": [], "power": []}
    for seed in SEEDS:
        small = cells.losses("smallest", stable(), cap, BUDGETS, seed)
        tuned = {BUDGETS[0]: small[BUDGETS[0]]}
        for budget in BUDGETS[1:]:
            tuned |= cells.losses("tuned", stable(), optima[budget], [budget], seed)
        found["smallest"].append(small)
        found["tuned"].append(tuned)
        found["power"].append(cells.losses("power", power, cap, BUDGETS, seed))
        if len(found["power"]) > 1:
            print(report(cells, found, tuning), flush=True)
    cosine = Cosine(warmup=WARMUP // BATCH)
    found["cosine"] = [cells.losses("cosine", cosine, rates[-1], BUDGETS, seed) for seed in SEEDS]
    report(cells, found, tuning)
    other = best(sweep(cells, [ITS_BUDGET], OTHER_BATCH)[ITS_BUDGET])
    tuning["batch"] = {"tokens": OTHER_BATCH, "budget": ITS_BUDGET, "best rate": other, "exponent": math.log(
        other / optima[ITS_BUDGET]) / math.log(OTHER_BATCH / BATCH)}
    print(report(cells, found, tuning))
    return 0


def spearman(swept: dict[int, list[list[float]]]) -> float:
    """Rank correlation of best rate and budget over all tuning seeds, each seed's rates by its own parabola."""
    pairs = [(budget, best([[seeds[place]] for seeds in losses])) for budget, losses in swept.items()
             for place in range(len(TUNING_SEEDS))]
    ranks = [np.array([(np.sum(column < one) + np.sum(column <= one) + 1) / 2 for one in column])
             for column in np.array(pairs).T]
    return float(np.corrcoef(*ranks)[0, 1])


def report(cells: Cells, found: dict[str, list[dict[int, float]]], tuning: dict[str, Any]) -> str:
    """Write result.json; returns the verdict."""
    table = {arm: np.array([[losses[budget] for budget in BUDGETS] for losses in runs]) for arm, runs in found.items()}
    regret = {arm: 100 * (losses / table["tuned"] - 1) for arm, losses in table.items()}  # (seeds, budgets), percent
    mean = {arm: rows.mean(1) for arm, rows in regret.items()}
    half = mean["power"] - mean["smallest"] / 2
    misfit, against = student(mean["smallest"]) or [0.0, 0.0], student(half) or [0.0, 0.0]
    if misfit[0] <= 0:
        verdict = "mixed" if half.mean() <= 0 < mean["smallest"].mean() else "does not show"
    else:
        verdict = "shows" if against[1] < 0 else "mixed" if half.mean() <= 0 else "does not show"
    gap = mean["power"] - mean["smallest"]
    write_json(HERE / "result.json", {
        "method": "power-scheduler",
        "claim": "At three budgets the regret against each budget's own tuned schedule is at most half that "
                 "of the schedule tuned at the smallest", "published": "6-task average 58.2 against 57.6 "
        "(WSD) and 57.7 (cosine), 1.2B on 1T tokens (Shen et al. 2024, table 5)",
        "baseline": "WSD tuned at the smallest budget",
        "metric": "held-out bits per byte above each budget's own tuned WSD, percent, mean of three budgets, less is "
                  "better",
        "value": mean["power"].mean(), "baseline_value": mean["smallest"].mean(), "difference": gap.mean(),
        "interval": student(gap), "seeds": list(SEEDS[:len(gap)]),
        "budget": f"{', '.join(f'{budget:,}' for budget in BUDGETS)} tokens, {len(cells.runs)} stable phases, "
                  f"{sum(run['cpu_seconds'] or 0 for run in cells.runs) / 60:.0f} CPU-minutes",
        "verdict": verdict,
        "regret_minus_half": {"value": half.mean(), "interval": against, "by_seed": half.tolist()},
        "regret": {arm: {"mean": rows.mean(0).tolist(), "intervals": [student(column) for column in rows.T],
                         "over budgets": rows.mean(), "interval": student(rows.mean(1))}
                   for arm, rows in regret.items() if arm != "tuned"},
        "bits_per_byte": {arm: losses.mean(0).tolist() for arm, losses in table.items()}, "tuning": tuning})
    return verdict


if __name__ == "__main__":
    sys.exit(main())
