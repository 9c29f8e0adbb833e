"""FP8 optimizer states with range expansion on a small run: `TILTH_DATA=FOLDER python evidence/coat/run.py`.

See protocol.md. Every run (an arm and a seed) is a cell of runs.json; finished cells are skipped, so the same command
goes on where it stopped. Needs torchao beside Tilth: pip install 'torchao>=0.16'.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # torchao's step uncompiled: the same numbers, without a minute of compiling

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilth.evaluate.rows import read_rows
from tilth.models import TransformerConfig
from tilth.optim import AdamW, group_parameters
from tilth.optim.coat import CoatAdamW
from tilth.precision.activations import use_mode
from tilth.precision.fp8 import Exponent, dequantize_moment, quantize_moment
from tilth.recipe.files import read_json, write_json
from tilth.trial.statistics import student

HERE = Path(__file__).parent
STEPS, ROWS, LENGTH, WARMUP, HELD_OUT_ROWS = 300, 12, 128, 20, 256
LR, BETAS, EPS, DECAY = 3e-3, (0.9, 0.95), 1e-8, 0.1
MEASURED_AT = (100, 200, 300)
JUDGED = ("fp32", "coat", "fp8", "torchao_fp8", "torchao_8bit")
ARMS = (*JUDGED, "coat_activations")
RULES: dict[str, Exponent | None] = {"expanded": "exact", "sixteenths": "sixteenths", "plain": None}


def text() -> tuple[np.ndarray, np.ndarray]:
    """Bytes of English novels: of the first 400 pieces for training, of the last 40 held out."""
    rows = [row["text"] for row in read_rows(str(Path(os.environ["TILTH_DATA"]) / "text" / "en_novels.jsonl.zst"))]
    return tuple(np.frombuffer("\n\n".join(part).encode(), np.uint8) for part in (rows[:400], rows[-40:]))


def windows(data: np.ndarray, count: int, rng: np.random.Generator) -> Tensor:
    """(count, LENGTH + 1) bytes from random places."""
    starts = rng.integers(0, len(data) - LENGTH - 1, count)
    return torch.from_numpy(np.stack([data[at : at + LENGTH + 1] for at in starts]).astype(np.int64))


def build(arm: str, model: nn.Module) -> torch.optim.Optimizer:
    groups = group_parameters(model)
    settings = {"lr": LR, "betas": BETAS, "epsilon": EPS, "weight_decay": DECAY}
    if arm == "fp32":
        return AdamW(**settings).build(groups)
    if not arm.startswith("torchao"):
        return CoatAdamW(**settings, expansion=arm != "fp8").build(groups)
    from torchao.optim import AdamW8bit, AdamWFp8
    parts = [{"params": group.parameters, "weight_decay": DECAY if group.name == "matrices" else 0.0}
             for group in groups]
    cls = AdamWFp8 if arm == "torchao_fp8" else AdamW8bit
    return cls(parts, lr=LR, betas=BETAS, eps=EPS, block_size=64)  # 2.13 and 2.20 bytes, as much as with expansion


def rate(step: int) -> float:
    warm = min(1.0, (step + 1) / WARMUP)
    return LR * warm * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / STEPS)))


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def loss_of(model: Any, batch: Tensor) -> Tensor:
    return F.cross_entropy(model(batch[:, :-1]).float().flatten(0, 1), batch[:, 1:].flatten())


def run(arm: str, seed: int) -> dict[str, Any]:
    """One training run: held-out bits per byte at its end, and of fp32 the errors of stored moments on the way."""
    torch.set_num_threads(1)
    train, held_out = text()
    model = TransformerConfig(vocab_size=256, layers=3, width=128, heads=2, feed_forward=352,
                              context=LENGTH).build().initialize(seed)
    use_mode(model, "coat" if arm == "coat_activations" else "plain")
    optimizer, rng = build(arm, model), np.random.default_rng(seed)
    errors, largest, losses = {}, 0.0, []
    start = time.process_time()
    for step in range(STEPS):
        set_rate(optimizer, rate(step))
        loss = loss_of(model, windows(train, ROWS, rng))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        if hasattr(optimizer, "figures"):
            largest = max(largest, optimizer.figures()["largest_update"])
        if arm == "fp32" and step + 1 in MEASURED_AT:
            errors[step + 1] = update_errors(optimizer, step + 1)
    seconds = time.process_time() - start
    return {"bits_per_byte": held_out_bits(model, held_out), "training_loss": float(np.mean(losses[-20:])),
            "state_bytes_per_parameter": state_bytes(optimizer) / sum(p.numel() for p in model.parameters()),
            "largest_update": largest or None, "cpu_seconds": seconds, "errors": errors}


@torch.no_grad()
def held_out_bits(model: nn.Module, data: np.ndarray) -> float:
    batches = windows(data, HELD_OUT_ROWS, np.random.default_rng(12345)).split(32)
    return float(np.mean([float(loss_of(model, batch)) for batch in batches])) / math.log(2)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors of the state, inside wrappers too."""
    total, waiting = 0, [value for state in optimizer.state.values() for value in state.values()]
    while waiting:
        one = waiting.pop()
        if hasattr(one, "__tensor_flatten__"):
            waiting += [getattr(one, name) for name in one.__tensor_flatten__()[0]]
        elif isinstance(one, Tensor):
            total += one.nbytes
    return total


