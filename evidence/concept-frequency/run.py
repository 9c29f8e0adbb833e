"""Does accuracy follow the count of a concept: `TILTH_DATA=FOLDER python evidence/concept-frequency/run.py RUNS`.

See protocol.md. Part one reads released tables again (released.json); part two trains in the folder RUNS (about four
CPU-minutes; a finished cell of runs.json is not run again). result.json is made from the seeds that are whole.
"""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from make_pairs import NUMBERS, names, write, zipf

from tilth.analyze.concepts import ConceptFit, joined
from tilth.recipe.files import read_json, write_json
from tilth.stages.load import load_recipe
from tilth.stages.runner import run_recipe
from tilth.trial.statistics import student

HERE = Path(__file__).parent
SEEDS, MOST, LEAST, CAP, TAIL = range(5), 1000, 4, 20, 20
ARMS = ("zipf", "uniform", "balanced")
MATCHED = "integrated_tlemmatized_i0.7"
RELEASED = (("RN50", "cc3m"), ("ViT-B-16", "cc3m"), ("ViT-B-16", "cc12m"), ("ViT-B-16", "yfcc15m"),
            ("ViT-B-16", "laion400m"), ("ViT-L-14", "laion400m"), ("ViT-B-16", "synthci30m"))


def released(folder: Path) -> list[dict[str, Any]]:
    """The fits of all of RELEASED, from the authors' counts and accuracies, joined by name."""
    counts, accuracy = (pl.read_csv(folder / f"concept_{name}.tsv.zst", separator="\t") for name in ("counts",
                                                                                                   "accuracy"))
    found = []
    for model, trained_on in RELEASED:
        scores = accuracy.filter(pl.col("dataset") != "imagenet-r", prompts="ensemble",
                                 model=f"backbone{model}_pretrained{trained_on}")
        table = joined(counts.filter(kind=MATCHED, pretraining_set=trained_on), scores, {"plane": "airplane"})
        fit = ConceptFit(skip_first=2 if trained_on == "laion400m" else 1).run(table)
        found.append({"model": model, "trained on": trained_on, **fit})
    return found


def plan(seed: int) -> tuple[np.ndarray, list[str]]:
    """The Zipf counts of a seed, and its names."""
    rng = np.random.default_rng([seed, 0])
    return zipf(rng, MOST, LEAST), names(rng)


