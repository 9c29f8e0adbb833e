"""Single runs for tuning, on seeds and text that decide nothing else; finished ones stand in a file and are skipped."""

import shutil
from pathlib import Path
from typing import Any

from tilth.recipe.files import read_json, write_json
from tilth.stages import Recipe
from tilth.stages.runner import run_recipe
from tilth.trial.trial import prepared, share_stages


class Cells:
    """path: the file of finished runs, a list of rows; folder: where runs are made and removed."""

    def __init__(self, path: Path, folder: Path):
        self.path, self.folder = path, folder

    def run(self, recipe: Recipe, **known: Any) -> dict[str, Any]:
        """Bits per byte of every text measured, FLOPs, seconds, and the report of the policy."""
        rows = read_json(self.path) if self.path.exists() else []
        settings = {"name": recipe.name, "seed": recipe.seed, **known}
        found = next((row for row in rows if all(row.get(key) == value for key, value in settings.items())), None)
        if found is None:
            found = {**settings, **self._run(prepared(recipe))}
            rows = read_json(self.path) if self.path.exists() else []
            write_json(self.path, [*rows, found])
            print({key: value for key, value in found.items() if key != "policy"}, flush=True)
        return found

    def _run(self, recipe: Recipe) -> dict[str, Any]:
        place = self.folder / f"{recipe.name}-seed-{recipe.seed}"
        shutil.rmtree(place, ignore_errors=True)
        share_stages(recipe, place, self.folder)
        run_recipe(recipe, place)
        summary = read_json(place / "pretrain" / "manifest.json")["summary"]
        results = read_json(place / "evaluate" / "results.json")
        scores = {name: next(iter(one.values()))["value"] for name, one in results.items() if "/" not in name}
        shutil.rmtree(place / "pretrain")
        return {**scores, "flops": summary["flops"], "steps": summary["steps"], "seconds": summary["seconds"],
                "cpu_seconds": summary["cpu_seconds"], "policy": summary.get("policy")}
