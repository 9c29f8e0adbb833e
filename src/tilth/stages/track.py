"""Evaluate the checkpoints of a run as they come, and say where the run is heading.

The points are kept in RUN/tracking.json, beside the stages: a checkpoint that training has removed since cannot be
measured again, so no stage that runs anew may take them along.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tilth.data.pool import Pool
from tilth.evaluate import EvaluateConfig, measure
from tilth.evaluate.tracking.study import lines, study
from tilth.recipe.console import quantity, say
from tilth.recipe.errors import BadInput
from tilth.recipe.files import read_json
from tilth.report import write_report
from tilth.stages.evaluate import EvaluateStage
from tilth.stages.load import load_recipe
from tilth.stages.pretrain import PretrainStage
from tilth.stages.stage import Recipe
from tilth.stages.tracking_file import FILE, add_point, held_out_of, read_tracking
from tilth.train.checkpoint import Checkpoints, load_state
from tilth.train.device import pick_device


class Tracker:
    """The tracking of the run in `folder`; `limit` rows a task, `tasks` (files or kinds) in place of the recipe's."""

    def __init__(self, folder: Path, tasks: Sequence[str] = (), history: Sequence[Path] = (), limit: int | None = None,
                 device: str = "auto", workers: int = 1):
        if not (folder / "recipe.yaml").exists():
            raise BadInput(f"{folder} holds no run (no recipe.yaml). Give the folder that `tilth run` wrote.")
        recipe = load_recipe(str(folder / "recipe.yaml"))
        self.folder, self.device, self.workers = folder, pick_device(device), workers
        self.pretrain_name, self.pretrain = _only(recipe, PretrainStage)
        self.stage = folder / self.pretrain_name
        self.config = _config(recipe, tasks, limit)
        self.history = [_read(path) for path in history]
        self.checkpoints = Checkpoints(self.stage / "checkpoints", {}, keep=10**9)
        self.pool_folder = folder / self.pretrain.input
        self._model: Any = None

    def pass_over(self) -> int:
        """Measure every checkpoint that has not been; returns how many were. What was measured is written at once."""
        done = {point["step"] for point in self.read()["points"]}
        new = 0
        for step in self.checkpoints.steps():
            point = None if step in done else self._point(step)
            if point is not None:
                add_point(self.folder, self.pretrain_name, point, self._model[0].config.parameters(), self.history)
                new += 1
        return new

    def watch(self, seconds: float) -> None:
        """Pass over and over until the pretrain stage has finished and all its checkpoints are measured; a stage that
        has not begun yet is waited for."""
        while not (self.stage / "budget.json").exists():
            time.sleep(seconds)
        while True:
            finished = self.finished()
            if not self.pass_over() and finished:
                return
            if not finished:
                time.sleep(seconds)

    def finished(self) -> bool:
        path = self.stage / "manifest.json"
        return path.exists() and read_json(path).get("summary") is not None

    def read(self) -> dict[str, Any]:
        return read_tracking(self.folder, self.pretrain_name)

    def _point(self, step: int) -> dict[str, Any] | None:
        """What the checkpoint of `step` scores; None where training removed it meanwhile."""
        try:
            state = load_state(self.checkpoints.path(step))
        except BadInput:
            if self.checkpoints.path(step).exists():
                raise
            return None
        model, held_out, texts = self._loaded()
        modules = state["learner"]["modules"]
        model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in modules.items()
                               if name.startswith("model.")})
        length = max(model.config.context, self.pretrain.length)
        found = measure(model, self.pool.tokenizer(), length=length, config=self.config, held_out=held_out,
                        held_out_texts=texts, quiet=True, workers=self.workers)
        at = state["at"]
        say(f"step {step} ({quantity(at['tokens'])} tokens): {_line(found.results)}  "
            f"[{sum(found.seconds.values()):.1f} s]")
        return {"step": step, "tokens": at["tokens"], "flops": at["flops"], "seconds": found.seconds,
                "results": found.results}

    def _loaded(self) -> tuple[Any, Any, list[str] | None]:
        if self._model is None:
            self.pool = Pool.open(self.pool_folder)
            # What is measured is the trained model, as it is saved: not as training rounded it.
            plain = self.pretrain.model_copy(update={"simulated": None})
            model = plain.learner(self.pool.vocab_size, 0).modules["model"].to(self.device).eval()
            self._model = model, *held_out_of(self.folder, self.pool_folder)
        return self._model


