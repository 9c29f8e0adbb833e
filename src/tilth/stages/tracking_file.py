"""RUN/tracking.json: what checkpoints scored, and where the run is heading. Written by the training run itself (scores
inside the run) and by `tilth track`, which may go on at the same time in another process."""

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tilth.data.pool import Pool
from tilth.data.tokenize import DocumentTexts
from tilth.evaluate.tracking.runs import forecasts, run_curves, started
from tilth.recipe.errors import BadInput
from tilth.recipe.files import read_json, write_json

FILE = "tracking.json"


def read_tracking(run: Path, stage: str) -> dict[str, Any]:
    """What is known so far; BadInput where the stage has not begun."""
    path = run / FILE
    if path.exists():
        return read_json(path)
    budget = run / stage / "budget.json"
    if not budget.exists():
        raise BadInput(f"The stage '{stage}' of {run} has not begun: nothing to track yet.")
    return {"parameters": 0, "total_tokens": read_json(budget)["tokens"], "points": [], "forecasts": [], "started": []}


def add_point(run: Path, stage: str, point: dict[str, Any], parameters: int,
              history: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """The tracking with one more point (in place of an earlier one of the same step), forecasts anew, written."""
    with _alone(run):
        tracking = read_tracking(run, stage)
        others = [one for one in tracking["points"] if one["step"] != point["step"]]
        tracking["points"] = sorted([*others, point], key=lambda one: one["step"])
        tracking["parameters"] = parameters
        # Padding counts as positions of the budget, not as tokens: the end is where the pace so far leads.
        last, decided = tracking["points"][-1], read_json(run / stage / "budget.json")
        tracking["total_tokens"] = last["tokens"] * (decided.get("first_step", 0) + decided["steps"]) / last["step"]
        tracking["forecasts"] = forecasts(run.name, tracking, history)
        tracking["started"] = started(run_curves(run.name, tracking))
        write_json(run / FILE, tracking)
    return tracking


@contextmanager
def _alone(run: Path) -> Iterator[None]:
    """Wait until no other process changes the tracking of this run."""
    with open(run / ".tracking.lock", "a") as handle:
        fcntl.lockf(handle, fcntl.LOCK_EX)
        yield


def held_out_of(run: Path, pool_folder: Path) -> tuple[Pool | None, list[str] | None]:
    """The held-out text of a run as a pool and as documents, None where there is none."""
    pool = Pool.open(pool_folder / "held_out") if (pool_folder / "held_out").exists() else None
    curated = read_json(pool_folder / "manifest.json")["fields"].get("input")
    path = run / str(curated) / "held_out.parquet"
    return pool, list(DocumentTexts([path])) if path.exists() else None
