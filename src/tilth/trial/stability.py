"""A stability study: one recipe in several number formats, at several learning rates, over seeds.

    DIR/sweep.json, runs/   the runs, cell by cell, as `tilth sweep` keeps them
    DIR/result.json         every cell, every format beside the reference, and the answer
    DIR/stability.html      the same on one page

Seed k of every cell has the same initial weights and order of data. Killed, the same command goes on; more formats,
rates or seeds run only what is new.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tilth
from tilth.analyze.stability import Thresholds, judge
from tilth.analyze.stability_grid import FULL, Spec, Trained, study
from tilth.recipe.console import say
from tilth.recipe.errors import BadInput
from tilth.recipe.files import read_json_lines
from tilth.report import text_table
from tilth.stages.load import load_recipe
from tilth.stages.pretrain import PretrainStage
from tilth.stages.stage import Hardware, Recipe
from tilth.trial.stability_page import HEADER, answer, reasons, rows, write_page
from tilth.trial.sweep import Sweep
from tilth.trial.trial import only


class StabilityStudy(Sweep):
    """specs: the reference first; rates: ascending."""

    def __init__(self, name: str, changes: Sequence[str], specs: Sequence[Spec], rates: Sequence[float], seeds: int,
                 folder: Path, tolerance: float = 0.01, hardware: Hardware | None = None, command: str = ""):
        self.stage, fixed = _settle(name, changes)
        self.specs, self.rates, self.tolerance = list(specs), sorted(set(rates)), tolerance
        axes = {f"{self.stage}.simulated": [json.dumps(spec.fields()) for spec in self.specs],
                f"{self.stage}.optimizer.lr": [repr(rate) for rate in self.rates]}
        super().__init__(name, fixed, axes, seeds, folder, hardware, command)

    def _result(self, recipes: list[Recipe]) -> dict[str, Any]:
        points = iter(self.points)
        cells = {(spec.name, rate): self._cell(next(points)) for spec in self.specs for rate in self.rates}
        limits = Thresholds()
        result = {"recipe": recipes[0].name, "fixed": list(self.fixed), "rates": self.rates,
                  "seeds": [recipes[0].seed + seed for seed in range(self.seeds)], "tilth": tilth.__version__,
                  "thresholds": vars(limits), "measure": "training loss, nats a token, mean of the last "
                  f"{100 * limits.smooth:g} % of steps", **study(self.specs, self.rates, cells, self.tolerance)}
        write_page(self.folder / "stability.html", result)
        return result

    def _cell(self, point: dict[str, str]) -> list[Trained]:
        return [read_run(self._folder(point, seed), self.stage) for seed in range(self.seeds)]


def read_run(folder: Path, stage: str) -> Trained:
    """What a finished or diverged run of a study left in its metrics."""
    path = folder / stage / "metrics.jsonl"
    lines = read_json_lines(path) if path.exists() else []
    measured = [(line["step"], line["sharpness"]["phi"], line["sharpness"]["loss"]) for line in lines
                if "sharpness" in line]
    return Trained(judge([line["loss"] for line in lines if "loss" in line], (folder / "failed.json").exists()),
                   measured)


def _settle(name: str, changes: Sequence[str]) -> tuple[str, list[str]]:
    """The pretrain stage's name, and the changes to all cells; sharpness is measured unless the recipe cannot."""
    recipe = load_recipe(name, changes)
    stage = only(recipe, "pretrain")
    settings = recipe.stages[stage]
    assert isinstance(settings, PretrainStage)
    if settings.simulated is not None and (settings.simulated.forward, settings.simulated.backward) != ("E8M7", "E8M7"):
        raise BadInput(f"`{stage}.simulated` names formats, but the study chooses them: leave out forward and "
                       f"backward, and give --formats.")
    held_out = any(getattr(one, "held_out", None) is not None for one in recipe.stages.values())
    more = [f"{stage}.sharpness={{}}"] if settings.sharpness is None and held_out else []
    return stage, [*changes, *more]


def run_study(name: str, changes: Sequence[str], formats: str, rates: str, seeds: int, folder: Path, tolerance: float,
              hardware: Hardware, command: str) -> dict[str, Any]:
    """The command."""
    specs = [Spec.parse(text.strip()) for text in formats.split(",")]
    if len({spec.name for spec in specs}) < len(specs):
        raise BadInput(f"--formats names a format twice: {formats}.")
    if specs[0].name != FULL:
        say(f"stability: the reference is {specs[0].name}, the first of --formats")
    try:
        numbers = [float(text) for text in rates.split(",")]
    except ValueError as error:
        raise BadInput(f"--rates must be learning rates separated by commas, not '{rates}'.") from error
    if not all(0 < number < math.inf for number in numbers):
        raise BadInput(f"--rates must be positive numbers, not '{rates}'.")
    result = StabilityStudy(name, changes, specs, numbers, seeds, folder, tolerance, hardware, command).run()
    print(text_table(rows(result), HEADER))
    print("\n".join([*reasons(result), answer(result)]))
    say(f"result: {folder / 'result.json'}\npage: {folder / 'stability.html'}")
    return result
