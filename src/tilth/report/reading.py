"""What the report knows about a run: its files, read with tolerance, because a run may be half done or half broken.

Nothing outside the run folder is read. A file that is missing leaves its part of the page out; a file that cannot be
read is named in `Run.problems`, which the page shows, instead of hiding the rest.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tilth.recipe import BadInput
from tilth.recipe.files import read_json, read_json_lines

# How a stage without a manifest (it still runs, or died) is recognised: by a file that only its kind writes.
_MARKS = {"pretrain": ("metrics.jsonl",), "evaluate": ("results.json",), "tokenize": ("units.parquet", "fields"),
          "curate": ("documents-00000.parquet", "quarantine.jsonl"), "export": ("config.json",)}


@dataclass
class Stage:
    """One stage folder: its manifest if it wrote one, and whether it is done."""

    name: str
    kind: str
    folder: Path
    status: str
    manifest: dict[str, Any] = field(default_factory=dict)

    @property
    def summary(self) -> dict[str, Any]:
        return mapping(self.manifest.get("summary"))


@dataclass
class Run:
    """A run folder as the report sees it; `stages` are in the order in which they ran."""

    folder: Path
    name: str
    manifest: dict[str, Any]
    recipe: dict[str, Any]
    recipe_text: str
    stages: list[Stage]
    problems: list[str]

    def stage(self, kind: str) -> Stage | None:
        """The last stage of a kind: the one whose result the run stands for."""
        return next((stage for stage in reversed(self.stages) if stage.kind == kind), None)

    def summary(self, kind: str) -> dict[str, Any]:
        stage = self.stage(kind)
        return stage.summary if stage else {}

    def json(self, kind: str, file: str) -> Any:
        """A JSON file of the last stage of a kind, or None."""
        stage = self.stage(kind)
        path = stage.folder / file if stage else None
        return self._try(path, read_json) if path and path.exists() else None

    def json_lines(self, kind: str, file: str) -> list[dict[str, Any]]:
        """The objects in a JSON-lines file of the last stage of a kind."""
        stage = self.stage(kind)
        path = stage.folder / file if stage else None
        lines = self._try(path, read_json_lines) if path and path.exists() else None
        return [line for line in lines or [] if isinstance(line, dict)]

    def own(self, file: str) -> Any:
        """A JSON file beside the stages, or None."""
        path = self.folder / file
        return self._try(path, read_json) if path.exists() else None

    def metrics(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Training lines and held-out lines of the last pretraining stage."""
        stage = self.stage("pretrain")
        lines = self._try(stage.folder / "metrics.jsonl", read_json_lines) if stage else None
        lines = [line for line in lines or [] if isinstance(line, dict)]
        held_out = [line for line in lines if isinstance(line.get("held_out"), dict)]
        return [line for line in lines if "loss" in line], held_out

    def evaluated(self) -> dict[str, Any]:
        """What scores inside the run have cost: the newest such line of the last pretraining stage."""
        stage = self.stage("pretrain")
        lines = self._try(stage.folder / "metrics.jsonl", read_json_lines) if stage else None
        found = [mapping(line.get("evaluation")) for line in lines or [] if isinstance(line, dict)]
        return next((one for one in reversed(found) if one), {})

    @property
    def status(self) -> str:
        """finished, failed, running, or unfinished (some stage is not there yet)."""
        found = [stage.status for stage in self.stages]
        if not found:
            return "unfinished"
        for state in ("failed", "running"):
            if state in found:
                return state
        return "finished" if all(state == "finished" for state in found) else "unfinished"

    def _try(self, path: Path, read: Any) -> Any:
        try:
            return read(path)
        except BadInput as error:
            message = str(error).replace(str(self.folder) + "/", "")
            if message not in self.problems:
                self.problems.append(message)
            return None


def read_run(folder: Path | str) -> Run:
    """Open a run folder; BadInput if it is not there or holds nothing of a run."""
    folder = Path(folder)
    if not folder.is_dir():
        raise BadInput(f"There is no run folder {folder}. Give the folder that `tilth run` wrote (runs/NAME).")
    run = Run(folder, folder.resolve().name, {}, {}, "", [], [])
    if (folder / "manifest.json").exists():
        run.manifest = mapping(run._try(folder / "manifest.json", read_json))
    _read_recipe(run)
    run.stages = _stages(run)
    if not (run.manifest or run.recipe_text or run.stages):
        raise BadInput(f"{folder} holds no run: neither recipe.yaml nor manifest.json nor a stage is in it. "
                       f"Give the folder that `tilth run` wrote (runs/NAME).")
    run.name = str(run.manifest.get("recipe") or run.recipe.get("name") or run.name)
    return run


def _read_recipe(run: Run) -> None:
    path = run.folder / "recipe.yaml"
    if not path.exists():
        return
    try:
        run.recipe_text = path.read_text(encoding="utf-8", errors="replace")
        run.recipe = mapping(yaml.safe_load(run.recipe_text))
    except (OSError, yaml.YAMLError) as error:
        run.problems.append(f"Could not read recipe.yaml: {' '.join(str(error).split())[:200]}.")


def _stages(run: Run) -> list[Stage]:
    listed = {str(name): str(state) for name, state in mapping(run.manifest.get("stages")).items()}
    found = []
    for folder in sorted(path for path in run.folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        path = folder / "manifest.json"
        manifest = mapping(run._try(path, read_json)) if path.exists() else {}
        kind = _kind(folder, manifest)
        if kind:
            status = listed.get(folder.name) or ("finished" if manifest else "unfinished")
            found.append(Stage(folder.name, kind, folder, status, manifest))
    there = {stage.name for stage in found}
    found += [Stage(name, name, run.folder / name, state) for name, state in listed.items() if name not in there]
    order = {name: index for index, name in enumerate(listed)}
    return sorted(found, key=lambda stage: (order.get(stage.name, len(order)), _road(stage.kind), stage.name))


def _road(kind: str) -> int:
    road = ["curate", "tokenize", "pretrain", "evaluate", "export"]
    return road.index(kind) if kind in road else len(road)


def _kind(folder: Path, manifest: dict[str, Any]) -> str | None:
    if isinstance(manifest.get("kind"), str):
        return str(manifest["kind"])
    for kind, files in _MARKS.items():
        if folder.name == kind or any((folder / file).exists() for file in files):
            return kind
    return None


def mapping(value: Any) -> dict[str, Any]:
    """The value if it is a mapping, else an empty one: files of older versions may differ."""
    return value if isinstance(value, dict) else {}


def listing(value: Any) -> list[dict[str, Any]]:
    """The mappings of a list; a mapping {name: {…}} becomes its values with `name` filled in."""
    if isinstance(value, dict):
        return [{"name": key, **(item if isinstance(item, dict) else {"value": item})} for key, item in value.items()]
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
