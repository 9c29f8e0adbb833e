"""The stage that trains any model by any objective on any stream whose units are rows: functions, image-text pairs.

Packed text has a stage of its own, `pretrain`; both run the one loop.
"""

from typing import Any, ClassVar

import torch
from pydantic import Field

from tilth.data.streams import UnitStream
from tilth.evaluate.measures import Measure
from tilth.models import MODELS, ModelConfig
from tilth.objectives import OBJECTIVES, Objective
from tilth.optim import AdamW, Cosine, OptimizerChoice, ScheduleChoice
from tilth.recipe.console import quantity, say
from tilth.recipe.errors import BadInput
from tilth.recipe.files import read_json, read_json_lines, write_json
from tilth.recipe.frame import one_of
from tilth.stages.model_folder import save_model
from tilth.stages.pretrain import CheckpointConfig
from tilth.stages.stage import Context, Stage
from tilth.stages.unit_parts import MEASURES, StreamChoice
from tilth.train import Checkpoints, FirstPass, Learner, Loop, LoopSettings, MetricsLog
from tilth.train.device import Precision, peak_memory, pick_device, resolve_precision
from tilth.train.micro import largest_micro_batch


class TrainStage(Stage):
    """Train a model on a stream of units, each a row: `steps` steps of `rows` units, in one process.

    model: its fields that are left out are those of the stream (sizes of images, vocabulary, points of a sequence);
    measures: what is asked of the model at the end, by a name of your own, written to results.json.
    """

    uses_seed: ClassVar[bool] = True
    kind: str = "train"
    stream: StreamChoice  # type: ignore[valid-type]
    model: one_of(ModelConfig, MODELS)  # type: ignore[valid-type]
    objective: one_of(Objective, OBJECTIVES)  # type: ignore[valid-type]
    optimizer: OptimizerChoice = AdamW()  # type: ignore[valid-type]
    schedule: ScheduleChoice = Cosine()  # type: ignore[valid-type]
    rows: int = Field(64, ge=1)
    steps: int = Field(ge=1)
    clip: float | None = Field(1.0, gt=0)
    precision: Precision = "auto"
    checkpoint: CheckpointConfig = CheckpointConfig()
    measures: dict[str, one_of(Measure, MEASURES)] = Field(default_factory=dict)  # type: ignore[valid-type]

    def reads(self) -> list[str]:
        return self.stream.reads()

    def files(self) -> list[dict[str, Any]]:
        from tilth.data import locations
        return [locations.fingerprint(str(path)) for path in self.stream.files()]

    def run(self, context: Context) -> dict[str, Any]:
        device = pick_device(context.hardware.device)
        precision = resolve_precision(self.precision, device)
        stream = self.stream.build(context.input, context.seed)
        for measure in self.measures.values():
            measure.check(stream)
        learner = self.learner(stream, context.seed)
        learner.to(device)
        micro = self._micro_rows(context, learner, stream, precision, device)
        model: Any = learner.modules["model"]
        say(f"  {quantity(model.config.parameters())} parameters, {self.steps} steps of {self.rows} units ({micro} at "
            f"a time), {precision} on {device}")
        loop = self._loop(context, learner, stream, precision, device, micro)
        try:
            at = loop.run()
        finally:
            loop.metrics.close()
        save_model(context.folder / "model", model, None)
        model.eval()
        results = {name: measure.of(model, stream, device) for name, measure in self.measures.items()}
        write_json(context.folder / "results.json", results)
        lines = read_json_lines(context.folder / "metrics.jsonl")
        return {"parameters": model.config.parameters(), "steps": at.step, "units": at.step * self.rows,
                "flops": at.flops, "seconds": at.seconds, "cpu_seconds": at.cpu_seconds, "micro_rows": micro,
                "precision": precision, "device": str(device), "threads": torch.get_num_threads(),
                "peak_memory_bytes": peak_memory(device), "final_loss": lines[-1]["loss"], "served": stream.report(),
                "results": results}

    def learner(self, stream: UnitStream, seed: int) -> Learner:
        """A fresh learner whose model fits the stream, initialised from `seed`."""
        facts = {name: value for name, value in stream.facts.items() if getattr(self.model, name, 0) is None}
        config = self.model.model_copy(update=facts)
        flops_per_row = getattr(config, "flops_per_row", None)
        if flops_per_row is None:
            raise BadInput(f"A model of kind {config.kind} reads packed text; train it with a stage of kind pretrain.")
        return Learner(config.build().initialize(seed), self.objective, flops_per_row=flops_per_row())

    def _micro_rows(self, context: Context, learner: Learner, stream: UnitStream, precision: Any,
                    device: torch.device) -> int:
        """Units of one forward pass: chosen once, written down, and kept by every resumption. An objective that
        couples the units of a batch, and looks at no other first, needs all of them at once."""
        path = context.folder / "budget.json"
        if path.exists():
            return int(read_json(path)["micro_rows"])
        micro = self.rows if self.objective.couples == "batch" else context.hardware.micro_rows or largest_micro_batch(
            learner, stream, self.rows, precision, device, self.optimizer.state_bytes)
        write_json(path, {"steps": self.steps, "rows": self.rows, "micro_rows": micro})
        return micro

    def _loop(self, context: Context, learner: Learner, stream: UnitStream, precision: Any, device: torch.device,
              micro: int) -> Loop:
        keep, folder = self.checkpoint, context.folder
        settings = LoopSettings(self.steps, self.rows, micro, seed=context.seed, clip=self.clip, precision=precision,
                                device=device, checkpoint_seconds=keep.seconds, checkpoint_steps=keep.steps)
        identity = {**self.model_dump(mode="json"), "seed": context.seed, "version": self.version}
        optimizers = {name: self.optimizer.build(learner.parameter_groups(name)) for name in learner.updates}
        first: list[FirstPass] = []
        if stream.needs_losses:
            from tilth.stages.pretraining import WeighByLoss
            first = [WeighByLoss(stream)]
        checkpoints = Checkpoints(folder / "checkpoints", identity, keep.keep, keep.keep_every,
                                  background=keep.background)
        loop = Loop(learner, stream, optimizers, self.schedule, settings, checkpoints,
                    MetricsLog(folder / "metrics.jsonl"), first_passes=first, figures=[stream.metrics])
        loop.go_on = context.command or loop.go_on
        return loop
