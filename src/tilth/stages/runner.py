"""Runs the stages of a recipe in order; skips what is finished, goes on with what was cut off, says why it repeats."""

import hashlib
import json
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml

import tilth
from tilth.data.locations import remembering
from tilth.recipe.console import duration, hush, say
from tilth.recipe.errors import BadInput
from tilth.recipe.files import locked, read_json, write_bytes, write_json
from tilth.report import write_report
from tilth.stages.stage import Context, Hardware, Recipe, Stage
from tilth.train.processes import Processes, start_processes


def run_recipe(recipe: Recipe, folder: Path, hardware: Hardware | None = None, new: bool = False,
               command: str = "") -> dict[str, Any]:
    """Run `recipe` in `folder`; returns the summaries of its stages by name.

    Raises BadInput where the folder holds a run of another recipe (unless `new`, which removes that run), Interrupted
    on a stop request, RunFailed where the work went wrong. The report page is written in every case.

    Started by torchrun or srun, the first process runs every stage and the others join those that are for all.
    """
    hardware = hardware or Hardware()
    processes = start_processes(hardware.device, hardware.parallel.tensor, hardware.parallel.context)
    if not processes.main:
        return _follow(recipe, folder, hardware, command, processes)
    together = Together(processes)
    try:
        return _lead(recipe, folder, hardware, new, command, together)
    finally:
        together.end()


class Together:
    """What the first process has the others do: run a stage, or end. After a failure within a stage of all there is
    nobody left to be told."""

    def __init__(self, processes: Processes):
        self.processes, self.inside = processes, False

    def run(self, stage: Stage, name: str, context: Context) -> dict[str, Any]:
        if stage.every_process:
            self.processes.tell(name)
            self.inside = True
        summary = stage.run(context)
        self.inside = False
        return summary

    def end(self) -> None:
        if not self.inside:
            self.processes.tell(None)


def _follow(recipe: Recipe, folder: Path, hardware: Hardware, command: str, processes: Processes) -> dict[str, Any]:
    """A process that is not the first: join the stages it is told of, and write nothing of its own."""
    hush()
    while (name := processes.tell()) is not None:
        recipe.stages[name].run(Context(folder, folder / name, recipe.seed, hardware, command, processes))
    return {}


def _lead(recipe: Recipe, folder: Path, hardware: Hardware, new: bool, command: str,
          together: Together) -> dict[str, Any]:
    order = recipe.order()
    busy = BadInput(f"Another tilth process is working in {folder}. Wait for it, stop it, or choose another folder "
                    f"with --folder.")
    with locked(folder / ".lock", lambda: busy), remembering(folder / ".digests.json"):
        for name in order:  # a file that is missing at the end of the road is told now, not after hours
            list(recipe.stages[name].files())
        if new:
            _clear(folder)
        _check_same_recipe(recipe, folder)
        dumped = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        write_bytes(folder / "recipe.yaml", dumped.encode())
        try:
            return {name: _run_stage(recipe, name, folder, hardware, command, together) for name in order}
        finally:
            _write_run_manifest(recipe, folder)
            write_report(folder)


def _clear(folder: Path) -> None:
    """Remove an earlier run; refuse a folder that does not look like one."""
    others = [path for path in folder.iterdir() if path.name not in (".lock", ".digests.json")]
    if others and not (folder / "recipe.yaml").exists():
        raise BadInput(f"{folder} is not empty and holds no run (no recipe.yaml); --new will not remove it.")
    for path in others:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _check_same_recipe(recipe: Recipe, folder: Path) -> None:
    """A changed recipe on an existing run is an error that names the fields."""
    changed = []
    for name, stage in recipe.stages.items():
        path = folder / name / "manifest.json"
        if path.exists():
            changed += [f"{name}.{key}" for key in _differences(read_json(path)["identity"], _identity(recipe, stage))]
    if changed:
        raise BadInput(f"The run in {folder} was made with another recipe: {', '.join(changed)} differ. Put them back, "
                       f"give the changed recipe a folder of its own (--folder), or start over with --new.")


def _identity(recipe: Recipe, stage: Stage) -> dict[str, Any]:
    fields = {**stage.model_dump(mode="json"), "version": stage.version}
    return {**fields, "seed": recipe.seed} if stage.uses_seed else fields


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Dotted keys whose values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        return [key for one in keys
                for key in _differences(old.get(one), new.get(one), f"{path}.{one}" if path else one)]
    return [] if old == new else [path]


def _run_stage(recipe: Recipe, name: str, run: Path, hardware: Hardware, command: str,
               together: Together) -> dict[str, Any]:
    stage, folder = recipe.stages[name], run / name
    inputs = [*stage.files(), *[{"stage": one, "result": _result_of(run / one)} for one in stage.reads()]]
    manifest = read_json(folder / "manifest.json") if (folder / "manifest.json").exists() else None
    if manifest and manifest["inputs"] != inputs:
        say(f"{name}: run again, because {_changed_inputs(manifest['inputs'], inputs)} changed")
        shutil.rmtree(folder)
        manifest = None
    if manifest and manifest["summary"] is not None:
        say(f"{name}: finished before ({duration(manifest['seconds'])})")
        return manifest["summary"]
    say(f"{name}: {'going on' if manifest else 'starting'}")
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {"kind": stage.kind, "version": stage.version, "identity": _identity(recipe, stage),
                "fields": stage.model_dump(mode="json"), "inputs": inputs, "tilth": tilth.__version__,
                "started": (manifest or {}).get("started", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())),
                "seconds": (manifest or {}).get("seconds", 0.0), "summary": None}
    write_json(folder / "manifest.json", manifest)
    start = time.monotonic()
    try:
        context = Context(run, folder, recipe.seed, hardware, command, together.processes)
        manifest["summary"] = together.run(stage, name, context)
    finally:
        manifest["seconds"] += time.monotonic() - start
        write_json(folder / "manifest.json", manifest)
    say(f"{name}: done in {duration(time.monotonic() - start)}")
    return manifest["summary"]


def _changed_inputs(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> str:
    before = {item.get("path") or item.get("stage"): item for item in old}
    after = {item.get("path") or item.get("stage"): item for item in new}
    changed = [str(key) for key in {**before, **after} if before.get(key) != after.get(key)]
    return ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")


def _result_of(folder: Path) -> str:
    """What a finished stage is known by to those that read it: a digest of its identity and its own inputs."""
    manifest = read_json(folder / "manifest.json")
    known = json.dumps([manifest["identity"], manifest["inputs"]], sort_keys=True)
    return hashlib.sha256(known.encode()).hexdigest()[:16]


def _write_run_manifest(recipe: Recipe, folder: Path) -> None:
    stages = {}
    for name in recipe.stages:
        path = folder / name / "manifest.json"
        summary = read_json(path)["summary"] if path.exists() else None
        stages[name] = "finished" if summary is not None else "unfinished" if path.exists() else "not started"
    write_json(folder / "manifest.json", {
        "recipe": recipe.name, "tilth": tilth.__version__, "python": sys.version.split()[0],
        "platform": platform.platform(), "torch": torch.__version__, "threads": torch.get_num_threads(),
        "stages": stages})