def cell(arm: str, seed: int, runs: Path, data: Path) -> dict[str, Any]:
    counts, words = plan(seed)
    pairs = runs / f"pairs-{'uniform' if arm == 'uniform' else 'zipf'}-{seed}"
    counts = np.full(NUMBERS, counts.sum() // NUMBERS) if arm == "uniform" else counts
    if not (pairs / "train.parquet").exists():
        write(data, pairs, seed, counts, words)
    (pairs / "names.txt").write_text("\n".join(words))
    policy = [] if arm != "balanced" else [
        f"train.stream.policy.selector={{kind: concepts, names: {pairs}/names.txt, cap: {CAP}, "
        "lemmas: {kind: none}}"]
    recipe = load_recipe(str(HERE / "pairs.yaml"), [
        f"seed={seed}", f"pairs.input.path={pairs}/train.parquet", f"pairs.test.path={pairs}/test.parquet", *policy])
    summary = run_recipe(recipe, runs / f"{arm}-{seed}")["train"]
    accuracy = {row["concept"]: row["accuracy"] for row in summary["results"]["zero_shot"]["concepts"]}
    return {"arm": arm, "seed": seed, "cpu_seconds": round(summary["cpu_seconds"], 1), "flops": summary["flops"],
            "pairs": summary["served"]["policy"]["selector"].get("selected", int(counts.sum())),
            "accuracy": [accuracy[word] for word in words]}


def slope(counts: np.ndarray, accuracy: list[float]) -> dict[str, Any]:
    return ConceptFit().run(pl.DataFrame({"count": counts, "performance": accuracy}))


def interval(values: Any) -> list[float]:
    found = student(np.asarray(values))
    assert found is not None
    return found


def report(runs: list[dict[str, Any]], tables: list[dict[str, Any]]) -> str:
    known = {(run["arm"], run["seed"]): run for run in runs}
    seeds = [seed for seed in SEEDS if all((arm, seed) in known for arm in ARMS)]
    fits: dict[str, list[dict[str, Any]]] = {"zipf": [], "uniform": [], "balanced": [], "shuffled": []}
    tail: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for seed in seeds:
        counts, _ = plan(seed)
        rarest = np.argsort(counts, kind="stable")[:TAIL]
        for arm in ARMS:
            accuracy = known[arm, seed]["accuracy"]
            fits[arm].append(slope(counts, accuracy))
            tail[arm].append(float(np.array(accuracy)[rarest].mean()))
        shuffled = np.random.default_rng([seed, 4]).permutation(counts)
        fits["shuffled"].append(slope(shuffled, known["zipf", seed]["accuracy"]))
    points = {arm: np.array([fit["points_per_decade"]["value"] for fit in found]) for arm, found in fits.items()}
    rises = all(fit["points_per_decade"]["interval"][0] > 0 for fit in fits["zipf"])
    flat = {arm: interval(points[arm])[0] < 0 < interval(points[arm])[1] and abs(points[arm].mean()) < points[
        "zipf"].mean() / 5 for arm in ("uniform", "shuffled")}
    verdict = "shows" if rises and all(flat.values()) else "mixed" if rises else "does not show"
    gap = points["zipf"] - points["uniform"]
    mean = {arm: [float(np.mean(known[arm, seed]["accuracy"])) for seed in seeds] for arm in ARMS}
    write_json(HERE / "result.json", {
        "method": "concept-frequency", "claim": "Zero-shot accuracy on a concept grows with the logarithm of its count "
        "in the pretraining pairs", "published": "r above 0.9 of bin means, log-linear over 34 models "
        "(Udandarao et al. 2024)", "baseline": "the same concepts, all equally frequent",
        "metric": "points of accuracy for ten times the pairs of a concept", "value": float(points["zipf"].mean()),
        "baseline_value": float(points["uniform"].mean()), "difference": float(gap.mean()), "interval": interval(gap),
        "seeds": seeds, "budget": f"400 steps of 128 pairs a run, {len(runs)} runs, "
        f"{sum(run['cpu_seconds'] for run in runs) / 60:.1f} CPU-minutes", "verdict": verdict,
        "by arm": {arm: {"points a decade": points[arm].tolist(), "interval of the mean": interval(points[arm]),
                         "interval of each": [fit["points_per_decade"]["interval"] for fit in fits[arm]],
                         "r by concept": [fit["r"] for fit in fits[arm]],
                         "r of bin means": [fit["bins"]["r"] for fit in fits[arm]]} for arm in fits},
        "accuracy": {arm: {"mean": float(np.mean(mean[arm])), "rarest": float(np.mean(tail[arm]))} for arm in ARMS},
        "rarest, balanced minus zipf": {"mean": float(np.mean(np.subtract(tail["balanced"], tail["zipf"]))),
                                        "interval": interval(np.subtract(tail["balanced"], tail["zipf"]))},
        "all, balanced minus zipf": {"mean": float(np.mean(np.subtract(mean["balanced"], mean["zipf"]))),
                                     "interval": interval(np.subtract(mean["balanced"], mean["zipf"]))},
        "released": [{"model": one["model"], "trained on": one["trained on"], "r of bin means": one["bins"]["r"],
                      "r by concept": one["r"], "r within data sets": one["r_within_datasets"]["mean"],
                      "points a decade": one["points_per_decade"], "with a level for each data set":
                      one["points_per_decade_within"], "zeros": one["zeros"], "concepts": one["concepts"]}
                     for one in tables]})
    return verdict


def main() -> int:
    if "TILTH_DATA" not in os.environ or len(sys.argv) < 2:
        print("Set TILTH_DATA to the folder that holds images/ and scaling/, and name a folder for the runs.",
              file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    data, known, tables = Path(os.environ["TILTH_DATA"]), HERE / "runs.json", HERE / "released.json"
    if not tables.exists():
        write_json(tables, released(data / "scaling"))
    runs: list[dict[str, Any]] = read_json(known) if known.exists() else []
    for seed in SEEDS:
        for arm in ARMS:
            if not any(run["arm"] == arm and run["seed"] == seed for run in runs):
                runs.append(cell(arm, seed, Path(sys.argv[1]).absolute(), data))
                write_json(known, runs)
                print(arm, seed, runs[-1]["cpu_seconds"], flush=True)
        if seed > 0:
            print(report(runs, read_json(tables)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