def update_errors(optimizer: torch.optim.Optimizer, step: int) -> dict[str, dict[str, float]]:
    """Mean square errors of m / (sqrt(v) + eps), both bias-corrected, once the true moments were stored each way: over
    all entries, and over those whose v plain FP8 does not round to 0."""
    sums: dict[str, np.ndarray] = {name: np.zeros(4) for name in RULES}
    for state in optimizer.state.values():
        m, v = state["exp_avg"].flatten(), state["exp_avg_sq"].flatten()
        true = update(m, v, step)
        kept = dequantize_moment(quantize_moment(v, None)) > 0
        for name, rule in RULES.items():
            stored = [dequantize_moment(quantize_moment(x, rule)) for x in (m, v)]
            square = (update(*stored, step) - true).double().square()
            sums[name] += [float(square.sum()), len(square), float(square[kept].sum()), int(kept.sum())]
    return {name: {"all": total[0] / total[1], "kept": total[2] / total[3], "flushed": 1 - total[3] / total[1]}
            for name, total in sums.items()}


def update(m: Tensor, v: Tensor, step: int) -> Tensor:
    return m / (1 - BETAS[0] ** step) / ((v / (1 - BETAS[1] ** step)).sqrt() + EPS)


def paired(runs: dict[str, Any], arm: str, other: str, seeds: list[int],
           value: Callable[[dict[str, Any]], float]) -> dict[str, Any]:
    """arm minus other, over the seeds that have both."""
    seeds = [seed for seed in seeds if all(f"{name}-{seed}" in runs for name in (arm, other))]
    a, b = (np.array([value(runs[f"{name}-{seed}"]) for seed in seeds]) for name in (arm, other))
    return {"value": float(a.mean()), "baseline_value": float(b.mean()), "difference": float((a - b).mean()),
            "interval": student(a - b), "seeds": seeds, "by_seed": (a - b).tolist(), "ratio": float((a / b).mean()),
            "ratio_interval": student(a / b)}


def improvement(runs: dict[str, Any], seeds: list[int], over: str, rule: str) -> list[float]:
    """Of each seed, the error of plain FP8 over that with expansion, each the mean of the three looks."""
    found = []
    for seed in seeds:
        looks = runs[f"fp32-{seed}"]["errors"].values()
        found.append(float(np.mean([look["plain"][over] for look in looks]) / np.mean([look[rule][over]
                                                                                      for look in looks])))
    return found


def report(runs: dict[str, Any], seeds: list[int]) -> None:
    """result.json from the cells there are, once the judged arms have two seeds."""
    bits = {arm: paired(runs, "coat", arm, seeds, lambda run: run["bits_per_byte"]) for arm in JUDGED if arm != "coat"}
    seeds = bits["fp32"]["seeds"]
    looks = [look for seed in seeds for look in runs[f"fp32-{seed}"]["errors"].values()]
    errors = {over: improvement(runs, seeds, over, "expanded") for over in ("all", "kept")}
    within = bits["fp32"]["ratio_interval"][1] <= 1.01
    smaller = min(min(values) for values in errors.values()) >= 2
    better = {arm: bits[arm]["interval"][1] < 0 for arm in ("fp8", "torchao_fp8", "torchao_8bit")}
    holds = [smaller, within, all(better.values())]
    verdict = "shows" if all(holds) else "mixed" if within or smaller else "does not show"
    shared = {"method": "coat", "seeds": seeds,
              "budget": f"{STEPS} steps of {ROWS} x {LENGTH} bytes, 0.6 M parameters"}
    kept = {rule: float(np.mean([look[rule]["kept"] for look in looks])) for rule in RULES}
    activations = {other: paired(runs, "coat_activations", other, seeds, lambda run: run["bits_per_byte"])
                   for other in ("fp32", "coat")}
    write_json(HERE / "result.json", [
        {**shared, "claim": "FP8 moments with range expansion train as well as float32 moments, and better than FP8 "
         "moments without it and than other 8-bit optimizers at equal bytes", "published": "training loss of OLMo-1B "
         "3.008 against 2.995 in bf16", "baseline": "AdamW, float32 moments", "metric": "held-out bits per byte, less "
         "is better", **bits["fp32"], "comparisons": bits, "activations": activations, "better_than": better,
         "within_1_percent": within, "verdict": verdict},
        {**shared, "claim": "Range expansion at least halves the squared error of Adam's update",
         "published": "20.10 without, 12.31 with expansion of both moments (1.63 times)",
         "baseline": "FP8 moments without expansion",
         "metric": "mean square error of m / sqrt(v) on moments of the float32 runs, less is better",
         "value": kept["expanded"], "baseline_value": kept["plain"], "difference": kept["expanded"] - kept["plain"],
         "interval": student([float(np.mean([look["expanded"]["kept"] - look["plain"]["kept"] for look in
                                             runs[f"fp32-{seed}"]["errors"].values()])) for seed in seeds]),
         "times_smaller": errors, "sixteenths": {over: improvement(runs, seeds, over, "sixteenths") for over in errors},
         "flushed": float(np.mean([look["plain"]["flushed"] for look in looks])),
         "verdict": "shows" if smaller else "does not show"}])
    print(json.dumps({"verdict": verdict, "within": within, "better": better, "errors": errors}, indent=1))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="do only these cells")
    arguments = parser.parse_args()
    if "TILTH_DATA" not in os.environ:
        print("Set TILTH_DATA to the folder that holds text/.", file=sys.stderr)
        return 2
    path = HERE / "runs.json"
    runs = read_json(path) if path.exists() else {}
    for seed in arguments.seeds:
        for arm in arguments.arms:
            if f"{arm}-{seed}" not in runs:
                runs[f"{arm}-{seed}"] = run(arm, seed)
                print(arm, seed, runs[f"{arm}-{seed}"], flush=True)
                write_json(path, runs)
    if len(arguments.seeds) > 1 and all(f"{arm}-{seed}" in runs for arm in JUDGED for seed in arguments.seeds[:2]):
        report(runs, arguments.seeds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
