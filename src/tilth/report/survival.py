"""Failures that a run survived: what each cost, part by part, and what the interval of snapshots was worth."""

from typing import Any

from tilth.report.formats import finite, percent, seconds, visible
from tilth.report.reading import Run, mapping

MOST_ROWS = 50
PATHS = {"memory": "memory", "parity": "memory, rebuilt from parity", "shards": "shards on disk",
         "checkpoint": "checkpoint on disk", "beginning": "the beginning"}


def survival(run: Run) -> dict[str, Any] | None:
    """{rows, more, account}: a row a restart; None where the run never had to restart."""
    lines = run.json_lines("pretrain", "recoveries.jsonl")
    if not lines:
        return None
    return {"rows": [_row(line) for line in lines[:MOST_ROWS]], "more": max(0, len(lines) - MOST_ROWS),
            "account": _account(mapping(run.json("pretrain", "survived.json")))}


def _row(line: dict[str, Any]) -> dict[str, str]:
    parts = {part: seconds(value) if (value := finite(line.get(part))) is not None else "" for part in
             ("detect", "restart", "load", "first_step")}
    lost = ", ".join(str(rank) for rank in line.get("lost") or [])
    return {"step": visible(str(line.get("step", ""))), "path": visible(PATHS.get(str(line.get("path")), "?")),
            "lost": visible(lost), "again": visible(str(line.get("steps_again", ""))), **parts}


def _account(found: dict[str, Any]) -> str:
    """One sentence on the interval; empty where the run is not over."""
    share, forecast, there = (finite(found.get(key)) for key in ("share", "forecast", "forecast_there"))
    if share is None or forecast is None or there is None:
        return ""
    return (f"Snapshots and failures took {percent(share)} of the time; for these failures the formula expects "
            f"{percent(forecast)} with a snapshot every {found.get('snapshot_steps')} steps, and advises one every "
            f"{found.get('advised_steps')} steps ({percent(there)}).")
