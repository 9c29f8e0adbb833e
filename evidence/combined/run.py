"""Selection, weights, optimizer and schedule together against the plain default: `TILTH_DATA=... python run.py FOLDER`;
see protocol.md.

Two trials in FOLDER, seed by seed: the plain default at the whole budget, and the arms at a part of it. Finished runs
are skipped. Writes result.json and runs.json.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "mates"))
import setting
import text

from tilth.recipe import parse
from tilth.recipe.files import write_json
from tilth.stages import Recipe
from tilth.trial.statistics import paired, student, verdict
from tilth.trial.trial import Trial

HERE = Path(__file__).parent
STEPS, LR, BATCH, SEEDS = 600, 8e-3, 1024, 5
PARTS = (2, 3)  # the budgets are the plain default's divided by these
KEEP, MUON, SMALL = 0.2, 0.016, 512


def arms(folder: Path) -> list[Recipe]:
    """The plain default, everything but weights, and everything."""
    reference = {"path": str(text.split(folder)["target"]), "tokens": 1_000_000}
    chosen = {"selector": {"kind": "importance", "keep": KEEP, "reference": reference}}
    weights = {"weigher": {"kind": "linupper", "temperature": 1.0, "warmup": 20}}
    return [arm("plain", folder, {}, None), arm("combined", folder, chosen, MUON),
            arm("combined-weights", folder, {**chosen, **weights}, MUON)]


def arm(name: str, folder: Path, policy: dict[str, Any], muon: float | None) -> Recipe:
    """AdamW in steps of BATCH, or Muon in steps of SMALL tokens."""
    made = setting.recipe(name, folder, {"steps": STEPS}, LR, BATCH if muon is None else SMALL, policy=policy,
                          part="test")
    if muon is None:
        return made
    fields = made.model_dump(mode="json")
    fields["stages"]["pretrain"]["optimizer"] = {"kind": "muon", "lr": muon}
    return parse(Recipe, fields)


def versus(runs: list[Any], others: list[Any]) -> dict[str, Any]:
    """Bits per byte of runs less others, over the seeds that both have, and documents."""
    seeds = min(len(runs), len(others))
    found = paired(np.stack([run.bits for run in runs[:seeds]]), np.stack([run.bits for run in others[:seeds]]),
                   runs[0].bytes)
    return {key: found[key] for key in ("difference", "interval", "interval_seeds", "by_seed", "wins")}


def factor(scores: dict[int, float], wanted: float) -> float:
    """How many times fewer FLOPs reach the wanted score: linear in the logarithm of the budget between the two parts,
    and from the nearer one on where it lies beyond."""
    small, large = sorted(PARTS)
    slope = (scores[large] - scores[small]) / np.log(large / small)  # bits per byte lost by e times fewer FLOPs
    return float(small * np.exp((wanted - scores[small]) / slope))


def report(plain: list[Any], runs: dict[int, dict[str, list[Any]]]) -> None:
    seeds = range(min(len(runs[part]["combined"]) for part in PARTS))
    factors = [factor({part: runs[part]["combined"][seed].bits_per_byte for part in PARTS}, plain[seed].bits_per_byte)
               for seed in seeds]
    table = {f"1/{part}": {name: {
        "bits_per_byte": [run.bits_per_byte for run in several], "flops": [run.flops for run in several],
        "steps": [run.steps for run in several], "seconds": [run.seconds for run in several],
        "natural": [float(np.sum(run.tasks["held_out"]["bits"]) / np.sum(run.tasks["held_out"]["bytes"]))
                    for run in several], "less_plain_at_whole": versus(several, plain),
        **({"less_plain_at_same": versus(several, named["plain"])} if "plain" in named else {})}
        for name, several in named.items()}
        for part, named in runs.items()}
    reached = {part: table[f"1/{part}"]["combined"]["less_plain_at_whole"] for part in PARTS}
    clear = {part: verdict(one["interval"], one["interval_seeds"]) == "shows" for part, one in reached.items()}
    spread = student(np.log(factors)) or [float("nan")] * 2
    value = float(np.exp(np.mean(np.log(factors))))
    write_json(HERE / "runs.json", {"plain": [run.bits_per_byte for run in plain], "parts": table})
    write_json(HERE / "result.json", {
        "method": "combined", "claim": "Selection, optimizer, batch and schedule together reach the plain default's "
                                       "final score with three times fewer FLOPs",
        "published": "2 times fewer FLOPs to random's score (MATES, Yu et al. 2024, abstract)",
        "baseline": "tuned AdamW on random units", "metric": "times fewer FLOPs to the plain default's score on unseen "
                                                             "text of the target, more is better",
        "value": value, "baseline_value": 1.0, "difference": value - 1,
        "interval": [float(np.exp(one)) - 1 for one in spread], "seeds": [plain[seed].seed for seed in seeds],
        "budget": f"{plain[0].flops:.4g} FLOP of the plain default, {np.mean([run.seconds for run in plain]):.0f} s",
        "verdict": "shows" if clear[3] else "mixed" if clear[2] else "does not show", "by_seed": factors,
        "at_parts": {f"1/{part}": one for part, one in reached.items()}})


def main() -> int:
    if len(sys.argv) != 2:
        print("Name the folder in which ../mates/run.py made its runs.", file=sys.stderr)
        return 2
    folder = Path(sys.argv[1])
    same = [arm(name, folder, {}, None) for name in ("random", "again")]  # the plain arm of ../mates by its own name
    whole = Trial(same, SEEDS, folder / "trial", measure="test")
    plain = [whole.finished(whole.recipes[0], seed) for seed in range(SEEDS)]
    trials = {part: Trial(arms(folder), SEEDS, folder / f"part-{part}", flops=plain[0].flops / part, measure="test")
              for part in PARTS}
    for trial in trials.values():
        trial.run()
    report(plain, {part: standing(trial) for part, trial in trials.items()})
    return 0


def standing(trial: Trial) -> dict[str, list[Any]]:
    """Of every arm the first seeds that are finished, if there are two or more."""
    return {recipe.name: found for recipe in trial.recipes if len(found := trial.leading(recipe)) > 1}


if __name__ == "__main__":
    sys.exit(main())
