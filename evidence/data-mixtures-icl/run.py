"""What a model learns in context from a mixture of function families: `python evidence/data-mixtures-icl/run.py RUNS`.

See protocol.md. Trains the arms seed by seed in the folder RUNS (about five CPU-minutes a seed); a finished cell of
runs.json is not run again, and result.json is made from the seeds that are whole.
"""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tilth.data.functions import FunctionStream
from tilth.evaluate.function_fits import Waves
from tilth.evaluate.in_context import InContext
from tilth.recipe.files import read_json, write_json
from tilth.recipe.frame import parse
from tilth.stages.load import load_recipe
from tilth.stages.runner import run_recipe
from tilth.trial.statistics import student

HERE = Path(__file__).parent
SEEDS, STEPS, FUNCTIONS, LATE, GRID = range(5), 3600, 2048, 5, 61
LINE, WAVE, WIDE = {"kind": "linear"}, {"kind": "sinusoid", "frequencies": [1, 4]}, {"kind": "sinusoid",
                                                                                     "frequencies": [1, 8]}
# A specialist sees as many sequences of its family as the mixture does: half of the steps.
ARMS: dict[str, tuple[dict[str, Any], int]] = {
    "mixture": ({"linear": LINE, "sinusoid": WAVE}, STEPS), "linear alone": ({"linear": LINE}, STEPS // 2),
    "sinusoid alone": ({"sinusoid": WAVE}, STEPS // 2), "coverage": ({"linear": LINE, "sinusoid": WIDE}, STEPS)}
WEIGHTS, FREQUENCIES = (0.1, 0.25, 0.5, 0.75, 0.9), (2, 3, 4, 5, 6, 7, 8)
ASKED = {"linear": LINE, "sinusoid": WAVE,
         **{f"w {weight:g}": {"kind": "combination", "first": LINE, "second": WAVE, "weight": weight}
            for weight in WEIGHTS},
         **{f"omega {one}": {"kind": "sinusoid", "frequencies": [one, one]} for one in FREQUENCIES}}


def measure() -> InContext:
    return parse(InContext, {"families": ASKED, "functions": FUNCTIONS, "late": LATE}, "measure")


def cell(arm: str, seed: int, runs: Path) -> dict[str, Any]:
    families, steps = ARMS[arm]
    recipe = load_recipe(str(HERE / "mixture.yaml"), [f"seed={seed}", f"train.steps={steps}"])
    stage: Any = recipe.stages["train"]
    stage.stream = {**stage.stream.model_dump(), "families": families}
    stage.measures = {"asked": measure()}
    summary = run_recipe(recipe, runs / f"{arm.replace(' ', '-')}-{seed}")["train"]
    return {"arm": arm, "seed": seed, "steps": steps, "cpu_seconds": round(summary["cpu_seconds"], 1),
            "flops": summary["flops"], "final_loss": summary["final_loss"],
            "families": summary["results"]["asked"]["families"]}


def references() -> dict[str, Any]:
    """Errors of the fits in closed form on the same functions, mean of the same late positions."""
    recipe = load_recipe(str(HERE / "mixture.yaml"))
    stream = FunctionStream(recipe.stages["train"].stream, 0)  # type: ignore[attr-defined]
    asked, waves, found = measure(), Waves(np.linspace(1, 4, GRID)), {}
    for name, family in asked.families.items():
        x, y = asked.sequences(family, stream)
        errors: dict[str, list[float]] = {}
        for k in range(x.shape[1] - LATE, x.shape[1]):
            for fit, (said, _) in waves.fit(x[:, :k, 0], y[:, :k], x[:, k, 0]).items():
                errors.setdefault(fit, []).append(float(np.square(said - y[:, k]).mean()))
        found[name] = {fit: float(np.mean(values)) for fit, values in errors.items()}
    return found


class Table:
    """Late errors by arm and family, an array over the seeds whose cells are all there."""

    def __init__(self, runs: list[dict[str, Any]]):
        known = {(run["arm"], run["seed"]): run["families"] for run in runs}
        self.known, self.seeds = known, [seed for seed in SEEDS if all((arm, seed) in known for arm in ARMS)]

    def late(self, arm: str, family: str) -> np.ndarray:
        return np.array([self.known[arm, seed][family]["late"] for seed in self.seeds])

    def ratio(self, a: tuple[str, str], b: tuple[str, str]) -> dict[str, Any]:
        """Geometric mean over seeds of late error a / late error b, with its 95 % interval (Student's t on logs)."""
        logs = np.log(self.late(*a) / self.late(*b))
        return {"value": float(np.exp(logs.mean())), "interval": np.exp(interval(logs)).tolist()}


def interval(values: np.ndarray) -> list[float]:
    """The 95 % interval of the mean over seeds (two of them at least)."""
    found = student(values)
    assert found is not None
    return found


def report(runs: list[dict[str, Any]], fits: dict[str, Any]) -> str:
    table = Table(runs)
    selection = {"linear": table.ratio(("mixture", "linear"), ("linear alone", "linear")),
                 "sinusoid": table.ratio(("mixture", "sinusoid"), ("sinusoid alone", "sinusoid"))}
    beyond = table.ratio(("mixture", "omega 8"), ("mixture", "omega 2"))
    between = table.ratio(("mixture", "w 0.5"), ("mixture", "linear"))
    covered = table.ratio(("coverage", "omega 6"), ("mixture", "omega 6"))
    gap = table.late("mixture", "omega 6") - table.late("coverage", "omega 6")
    fails = (beyond["interval"][0] > 5 and between["interval"][0] > 5
             and interval(table.late("mixture", "omega 8"))[0] >= 0.7)
    removed = covered["interval"][1] < 0.25
    chosen = all(one["interval"][1] < 2 for one in selection.values())
    verdict = "shows" if fails and removed and chosen else "mixed" if fails and (removed or chosen) else "does not show"
    write_json(HERE / "result.json", {
        "method": "data-mixtures-icl", "claim": "A transformer chooses among the function families it was pretrained "
        "on, and fails outside them: between them and beyond their range", "published": "near-optimal selection among "
        "families; failure on out-of-family tasks (Yadlowsky et al. 2023, curves only)",
        "baseline": "pretrained with frequencies up to 8", "metric": "squared error at frequency 6, trained up to 4 "
        "(variance 1)", "value": float(table.late("mixture", "omega 6").mean()),
        "baseline_value": float(table.late("coverage", "omega 6").mean()), "difference": float(gap.mean()),
        "interval": interval(gap),
        "seeds": table.seeds, "budget": f"{STEPS} steps of 64 sequences of 16 points, 88,000 parameters; "
        f"{len(runs)} runs, {sum(run['cpu_seconds'] for run in runs) / 60:.0f} CPU-minutes", "verdict": verdict,
        "mixture over specialist": selection, "omega 8 over omega 2": beyond, "w 0.5 over linear": between,
        "coverage over mixture at omega 6": covered,
        "late errors": {arm: {family: {"mean": float(table.late(arm, family).mean()),
                                       "lowest": float(table.late(arm, family).min()),
                                       "highest": float(table.late(arm, family).max())} for family in ASKED}
                        for arm in ARMS},
        "by examples": {arm: {family: np.mean([table.known[arm, seed][family]["error"] for seed in table.seeds],
                                              0).round(4).tolist() for family in ("linear", "sinusoid")}
                        for arm in ARMS},
        "variance": {family: table.known["mixture", table.seeds[0]][family]["variance"] for family in ASKED},
        "fits": fits})
    return verdict


def main() -> int:
    if len(sys.argv) < 2:
        print("Name a folder for the runs.", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    known, path = HERE / "runs.json", HERE / "fits.json"
    runs: list[dict[str, Any]] = read_json(known) if known.exists() else []
    for seed in SEEDS:
        for arm in ARMS:
            if not any(run["arm"] == arm and run["seed"] == seed for run in runs):
                runs.append(cell(arm, seed, Path(sys.argv[1])))
                write_json(known, runs)
                print(arm, seed, runs[-1]["cpu_seconds"], time.strftime("%H:%M"), flush=True)
        if seed > 0:
            if not path.exists():
                write_json(path, references())
            print(report(runs, read_json(path)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
