"""The trial of protocol.md and what it says: `python evidence/mixture-of-experts/run.py [FOLDER]`.

About five minutes on one core; interrupted, the same command goes on. Writes result.json beside it.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from tilth.recipe.files import read_json, read_json_lines, write_json
from tilth.stages import Hardware
from tilth.trial.trial import run_trial

HERE = Path(__file__).parent
SEEDS = 5


def facts(folder: Path, name: str) -> dict[str, Any]:
    """Parameters and cost of an arm, means over seeds, and how evenly its experts were asked at the end."""
    stages = [folder / "runs" / f"{name}-seed-{seed}" / "pretrain" for seed in range(SEEDS)]
    summaries = [read_json(stage / "manifest.json")["summary"] for stage in stages]
    kept = ("parameters", "parameters_active", "parameters_non_embedding")
    found = {key: summaries[0][key] for key in kept}
    found["cpu_seconds"] = float(np.mean([one["cpu_seconds"] for one in summaries]))
    lines = [[line for line in read_json_lines(stage / "metrics.jsonl") if "expert_load" in line] for stage in stages]
    ends = [np.max(line["expert_load"]) for run in lines for line in run[-max(len(run) // 10, 1):] if run]
    return {**found, "largest_load": float(np.mean(ends)) if ends else None}


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("trials/mixture-of-experts")
    trial = run_trial([str(HERE / "dense.yaml"), str(HERE / "mixture.yaml")], SEEDS, folder, Hardware(device="cpu"),
                      None, "python evidence/mixture-of-experts/run.py")
    kept = ("baseline", "metric", "value", "baseline_value", "difference", "interval", "interval_seeds", "by_seed",
            "seeds", "budget")
    write_json(HERE / "result.json", {
        "method": "mixture-of-experts",
        "claim": "at equal FLOPs a mixture of experts ends below a dense model of equal active parameters",
        "published": "Switch: the loss of a dense model in a seventh of the time at equal FLOPs a token",
        **{key: trial[key] for key in kept},
        "verdict": "shows" if trial["verdict"] == "shows" else "does not show",
        "arms": {name: facts(folder, name) for name in ("dense", "mixture")}})


if __name__ == "__main__":
    main()