def track_run(folder: Path, tasks: Sequence[str], history: Sequence[Path], watch: bool, every: float,
              limit: int | None, device: str, workers: int = 1) -> dict[str, Any]:
    """Measure the checkpoints of a run (once, or until it is finished), write tracking.json and the report."""
    tracker = Tracker(folder, tasks, history, limit, device, workers)
    if watch:
        tracker.watch(every)
    else:
        tracker.pass_over()
    tracking = tracker.read()
    if not tracking["points"]:
        raise BadInput(f"{folder} keeps no checkpoints to measure yet; raise `{tracker.pretrain_name}.checkpoint.keep`"
                       f" and set `checkpoint.steps` so that there are several.")
    write_report(folder)
    for line in forecast_lines(tracking):
        say(line)
    say(f"{len(tracking['points'])} checkpoints: {folder / FILE}; page: {folder / 'report.html'}")
    return tracking


def study_runs(runs: Sequence[Path], domains: Sequence[str], early: float) -> dict[str, Any]:
    """Several tracked runs side by side (tilth.evaluate.tracking.study); domains: `NAME=TASK,TASK`."""
    known: dict[str, str] = {}
    for text in domains:
        name, equals, tasks = text.partition("=")
        if not (name and equals and tasks):
            raise BadInput(f"--domain is '{text}'; give NAME=TASK,TASK, such as science=arc_easy,sciq.")
        known |= dict.fromkeys(tasks.split(","), name)
    found = study({str(run): _read(run) for run in runs}, known, early)
    for line in lines(found):
        say(line)
    return found


def forecast_lines(tracking: dict[str, Any]) -> list[str]:
    """The newest forecast, a line a task."""
    if not tracking["forecasts"]:
        return ["no forecast yet: it takes four checkpoints, and two tasks or finished runs of two sizes"]
    newest = tracking["forecasts"][-1]
    lines = [f"forecast at {quantity(newest['target'])} tokens, made at {quantity(newest['made_at'])} from "
             f"{newest['from']} ({newest['level']:.0%} interval):"]
    for task, one in newest["tasks"].items():
        then = "" if one["happened"] is None else f"; then happened {one['happened']:.4f}"
        lines.append(f"  {task}: {one['value']:.4f} ({one['low']:.4f} to {one['high']:.4f}){then}")
    if newest.get("beyond"):
        lines.append(f"  this size is {newest['beyond']:.1f} times beyond those that the forecast learnt from: such "
                     f"intervals have been too narrow (39 % held of 80 %)")
    return lines


def _only(recipe: Recipe, kind: type[PretrainStage]) -> tuple[str, PretrainStage]:
    found = [(name, stage) for name, stage in recipe.stages.items() if isinstance(stage, kind)]
    if not found:
        raise BadInput(f"The recipe '{recipe.name}' has no pretrain stage, so there are no checkpoints to track.")
    return found[-1]


def _config(recipe: Recipe, tasks: Sequence[str], limit: int | None) -> EvaluateConfig:
    """The recipe's own evaluation, without rivals (they do not change while training)."""
    from tilth.stages.commands import named_tasks
    stages = [stage for stage in recipe.stages.values() if isinstance(stage, EvaluateStage)]
    fields = {key: getattr(stages[-1], key) for key in EvaluateConfig.model_fields} if stages else {}
    config = EvaluateConfig(**fields).model_copy(update={"rivals": False})
    if tasks:
        config = config.model_copy(update={"tasks": named_tasks(tasks)})
    if limit:
        limited = [task.model_copy(update={"limit": limit}) for task in config.tasks]
        config = config.model_copy(update={"tasks": limited})
    return config


def _read(path: Path) -> dict[str, Any]:
    file = path / FILE if path.is_dir() else path
    if not file.exists():
        raise BadInput(f"{path} has no {FILE}: run `tilth track {path}` on it first.")
    return read_json(file)


def _line(results: dict[str, Any]) -> str:
    parts = []
    for task, metrics in results.items():
        name = "bits_per_byte" if task == "held_out" else "accuracy"
        if name in metrics and not task.startswith("held_out/"):
            parts.append(f"{task} {metrics[name]['value']:.4f}")
    return ", ".join(parts)
