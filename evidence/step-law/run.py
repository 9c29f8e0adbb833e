"""Step Law on the published grid: `TILTH_DATA=FOLDER python evidence/step-law/run.py`; see protocol.md."""

import argparse
import csv
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tilth.optim.advisor import STEP_LAW_BOOTSTRAP, Advice, deepseek_law, openai_law, step_law
from tilth.optim.fitting import Run, cells, excess, fit_step_law
from tilth.recipe.files import write_json

SEQUENCE = 2048
Cell = tuple[float, float]


def read_runs(path: Path) -> list[Run]:
    with open(path, encoding="utf-8") as file:
        return [Run(float(row["params_non_embedding"]), float(row["tokens"]), float(row["lr"]),
                    SEQUENCE * float(row["batch_sequences"]), float(row["smooth_loss"]))
                for row in csv.DictReader(file)]


def best_pair(runs: Sequence[Run]) -> Advice:
    """The (rate, batch) of any run with the least mean excess over the cells of `runs`."""
    pairs = {(f"{run.lr:.2e}", run.batch_tokens): Advice(run.lr, run.batch_tokens) for run in runs}

    def mean_excess(pair: Advice) -> float:
        return float(np.mean(list(excess(runs, lambda n, d: pair).values())))

    return min(pairs.values(), key=mean_excess)


def left_out(runs: Sequence[Run], part: Callable[[Run], float]) -> dict[str, dict[Cell, float]]:
    """Excess in each cell of advice that has not seen any run of the same part (size or tokens)."""
    law, pair = {}, {}
    for value in sorted({part(run) for run in runs}):
        seen, unseen = ([run for run in runs if (part(run) == value) is out] for out in (False, True))
        fitted, fixed = fit_step_law(seen).law, best_pair(seen)
        law |= excess(unseen, fitted)
        pair |= excess(unseen, lambda n, d, fixed=fixed: fixed)
    return {"refitted law": law, "best fixed pair": pair}


def compare(one: dict[Cell, float], other: dict[Cell, float]) -> dict[str, Any]:
    """Percent: means, maxima, and the mean difference over cells with its bootstrap interval."""
    names = sorted(one)
    a, b = (np.array([100 * values[name] for name in names]) for values in (one, other))
    rng = np.random.default_rng(0)
    draws = (a - b)[rng.integers(0, len(names), (10_000, len(names)))].mean(1)
    return {"value": a.mean(), "maximum": a.max(), "baseline_value": b.mean(), "baseline_maximum": b.max(),
            "difference": (a - b).mean(), "interval": np.quantile(draws, [0.025, 0.975]).tolist()}


def beside(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    best = {cell: min(run.loss for run in group) for cell, group in cells(runs).items()}
    laws = {"fixed 3e-4, 64 sequences": lambda n, d: Advice(3e-4, 64 * SEQUENCE),
            "Kaplan et al. 2020": lambda n, d: openai_law(n, d, best[n, d]),
            "bootstrap mean of the published law": STEP_LAW_BOOTSTRAP}
    found = {name: np.array(list(excess(runs, law).values())) * 100 for name, law in laws.items()}
    return {name: {"mean": values.mean(), "maximum": values.max()} for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=os.environ.get("TILTH_DATA"), help="folder that holds scaling/")
    data = parser.parse_args().data
    if not data:
        raise SystemExit("Say where the measurements are: --data FOLDER, or TILTH_DATA.")
    start = time.process_time()
    runs = read_runs(Path(data) / "scaling" / "step_law_dense.csv")
    published, deepseek = excess(runs, step_law), excess(runs, deepseek_law)
    recomputed = compare(published, deepseek)
    by_size, by_tokens = (left_out(runs, part) for part in (lambda run: run.parameters, lambda run: run.tokens))
    held = {name: compare(found["refitted law"], found["best fixed pair"])
            for name, found in (("size", by_size), ("tokens", by_tokens))}
    main_two = (recomputed, held["size"])
    shows = all(one["interval"][1] < 0 for one in main_two)
    fails = any(one["difference"] > 0 for one in main_two)
    write_json(Path(__file__).parent / "result.json", {
        "method": "step-law", "claim": "Rate and batch from model size and tokens cost almost nothing against a search",
        "published": "0.94 per mille above the best of a search (DeepSeek law 9.26 per mille)",
        "baseline": "DeepSeek law", "metric": "excess loss over each cell's best, percent, less is better",
        **{key: recomputed[key] for key in ("value", "baseline_value", "difference", "interval")}, "seeds": [],
        "budget": f"{len(runs)} published runs in {len(published)} cells, {time.process_time() - start:.0f} s",
        "verdict": "shows" if shows else "does not show" if fails else "mixed",
        "comparisons": {"published law against DeepSeek law": recomputed,
                        "refitted without the size, against the best fixed pair": held["size"],
                        "refitted without the tokens, against the best fixed pair": held["tokens"]},
        "beside": beside(runs),
        "cells": [{"parameters": n, "tokens": d, "published law": 100 * published[n, d],
                   "DeepSeek law": 100 * deepseek[n, d],
                   **{f"{name}, size left out": 100 * values[n, d] for name, values in by_size.items()}}
                  for n, d in sorted(published) if math.isfinite(published[n, d])]})


if __name__ == "__main__":
    main()
