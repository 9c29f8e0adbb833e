"""Does the best learning rate stay where it is as the width grows: `TILTH_DATA=FOLDER python evidence/mup/run.py`.

See protocol.md. Every run (parametrization, width, rate, seed) is a cell of runs.json; finished cells are skipped, so
the same command goes on where it stopped, and result.json is made from what is there.
"""

import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tilth.evaluate.rows import read_rows
from tilth.models import TransformerConfig, token_losses
from tilth.optim import AdamW, Cosine, Moment, group_parameters
from tilth.optim.fitting import vertex
from tilth.recipe.files import read_json, write_json

HERE = Path(__file__).parent
WIDTHS, BASE, KINDS = (64, 128, 256), 64, ("mup", "standard")
STEPS, ROWS, LENGTH, HELD_OUT_ROWS = 120, 8, 64, 256
PILOT_SEED, PILOT_POWERS, SEEDS = 100, range(0, 13, 2), (0, 1, 2, 3, 4)
LEAST_RATE, RESAMPLES, WANTED = 5e-4, 2000, 1.5
Losses = dict[int, list[float]]  # by the power k of the rate, a loss a seed


def rate(power: int) -> float:
    """The grid: LEAST_RATE sqrt(2)^power."""
    return LEAST_RATE * 2 ** (power / 2)


def text() -> tuple[np.ndarray, np.ndarray]:
    """Bytes of English novels: of the first 400 pieces for training, of the last 40 held out."""
    rows = [row["text"] for row in read_rows(str(Path(os.environ["TILTH_DATA"]) / "text" / "en_novels.jsonl.zst"))]
    return tuple(np.frombuffer("\n\n".join(part).encode(), np.uint8) for part in (rows[:400], rows[-40:]))


def windows(data: np.ndarray, count: int, rng: np.random.Generator) -> Tensor:
    """(count, LENGTH + 1) bytes from random places."""
    starts = rng.integers(0, len(data) - LENGTH - 1, count)
    return torch.from_numpy(np.stack([data[at : at + LENGTH + 1] for at in starts]).astype(np.int64))


def train(kind: str, width: int, lr: float, seed: int, data: tuple[np.ndarray, np.ndarray]) -> float:
    """Held-out nats a byte after the last step; infinite where it diverged. A seed has the same windows everywhere."""
    model = TransformerConfig(vocab_size=256, layers=2, width=width, heads=width // 32, feed_forward=2 * width,
                              context=LENGTH, mup={"base_width": BASE} if kind == "mup" else None)
    module = model.build().initialize(seed)
    optimizer = AdamW(lr=lr, weight_decay=0).build(group_parameters(module))
    rng, schedule = np.random.default_rng(seed), Cosine(warmup=0.1, floor=0)
    for step in range(STEPS):
        batch = windows(data[0], ROWS, rng)
        loss = token_losses(module.hidden(batch[:, :-1]), module.output_weight, batch[:, 1:]).mean()
        if not torch.isfinite(loss):
            return math.inf
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * schedule.factor(Moment(step, STEPS), lr)
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        held_out = windows(data[1], HELD_OUT_ROWS, np.random.default_rng(12345))
        loss = token_losses(module.hidden(held_out[:, :-1]), module.output_weight, held_out[:, 1:]).mean()
    return float(loss) if torch.isfinite(loss) else math.inf


class Cells:
    """The runs, on disk after each."""

    def __init__(self, path: Path):
        self.path = path
        self.runs: list[dict[str, Any]] = read_json(path) if path.exists() else []
        self.known = {(run["kind"], run["width"], run["power"], run["seed"]): run for run in self.runs}
        self.data = text()

    def loss(self, kind: str, width: int, power: int, seed: int) -> float:
        key = (kind, width, power, seed)
        if key not in self.known:
            start = time.process_time()
            loss = train(kind, width, rate(power), seed, self.data)
            run = {"kind": kind, "width": width, "power": power, "lr": rate(power), "seed": seed,
                   "loss": loss if math.isfinite(loss) else None,
                   "cpu_seconds": round(time.process_time() - start, 2)}
            self.known[key] = run
            self.runs.append(run)
            write_json(self.path, self.runs)
            print(run, flush=True)
        return math.inf if self.known[key]["loss"] is None else self.known[key]["loss"]


def near_optimum(cells: Cells, kind: str, width: int) -> Losses:
    """Five rates around the pilot's best, all seeds; one more on a side for as long as the best is within one of it."""
    pilot = {power: cells.loss(kind, width, power, PILOT_SEED) for power in PILOT_POWERS}
    middle = min(pilot, key=lambda power: pilot[power])
    powers = set(range(middle - 2, middle + 3))
    while True:
        found = {power: [cells.loss(kind, width, power, seed) for seed in SEEDS] for power in sorted(powers)}
        best = min(found, key=lambda power: float(np.mean(found[power])))
        lacking = {best - 2, best - 1, best + 1, best + 2} - powers
        if not lacking:
            return found
        powers |= lacking


