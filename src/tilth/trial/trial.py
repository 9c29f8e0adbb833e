"""A trial: recipes compared at equal budget over seeds.

    TRIAL/trial.json               the recipes and the budget; a trial with others needs a folder of its own
    TRIAL/runs/NAME-seed-K/        one run, as `tilth run` writes it, up to its evaluation
    TRIAL/result.json, trial.html  written after every seed that all recipes have finished

The first recipe is the baseline. Its run of the first seed, under its own budget, sets the FLOPs of all others: what a
policy spends on choosing is part of them (and what was spent before the run, `budget.before`), so that a recipe that
chooses trains for fewer steps, and its schedule ends where they end. Seed k of every recipe is the same (initial
weights, order of data). Stages that do not depend on the seed (curate, tokenize) are made once and linked into every
run with an equal one. Killed, the same command goes on.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tilth.recipe.console import quantity, say
from tilth.recipe.errors import BadInput
from tilth.recipe.files import locked, read_json, write_json, writing_folder
from tilth.recipe.frame import nearest
from tilth.stages.building import Budget
from tilth.stages.commands import up_to
from tilth.stages.evaluate import EvaluateStage
from tilth.stages.load import load_recipe
from tilth.stages.pretrain import PretrainStage
from tilth.stages.runner import run_recipe
from tilth.stages.stage import Hardware, Recipe
from tilth.trial.result import CODE_LENGTHS, Finished, result_text, summarise, write_page

TOLERANCE = 0.02  # by how much the FLOPs of a run may miss the budget and still count as equal


class Trial:
    """recipes: the baseline first, names all different; seeds: how many, counted up from each recipe's own; measure:
    what is compared, the held-out text or a task that measures code lengths (such as `answer_bits`)."""

    def __init__(self, recipes: Sequence[Recipe], seeds: int, folder: Path, hardware: Hardware | None = None,
                 flops: float | None = None, command: str = "", measure: str = "held_out"):
        names = [recipe.name for recipe in recipes]
        if len(set(names)) < len(names) or len(names) < 2:
            raise BadInput(f"A trial compares two or more recipes with different names, not {', '.join(names)}. Give a "
                           f"variant a name of its own (a YAML file with `base:` and `name:`).")
        self.recipes = [prepared(recipe) for recipe in recipes]
        self.seeds, self.folder, self.hardware, self.command = seeds, folder, hardware or Hardware(), command
        self.flops, self.measure = flops, measure

    def run(self) -> dict[str, Any]:
        """Every run that is not finished yet, seed by seed; returns the result as result.json holds it."""
        busy = BadInput(f"Another tilth process is working in {self.folder}. Wait for it, or choose another --folder.")
        with locked(self.folder / ".lock", lambda: busy):
            self._check_same()
            result: dict[str, Any] = {}
            for seed in range(self.seeds):
                for recipe in self.recipes:
                    self._run(recipe, seed)
                result = self._write(seed + 1)
        return result

    def _check_same(self) -> None:
        """A folder belongs to one trial; more seeds and further recipes of it are welcome."""
        known = json.loads(json.dumps({"recipes": [recipe.model_dump(mode="json") for recipe in self.recipes],
                                       "flops": self.flops}))
        path = self.folder / "trial.json"
        before = read_json(path) if path.exists() else known
        same = all(recipe in known["recipes"] for recipe in before["recipes"]) and (
            before["recipes"][0] == known["recipes"][0] and before["flops"] == known["flops"])
        if not same:
            raise BadInput(f"{self.folder} holds a trial of other recipes or another budget. Put them back (more may "
                           f"follow them), or choose another --folder.")
        write_json(path, known)

    def _folder(self, recipe: Recipe, seed: int) -> Path:
        return self.folder / "runs" / f"{recipe.name}-seed-{seed}"

    def _run(self, recipe: Recipe, seed: int) -> None:
        folder, first = self._folder(recipe, seed), recipe is self.recipes[0] and seed == 0
        flops = self.flops
        if flops is None and not first:
            flops = self.summary(self.recipes[0], 0, "pretrain")["flops"]
        full = with_budget(recipe, recipe.seed + seed, flops)
        say(f"trial: {recipe.name}, seed {full.seed}" + (f", {quantity(flops, 'FLOP')}" if flops else ""))
        share_stages(full, folder, self.folder / "runs")
        run_recipe(full, folder, self.hardware, command=self.command)

    def summary(self, recipe: Recipe, seed: int, kind: str) -> dict[str, Any]:
        """The summary of the one stage of a kind in a finished run."""
        return self._manifest(recipe, seed, kind)["summary"]

    def _manifest(self, recipe: Recipe, seed: int, kind: str) -> dict[str, Any]:
        return read_json(self._folder(recipe, seed) / only(recipe, kind) / "manifest.json")

    def _write(self, seeds: int) -> dict[str, Any]:
        finished = {recipe.name: [self.finished(recipe, seed) for seed in range(seeds)] for recipe in self.recipes}
        budget = self.flops or finished[self.recipes[0].name][0].flops
        result = summarise(finished, budget, TOLERANCE, self.measure)
        write_json(self.folder / "result.json", result)
        write_page(self.folder / "trial.html", result, finished)
        return result

    def leading(self, recipe: Recipe) -> list[Finished]:
        """The finished runs of the first seeds, up to the first that is not finished yet."""
        found: list[Finished] = []
        for seed in range(self.seeds):
            try:
                found.append(self.finished(recipe, seed))
            except BadInput:  # its files are not there
                break
        return found

    def finished(self, recipe: Recipe, seed: int) -> Finished:
        """A finished run: its bits and bytes of what is compared, its cost."""
        folder, summary = self._folder(recipe, seed), self.summary(recipe, seed, "pretrain")
        items = read_json(folder / only(recipe, "evaluate") / "items.json")
        bits, size = code_lengths(items, self.measure, recipe.name)
        return Finished(recipe.seed + seed, bits, size,
                        summary["flops"], summary["seconds"], summary["cpu_seconds"], summary["tokens"],
                        summary["steps"], folder / only(recipe, "pretrain"),
                        {task: parts for task, parts in items.items() if task != self.measure})


def run_trial(arguments: Sequence[str], seeds: int, folder: Path | None, hardware: Hardware, flops: float | None,
              command: str, measure: str = "held_out") -> dict[str, Any]:
    """The command: recipes by name, baseline first, and key=value changes that apply to all of them."""
    changes = [one for one in arguments if "=" in one]
    recipes = [load_recipe(one, changes) for one in arguments if "=" not in one]
    folder = folder or Path("trials") / "-".join(recipe.name for recipe in recipes)
    result = Trial(recipes, seeds, folder, hardware, flops, command, measure).run()
    print(result_text(result))
    say(f"result: {folder / 'result.json'}\npage: {folder / 'trial.html'}")
    return result


def code_lengths(items: dict[str, Any], measure: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Bits and bytes of each document or answer of what is compared, both (D,)."""
    if measure not in items:
        raise BadInput(f"The recipe '{name}' has no held-out text to compare on; let its curate stage hold some out."
                       if measure == "held_out" else
                       f"The recipe '{name}' does not measure '{measure}'{nearest(measure, list(items))} It measures "
                       f"{', '.join(items)}.")
    found = next(((bits, size) for bits, size in CODE_LENGTHS if bits in items[measure]), None)
    if found is None:
        raise BadInput(f"The task '{measure}' does not measure code lengths, in which recipes are compared; choose one "
                       f"of kind answer_bits, or the held-out text.")
    return np.array(items[measure][found[0]], np.float64), np.array(items[measure][found[1]], np.float64)


