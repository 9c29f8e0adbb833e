"""What surviving cost a run and what it was worth, beside what the formula expects; the interval that it advises."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tilth.recipe.files import read_json_lines
from tilth.train.survive.interval import Lost, advise

LOG = "recoveries.jsonl"


def account(folder: Path, snapshot_steps: int) -> dict[str, Any]:
    """From a training stage's metrics and log of recoveries: `lost` (see `interval.Lost`), the share of time lost, the
    share that the formula forecasts, and the interval it advises for what was measured.

    Without a failure so far, the run's whole length stands for the time between failures, which advises too short an
    interval rather than too long a one.
    """
    lines = [line for line in read_json_lines(folder / "metrics.jsonl") if "loss" in line]
    recoveries = read_json_lines(folder / LOG)
    costs = np.diff([0.0, *[line["snapshot_seconds"] for line in lines if "snapshot_step" in line]])
    each = float(np.median(costs[costs >= 0])) if len(costs) else 0.0  # a restart begins to count again
    step = float(np.median(np.diff([0.0, *[line["seconds"] for line in lines]]))) if lines else 0.0
    again = sum(one["steps_again"] for one in recoveries)
    restarts = sum(sum(one[part] or 0.0 for part in ("detect", "restart", "load")) for one in recoveries)
    taken = len(costs) + again // snapshot_steps
    trained = lines[-1]["seconds"] + again * step if lines else 0.0
    lost = Lost(len(recoveries), taken, taken * each, again, restarts, step, trained + taken * each + restarts)
    if not lines:
        return {"lost": asdict(lost), "share": 0.0, "forecast": None, "snapshot_steps": snapshot_steps,
                "advised_steps": None, "forecast_there": None}
    advice = advise(max(step, 1e-9), each, max(lost.between_failures, 1e-9), snapshot_steps,
                    restarts / max(len(recoveries), 1))
    return {"lost": asdict(lost), "share": lost.share, "forecast": lost.forecast(snapshot_steps),
            "snapshot_steps": snapshot_steps, "advised_steps": advice.steps, "forecast_there": advice.lost_share}
