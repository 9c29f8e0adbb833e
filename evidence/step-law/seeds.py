"""Part 4 of protocol.md: `python evidence/step-law/seeds.py FOLDER`, about ten minutes on one core; writes seeds.json.

Interrupted, the same command goes on with the runs that are not finished.
"""

import math
import sys
from pathlib import Path

import numpy as np

from tilth.optim.advisor import Advice, step_law
from tilth.recipe.console import say
from tilth.recipe.files import read_json, write_json
from tilth.stages import Hardware
from tilth.stages.load import load_recipe
from tilth.stages.runner import run_recipe
from tilth.trial.statistics import student

HERE = Path(__file__).parent
RATES, BATCHES, LENGTH = (0.002, 0.005, 0.0125, 0.03), (512, 2048, 8192), 128
WIDTHS, TOKENS, SEEDS = {20640: 32, 82240: 64}, (200_000, 800_000), (1, 2, 3, 4, 5)
FIXED = (3e-4, 64 * LENGTH)
ARMS = ("grid's best", "refitted law", "published law", "fixed pair")


def nearest(advice: Advice) -> tuple[float, int]:
    """The pair of the grid nearest to an advice in (log rate, log batch)."""
    return min(((lr, batch) for lr in RATES for batch in BATCHES), key=lambda pair: math.hypot(
        math.log(pair[0] / advice.lr), math.log(pair[1] / advice.batch_tokens)))


def pairs(parameters: int, tokens: int, sweep: dict) -> dict[str, tuple[float, int]]:
    cell = min((one for one in sweep["cells"] if one["parameters"] == parameters and one["tokens"] == tokens),
               key=lambda one: one["best"]["bits_per_byte"])
    law = sweep["law"]
    refitted = Advice(law["c"] * parameters**law["alpha"] * tokens**law["beta"], law["d"] * tokens**law["gamma"])
    best = (cell["best"]["lr"], cell["best"]["batch_tokens"])
    return dict(zip(ARMS, (best, nearest(refitted), nearest(step_law(parameters, tokens)), FIXED), strict=True))


def loss(folder: Path, parameters: int, tokens: int, pair: tuple[float, int], seed: int) -> float:
    """Held-out bits per byte at the end of a run of the recipe of part 3."""
    width, (lr, batch) = WIDTHS[parameters], pair
    name = f"n{parameters}-d{tokens}-lr{lr:g}-b{batch}-s{seed}"
    model = f"{{kind: transformer, layers: 2, width: {width}, heads: 2, feed_forward: {2 * width}, context: 128}}"
    recipe = load_recipe(str(HERE / "tiny.yaml"), [
        f"pretrain.model={model}", f"pretrain.budget.tokens={tokens}", f"pretrain.optimizer.lr={lr}",
        f"pretrain.batch_tokens={batch}", f"seed={seed}"])
    run = folder / name
    run.mkdir(parents=True, exist_ok=True)
    summary = run_recipe(recipe, run, Hardware(device="cpu"))
    return summary["pretrain"]["held_out_bits_per_byte"]


def main() -> None:
    folder, sweep = Path(sys.argv[1]), read_json(HERE / "sweep.json")
    cells, over = [], {arm: np.zeros((len(SEEDS), 0)) for arm in ARMS}
    for parameters in WIDTHS:
        for tokens in TOKENS:
            chosen = pairs(parameters, tokens, sweep)
            say(f"{parameters} parameters, {tokens} tokens: {chosen}")
            found = {arm: np.array([loss(folder, parameters, tokens, pair, seed) for seed in SEEDS])
                     for arm, pair in chosen.items()}
            for arm in ARMS:
                excess = 100 * (found[arm] / found[ARMS[0]] - 1)
                over[arm] = np.column_stack([over[arm], excess])
            cells.append({"parameters": parameters, "tokens": tokens, "arms": {
                arm: {"lr": chosen[arm][0], "batch_tokens": chosen[arm][1], "bits_per_byte": found[arm].tolist()}
                for arm in ARMS}})
    write_json(HERE / "seeds.json", {
        "seeds": list(SEEDS), "measure": "held-out bits per byte over the grid's best of the same seed, percent",
        "excess": {arm: {"mean": float(over[arm].mean()), "interval": list(student(over[arm].mean(axis=1)))}
                   for arm in ARMS[1:]}, "cells": cells})


if __name__ == "__main__":
    main()