def optimum(losses: Losses, drawn: Sequence[int]) -> float:
    """The vertex of the parabola in the logarithm of the rate, over the seeds `drawn` (places in SEEDS)."""
    means = [[float(np.mean([values[place] for place in drawn]))] for values in losses.values()]
    found = vertex([rate(power) for power in losses], means)
    return math.nan if found is None else found.at


def moved(narrow: Losses, wide: Losses) -> tuple[dict[str, Any], np.ndarray]:
    """By what factor the best rate falls from the smaller width to the larger, with the interval of a bootstrap over
    seeds (the same seeds drawn at both widths); and the logarithms of the resamples' factors."""
    rng, whole = np.random.default_rng(0), range(len(SEEDS))
    draws = [rng.integers(0, len(SEEDS), len(SEEDS)).tolist() for _ in range(RESAMPLES)]
    logs = np.log([optimum(narrow, one) / optimum(wide, one) for one in draws])
    at = optimum(narrow, whole), optimum(wide, whole)
    return {"narrow": at[0], "wide": at[1], "factor": at[0] / at[1],
            "interval": np.exp(np.nanquantile(logs, [0.025, 0.975])).tolist(),
            "resamples without a minimum": int(np.isnan(logs).sum())}, logs


def transfer(narrow: Losses, wide: Losses) -> dict[str, float]:
    """What the rate found at the smaller width costs at the larger one, percent of its best loss: at the grid's
    nearest rate that was run there with all seeds."""
    means = {power: float(np.mean(values)) for power, values in wide.items()}
    kept = min(narrow, key=lambda power: float(np.mean(narrow[power])))
    nearest = min(means, key=lambda power: abs(power - kept))
    return {"kept": rate(kept), "tried": rate(nearest), "excess": 100 * (means[nearest] / min(means.values()) - 1)}


def report(found: dict[tuple[str, int], Losses], cells: Cells) -> str:
    """Write result.json from the cells that are whole, those of the least and the largest width among them; returns the
    verdict."""
    wide = WIDTHS[-1]
    shifts = {(kind, width): moved(found[kind, BASE], losses) for (kind, width), losses in found.items()
              if width != BASE}
    moves = {kind: math.exp(abs(math.log(shifts[kind, wide][0]["factor"]))) for kind in KINDS}
    resampled = {kind: np.exp(abs(shifts[kind, wide][1])) for kind in KINDS}
    less = resampled["mup"] / resampled["standard"]
    bounds = [np.nanquantile(one, [0.025, 0.975]).tolist() for one in (
        resampled["mup"], less, resampled["mup"] - resampled["standard"])]
    if bounds[0][1] < WANTED and bounds[1][1] < 1:
        verdict = "shows"
    else:
        verdict = "mixed" if moves["mup"] < WANTED and moves["mup"] < moves["standard"] else "does not show"
    write_json(HERE / "result.json", {
        "method": "mup", "claim": f"From width {BASE} to {wide} the best rate moves less than a factor {WANTED}, and "
        "less than under the standard parametrization", "published": "the best rate stays where it is from width 128 "
        "to 8192 (Yang et al. 2022, figure 1)", "baseline": "standard parametrization",
        "metric": f"factor by which the best rate moves from width {BASE} to {wide}, 1 is best",
        "value": moves["mup"], "baseline_value": moves["standard"], "difference": moves["mup"] - moves["standard"],
        "interval": bounds[2], "seeds": list(SEEDS),
        "budget": f"{STEPS} steps of {ROWS * LENGTH} bytes a run, {len(cells.runs)} runs, "
                  f"{sum(run['cpu_seconds'] for run in cells.runs) / 60:.0f} CPU-minutes",
        "verdict": verdict, "interval_of_value": bounds[0],
        "ratio_of_moves": {"value": moves["mup"] / moves["standard"], "interval": bounds[1]},
        "shifts": {f"{kind}, {BASE} to {width}": one for (kind, width), (one, _) in shifts.items()},
        "transfer": {f"{kind}, {BASE} to {width}": transfer(found[kind, BASE], found[kind, width])
                     for kind, width in shifts},
        "optima": {f"{kind}, {width}": {"vertex": optimum(losses, range(len(SEEDS))), "mean loss by rate": {
            f"{rate(power):.3g}": float(np.mean(values)) for power, values in losses.items()}}
            for (kind, width), losses in found.items()}})
    return verdict


def main() -> int:
    if "TILTH_DATA" not in os.environ:
        print("Set TILTH_DATA to the folder that holds text/.", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    cells = Cells(HERE / "runs.json")
    found: dict[tuple[str, int], Losses] = {}
    for width in (WIDTHS[0], WIDTHS[-1], *WIDTHS[1:-1]):
        for kind in KINDS:
            found[kind, width] = near_optimum(cells, kind, width)
        if (KINDS[-1], WIDTHS[-1]) in found:
            print(report(found, cells), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