def prepared(recipe: Recipe) -> Recipe:
    """The recipe cut to what a comparison needs: up to its evaluation, without rivals and samples."""
    recipe = up_to(recipe, "evaluate")
    only(recipe, "pretrain")
    name = only(recipe, "evaluate")
    stage = recipe.stages[name]
    assert isinstance(stage, EvaluateStage)
    return with_stage(recipe, name, stage.model_copy(update={"rivals": False, "sample_tokens": 0}))


def only(recipe: Recipe, kind: str) -> str:
    """The name of the one stage of a kind."""
    names = [name for name, stage in recipe.stages.items() if stage.kind == kind]
    if len(names) != 1:
        raise BadInput(f"A trial compares recipes with one {kind} stage; '{recipe.name}' has {len(names)}.")
    return names[0]


def with_stage(recipe: Recipe, name: str, stage: Any) -> Recipe:
    return recipe.model_copy(update={"stages": {**recipe.stages, name: stage}})


def with_budget(recipe: Recipe, seed: int, flops: float | None) -> Recipe:
    """The recipe under another seed and, if given, a budget of FLOPs instead of its own."""
    recipe = recipe.model_copy(update={"seed": seed})
    name = only(recipe, "pretrain")
    stage = recipe.stages[name]
    assert isinstance(stage, PretrainStage)
    if flops is None:
        return recipe
    budget = Budget(flops=flops, before=stage.budget.before)
    return with_stage(recipe, name, stage.model_copy(update={"budget": budget}))


def shared_keys(recipe: Recipe) -> dict[str, str]:
    """For each stage that does not depend on the seed, nor reads one that does, a digest of all that its result
    depends on."""
    keys: dict[str, str] = {}
    for name in recipe.order():
        stage = recipe.stages[name]
        if stage.uses_seed or any(one not in keys for one in stage.reads()):
            continue
        known = [name, stage.version, stage.model_dump(mode="json"), [keys[one] for one in stage.reads()]]
        keys[name] = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]
    return keys


def share_stages(recipe: Recipe, folder: Path, runs: Path) -> None:
    """Link the finished stages of earlier runs that are equal to this run's. What links to the same files is never
    written again in place: every file of a stage appears by renaming."""
    keys = shared_keys(recipe)
    for name in keys:
        if (folder / name / "manifest.json").exists():
            continue
        found = next((run for run in sorted(runs.glob("*-seed-*")) if run != folder and _same(run, name, keys)), None)
        if found is not None:
            with writing_folder(folder / name) as beside:
                shutil.copytree(found / name, beside, copy_function=_link, dirs_exist_ok=True)
    write_json(folder / "shared.json", keys)


def _same(run: Path, name: str, keys: dict[str, str]) -> bool:
    """Whether a run has finished a stage with the same key."""
    if not (run / "shared.json").exists() or read_json(run / "shared.json").get(name) != keys[name]:
        return False
    manifest = run / name / "manifest.json"
    return manifest.exists() and read_json(manifest)["summary"] is not None


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
