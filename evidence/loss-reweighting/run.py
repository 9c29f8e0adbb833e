"""Weights by loss against none, at equal FLOPs: `TILTH_DATA=... python run.py FOLDER [clean|corrupt]`; see protocol.md.

Runs are made in FOLDER, seed by seed; finished ones are skipped. Writes result.json and runs.json.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "mates"))
import setting
import text

from tilth.data.seeding import generator
from tilth.recipe.files import read_json, write_bytes, write_json
from tilth.stages import Recipe
from tilth.trial.statistics import paired, verdict
from tilth.trial.trial import Trial

HERE = Path(__file__).parent
STEPS, LR, BATCH, SEEDS = 160, 8e-3, 2048, 5
NOISE = 0.02  # of the pool's bytes; random letters take about twice as many tokens a byte
CLEAN = {"linupper-1.0": ("linupper", 1.0), "linupper-0.4": ("linupper", 0.4), "quadratic-0.4": ("quadratic", 0.4),
         "extremes-0.4": ("extremes", 0.4)}
CORRUPT = {"linupper-0.4": ("linupper", 0.4), "quadratic-0.4": ("quadratic", 0.4)}


def arm(name: str, folder: Path, pool: Path | None, weigher: tuple[str, float] | None,
        before: float = 0.0) -> Recipe:
    policy: dict[str, Any] = {} if weigher is None else {"weigher": {
        "kind": weigher[0], "temperature": weigher[1], "warmup": STEPS // 20}}
    budget = {"steps": STEPS, **({"before": before} if before else {})}
    return setting.recipe(name, folder, budget, LR, BATCH, policy=policy, part="natural", pool=pool)


def trials(folder: Path) -> dict[str, Trial]:
    """The clean and the corrupt trial; the weighted runs pay for their first pass in steps."""
    corrupt = {"clean": None, "corrupt": corrupted(folder)}
    found = {}
    for kind, weighers in (("clean", CLEAN), ("corrupt", CORRUPT)):
        named = [arm("uniform", folder, corrupt[kind], None),
                 *(arm(name, folder, corrupt[kind], one) for name, one in weighers.items())]
        found[kind] = Trial(named, SEEDS, folder / kind, measure="natural")
    return found


def with_short(folder: Path, clean: Trial) -> Trial:
    """The clean trial and uniform weights for as many steps as the weighted runs take: what the lost steps alone cost.
    Added after the results were known."""
    whole, part = clean.finished(clean.recipes[0], 0), clean.finished(clean.recipes[1], 0)
    short = arm("uniform-short", folder, None, None, before=whole.flops * (1 - part.steps / whole.steps))
    return Trial([*clean.recipes, short], SEEDS, folder / "clean", measure="natural")


def corrupted(folder: Path) -> Path:
    """The pool with documents of random letters among the others."""
    path, pool = folder / "corrupt.jsonl", text.split(folder)["pool"]
    if not path.exists():
        rng, size = generator(text.SEED, "corrupt"), 8_000
        letters = np.array(list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;-()    "))
        lines = [json.dumps({"id": f"noise-{number}", "text": "".join(rng.choice(letters, size)), "source": "noise",
                             "license": "none"}) for number in range(round(NOISE * pool.stat().st_size / size))]
        write_bytes(path, pool.read_bytes() + ("\n".join(lines) + "\n").encode())
    return path


def difference(runs: dict[str, list[Any]], one: str, other: str) -> dict[str, Any]:
    """Bits per byte of one less the other, over the seeds that both have, and documents."""
    seeds = min(len(runs[one]), len(runs[other]))
    found = paired(np.stack([run.bits for run in runs[one][:seeds]]),
                   np.stack([run.bits for run in runs[other][:seeds]]), runs[one][0].bytes)
    return {key: found[key] for key in ("difference", "interval", "interval_seeds", "by_seed", "wins")}


def table(trial: Trial) -> dict[str, Any]:
    """Each arm: its runs and its difference to uniform, at equal FLOPs."""
    runs = {recipe.name: several for recipe in trial.recipes if len(several := trial.leading(recipe)) > 1}
    drawn = {recipe.name: trial.summary(recipe, 0, "pretrain")["policy"]["sources"] for recipe in trial.recipes
             if recipe.name in runs}
    return {name: {
        "bits_per_byte": [run.bits_per_byte for run in several], "flops": [run.flops for run in several],
        "steps": [run.steps for run in several], "seconds": [run.seconds for run in several],
        "effective_units": effective(several), "tokens_of_noise": next(
            (one["tokens"] / sum(two["tokens"] for two in drawn[name]) for one in drawn[name]
             if one["source"] == "noise"), 0.0),
        **({} if name == "uniform" else difference(runs, name, "uniform"))} for name, several in runs.items()}


def effective(runs: list[Any]) -> float | None:
    """Mean of the units that are left for the gradient's noise, of the steps that were weighted."""
    lines = [json.loads(line) for run in runs for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    found = [line["effective_units"] for line in lines if line.get("effective_units")]
    return float(np.mean(found)) if found else None


def report(tables: dict[str, Any]) -> None:
    clean = tables["clean"]
    named = clean["linupper-0.4"]
    says = verdict(named["interval"], named["interval_seeds"])
    write_json(HERE / "result.json", {
        "method": "loss-reweighting", "claim": "LinUpper at r = 0.4 ends below uniform weights at equal FLOPs",
        "published": "faster convergence and better results from 124M to 7B (Sow et al. 2025, abstract; the "
                     "figures of its tables could not be checked)",
        "baseline": "uniform weights", "metric": "bits per byte of unseen text like the pool, less is better",
        "value": float(np.mean(named["bits_per_byte"])),
        "baseline_value": float(np.mean(clean["uniform"]["bits_per_byte"])), "difference": named["difference"],
        "interval": named["interval"], "seeds": list(range(len(named["by_seed"]))),
        "budget": f"{clean['uniform']['flops'][0]:.4g} FLOP a run, the first pass included; "
                  f"{np.mean(named['seconds']):.0f} s against {np.mean(clean['uniform']['seconds']):.0f} s",
        "verdict": {"shows": "shows", "reversed": "does not show"}.get(says, "mixed" if named["difference"] < 0 else
                                                                       "does not show"),
        "tables": tables})


def main() -> int:
    if len(sys.argv) < 2:
        print("Name a folder for the runs.", file=sys.stderr)
        return 2
    path = HERE / "runs.json"
    tables: dict[str, Any] = read_json(path) if path.exists() else {}
    for kind, trial in trials(Path(sys.argv[1])).items():
        if len(sys.argv) == 2 or kind in sys.argv[2:]:
            trial.run()
            if kind == "clean":
                trial = with_short(Path(sys.argv[1]), trial)
                trial.run()
            tables[kind] = table(trial)
            write_json(path, tables)
            report(tables)
    return 0


if __name__ == "__main__":
    sys.exit(main())
