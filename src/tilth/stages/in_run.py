"""Scores inside the training run, within a budget: the points of RUN/tracking.json, without a second process.

The budget is a share of the run's training FLOPs and not of its time, so that the same run measures the same steps. The
first evaluation tells what one costs; the others are spread evenly so that all together stay within the budget.
"""

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field

from tilth.data.pool import Pool
from tilth.evaluate import EvaluateConfig
from tilth.evaluate.evaluate import measure
from tilth.recipe.errors import BadInput
from tilth.recipe.files import read_json
from tilth.stages.tracking_file import FILE, add_point, held_out_of
from tilth.train import Every

if TYPE_CHECKING:
    from tilth.train.loop import Loop


class InRunEvaluation(EvaluateConfig):
    """Tasks scored while training goes on. every: a share of the run (below 1) or steps between evaluations, more where
    the budget asks for it; budget: the share of the training FLOPs that all of them may take; limit: questions a task,
    at most. The last step is measured in any case."""

    every: float = Field(0.1, gt=0)
    budget: float = Field(0.05, gt=0, le=1)
    limit: int | None = Field(None, ge=1)
    rivals: bool = False

    def hook(self, run: Path, stage: Path, pool_folder: Path, length: int, decided: dict[str, Any],
             processes: int = 1) -> Every:
        """The loop hook of a run; `decided` is what budget.json holds. BadInput for a run of several processes."""
        if processes > 1:
            raise BadInput("Scores inside a run of several processes are not supported: leave `evaluation` out, and "
                           "run `tilth track RUN --watch` in a process of its own.")
        steps = max(1, round(self.every * decided["steps"]) if self.every < 1 else int(self.every))
        return Every(steps, InRunHook(self, run, stage, pool_folder, length, steps))


class InRunHook:
    """Measures the learner's model at a step, adds the point to tracking.json, and says what it cost."""

    def __init__(self, config: InRunEvaluation, run: Path, stage: Path, pool_folder: Path, length: int, every: int):
        self.run, self.stage, self.length, self.every, self.budget = run, stage, length, every, config.budget
        self.tokenizer = Pool.open(pool_folder).tokenizer()
        self.held_out, self.texts = held_out_of(run, pool_folder)
        tasks = [task.ready(self.texts) for task in config.tasks]  # a task that cannot run says so before training
        limited = [task.model_copy(update={"limit": config.limit}) if config.limit else task for task in tasks]
        self.config = config.model_copy(update={"tasks": limited, "rivals": config.rivals})

    def __call__(self, loop: "Loop") -> dict[str, Any] | None:
        before = self._points_before(loop.at.step)
        if not self._due(loop, before):
            return None
        start = time.monotonic()
        model: Any = loop.learner.modules["model"]
        length = max(model.config.context, self.length)
        with torch.random.fork_rng(devices=[loop.settings.device] if loop.settings.device.type == "cuda" else []):
            found = measure(model, self.tokenizer, length=length, config=self.config, held_out=self.held_out,
                            held_out_texts=self.texts, quiet=True)
        # A forward pass is a third of training; `flops_per_row` is of a row of `length` positions.
        flops = (loop.learner.flops_per_row or 0.0) / self.length / 3 * found.positions
        seconds = time.monotonic() - start
        point = {"step": loop.at.step, "tokens": loop.at.tokens, "flops": loop.at.flops, "seconds": found.seconds,
                 "results": found.results, "in_run": {"flops": flops, "seconds": seconds}}
        add_point(self.run, self.stage.name, point, model.config.parameters())
        costs = [one["in_run"] for one in before] + [point["in_run"]]
        spent = {key: sum(cost[key] for cost in costs) for key in ("flops", "seconds")}
        return {"evaluation": {"flops": spent["flops"], "seconds": spent["seconds"], "evaluations": len(costs),
                               "share_of_flops": spent["flops"] / max(loop.at.flops, 1.0),
                               "share_of_time": spent["seconds"] / (loop.at.seconds + spent["seconds"])}}

    def _points_before(self, step: int) -> list[dict[str, Any]]:
        """What this run measured before; points beyond are of a part that is trained again after an interruption."""
        if not (self.run / FILE).exists():
            return []
        return [point for point in read_json(self.run / FILE)["points"] if "in_run" in point and point["step"] < step]

    def _due(self, loop: "Loop", before: list[dict[str, Any]]) -> bool:
        """Always at first and at the end; between them at even distances that keep all within the budget."""
        step, first = loop.at.step - loop.settings.first_step, loop.settings.first_step
        steps = loop.settings.steps - first
        if not before or step == steps:
            return True
        training = loop.at.flops / loop.at.step * steps
        affordable = max(1.0, self.budget * training / max(before[0]["in_run"]["flops"], 1e-9))
        apart = max(self.every, math.ceil(steps / affordable / self.every) * self.every)
        return step % apart == 0
