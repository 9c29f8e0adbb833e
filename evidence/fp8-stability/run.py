"""The study of protocol.md and what it says: `python evidence/fp8-stability/run.py [FOLDER]`.

About ten minutes on one core; interrupted, the same command goes on. Writes result.json and study.json beside it.
"""

import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tilth.precision.formats import NumberFormat, quantize
from tilth.recipe.files import read_json, write_json
from tilth.stages import Hardware
from tilth.trial.stability import run_study
from tilth.trial.statistics import student

HERE = Path(__file__).parent
FORMATS = "fp32,E8M7,E8M5,E8M3,E8M2,E6M7,E5M7,E4M7,E4M7:scaled,E4M3fn/E5M2:scaled"
RATES = "0.004,0.016,0.064"
SEEDS = 5
FP8, BF16 = "E4M3fn/E5M2:scaled", "E8M7"
HIGH, WARNED_AT = 0.064, 100


def finals(study: dict[str, Any], name: str, rate: float) -> np.ndarray:
    """(seeds,) final losses, a failed run with its first loss."""
    cell = next(one for one in study["cells"] if one["format"] == name and one["rate"] == rate)
    return np.array([first if kind in ("diverged", "stalled") or end is None else end for first, end, kind in
                     zip(cell["firsts"], cell["finals"], cell["kinds"], strict=True)])


def over_rates(study: dict[str, Any], name: str) -> np.ndarray:
    return np.mean([finals(study, name, rate) for rate in study["rates"]], axis=0)


def paired(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    return {"value": float(a.mean()), "baseline_value": float(b.mean()), "difference": float((a - b).mean()),
            "interval": student(a - b)}


def never_falls(values: Sequence[float]) -> bool:
    return all(a <= b for a, b in pairwise(values))


def row(study: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in study["formats"] if one["format"] == name)


def drop_in(study: dict[str, Any]) -> dict[str, Any]:
    found = paired(over_rates(study, FP8), over_rates(study, BF16))
    return {"shows": found["interval"][0] > 0, **found}


def exponents(study: dict[str, Any]) -> dict[str, Any]:
    names = ["E8M7", "E6M7", "E5M7", "E4M7"]
    largest = [row(study, name)["largest_rate"] or 0.0 for name in names]
    few, many = row(study, "E8M7"), row(study, "E4M7")
    apart = many["failed_interval"][0] > few["failed_interval"][1]
    best = study["reference_rate"]
    rise = float(np.mean(finals(study, "E4M7", best) / finals(study, "fp32", best)) - 1)
    return {"shows": never_falls(largest[::-1]) and (apart or rise > 0.10), "largest_rates": dict(zip(names, largest,
            strict=True)), "failures_apart": apart, "E4M7_over_fp32": rise,
            "scaling_gains": paired(over_rates(study, "E4M7"), over_rates(study, "E4M7:scaled"))}


def mantissas(study: dict[str, Any]) -> dict[str, Any]:
    names = ["E8M7", "E8M5", "E8M3", "E8M2"]
    medians = [float(np.median(finals(study, name, HIGH))) for name in names]
    found = paired(finals(study, "E8M2", HIGH), finals(study, "E8M7", HIGH))
    return {"shows": never_falls(medians) and found["interval"][0] > 0,
            "medians": dict(zip(names, medians, strict=True)), "E8M2_against_E8M7": found}


def sharpness(study: dict[str, Any]) -> dict[str, Any]:
    found = (study["warning"] or {}).get(str(WARNED_AT), {"later": 0})
    testable = found["later"] >= 5
    return {"shows": bool(found["sharpness_p"] < 0.05) if testable else None, **found}


def cost(folder: Path) -> dict[str, float]:
    """CPU-seconds of training in each format (the forward one) over those in fp32, means over all runs."""
    spent: dict[str, list[float]] = {}
    for path in sorted(folder.glob("runs/*/pretrain/manifest.json")):
        manifest = read_json(path)
        fields = manifest["fields"]["simulated"]
        if manifest["summary"] is not None:
            scaled = " scaled" if fields and fields["scaling"] == "tensor" else ""
            name = fields["forward"] + scaled if fields else "fp32"
            spent.setdefault(name, []).append(manifest["summary"]["cpu_seconds"])
    return {name: float(np.mean(values) / np.mean(spent["fp32"])) for name, values in spent.items()}


def speed() -> dict[str, float]:
    """CPU time of rounding 2^18 numbers over torch's cast to its own type and back, one thread, medians of 9 turns."""
    torch.set_num_threads(1)
    x, found = torch.randn(2**18), {}
    for name, dtype in (("E4M3fn", torch.float8_e4m3fn), ("E5M2", torch.float8_e5m2), ("E8M7", torch.bfloat16)):
        number, ratios = NumberFormat.parse(name), []
        for _ in range(9):
            start = time.process_time()
            for _ in range(10):
                quantize(x, number)
            middle = time.process_time()
            for _ in range(10):
                x.to(dtype).float()
            ratios.append((middle - start) / (time.process_time() - middle))
        found[name] = float(np.median(ratios))
    return found


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("stability/fp8-stability")
    study = run_study(str(HERE / "tiny.yaml"), [], FORMATS, RATES, SEEDS, folder, 0.01, Hardware(device="cpu"),
                      "python evidence/fp8-stability/run.py")
    comparisons = {"FP8 is no drop-in": drop_in(study), "exponents": exponents(study), "mantissas": mantissas(study),
                   "sharpness warns": sharpness(study)}
    told = [one["shows"] for one in comparisons.values() if one["shows"] is not None]
    main_one = comparisons["FP8 is no drop-in"]
    write_json(HERE / "result.json", {
        "method": "fp8-stability", "claim": "FP8 operands make training less robust than bf16 operands",
        "published": "available FP8 methods are not robust enough as drop-in replacements; cut exponents destabilise "
                     "most; cut mantissas narrow the usable rates (no figure that could be sourced)",
        "baseline": "bf16 operands (E8M7)", "metric": "final training loss, nats, mean over 3 rates, less is better",
        **{key: main_one[key] for key in ("value", "baseline_value", "difference", "interval")},
        "seeds": study["seeds"], "budget": "200 steps of 512 bytes a run, 150 runs",
        "verdict": "shows" if all(told) else "mixed" if any(told) else "does not show", "comparisons": comparisons,
        "answer": study["answer"], "cost_over_fp32": cost(folder), "rounding_over_torch_cast": speed()})
    write_json(HERE / "study.json", {**study, "cells": [{key: value for key, value in cell.items()
                                                         if key != "sharpness"} for cell in study["cells"]]})


if __name__ == "__main__":
    main()
