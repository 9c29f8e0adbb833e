"""What a chaos run found: whether a disturbed run came out as the undisturbed one, and each kind of fault summed up."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tilth.recipe.console import duration
from tilth.recipe.files import read_json, read_json_lines
from tilth.report import text_table

EXACT = ("step", "tokens", "flops", "loss", "lr", "gradient_norm", "padded", "held_out")
PARTS = ("detect", "restart", "load", "first_step")  # of the seconds from a failure to the first step after it


def differs(undisturbed: Path, disturbed: Path) -> str | None:
    """What is not bit for bit the same of two training stages: weights, moments, losses; None if all is."""
    curves = [[{key: line[key] for key in EXACT if key in line} for line in read_json_lines(one / "metrics.jsonl")]
              for one in (undisturbed, disturbed)]
    if curves[0] != curves[1]:
        step = next((a["step"] for a, b in zip(*curves, strict=False) if a != b), "the end")
        return f"metrics differ from step {step}"
    last = max(path.name for path in (undisturbed / "checkpoints").glob("step-*"))
    tensors = sorted(path.name for path in (undisturbed / "checkpoints" / last).glob("*.safetensors"))
    for name in ("model/model.safetensors", *(f"checkpoints/{last}/{one}" for one in tensors)):
        if not (disturbed / name).exists() or (undisturbed / name).read_bytes() != (disturbed / name).read_bytes():
            return f"{name} differs"
    return None


def remade(undisturbed: Path, disturbed: Path, stages: Iterable[str]) -> str | None:
    """The first stage that was not copied as it was but made anew, as it is where its input changed."""
    def started(folder: Path) -> Any:
        manifest = folder / "manifest.json"
        return read_json(manifest)["started"] if manifest.exists() else None

    return next((name for name in stages if started(undisturbed / name) != started(disturbed / name)), None)


def by_fault(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each fault: how often, how it was recovered from, medians of the seconds, the most steps trained again."""
    found: dict[str, Any] = {}
    for fault in sorted({line["fault"] for line in lines if "fault" in line}):
        those = [line for line in lines if line.get("fault") == fault]
        recovered = [line["recovered"] for line in those if line["recovered"]]
        paths = [one["path"] for one in recovered]
        found[fault] = {"times": len(those), "paths": {path: paths.count(path) for path in sorted(set(paths))},
                        "seconds": {part: median([one[part] for one in recovered]) for part in PARTS},
                        "most_steps_again": max((one["steps_again"] for one in recovered), default=0),
                        "median_seconds": median([line["seconds"] for line in those])}
    return found


def median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def table(result: dict[str, Any]) -> str:
    rows = []
    for fault, one in result["by_fault"].items():
        parts = [one["seconds"][part] for part in PARTS]
        rows.append([fault, str(one["times"]), ", ".join(f"{n} {path}" for path, n in one["paths"].items()),
                     *("" if part is None else duration(part) for part in parts), str(one["most_steps_again"])])
    head = (f"{result['faults']} faults in {result['rounds']} runs: {len(result['unequal'])} came out differently, "
            f"{result['hangs']} hung, {result['left_behind']} things left behind")
    return head + "\n" + text_table(rows, ["fault", "times", "went on from", "detect", "restart", "load", "first step",
                                           "steps again, at most"])
