"""The stage and the command that compress a trained model, and measure it before and after."""

import hashlib
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, get_args

from pydantic import Field

from tilth.data.pool import Pool
from tilth.data.stream import PackedStream
from tilth.evaluate import EvaluateConfig
from tilth.evaluate.evaluate import Results, measure
from tilth.precision.calibrate import Batch, compress_model
from tilth.precision.linear import compressed_layers
from tilth.precision.weights import METHODS, Method, MethodChoice, SpQR
from tilth.recipe.console import Progress, duration, say
from tilth.recipe.errors import BadInput
from tilth.recipe.files import read_json, write_json
from tilth.recipe.frame import parse
from tilth.select.policy import PolicyConfig
from tilth.stages.compressed_folder import RestType, save_compressed
from tilth.stages.model_folder import find_model, load_model
from tilth.stages.stage import Context, Stage
from tilth.train.device import peak_memory, pick_device

ROWS_AT_ONCE = 16


class CompressStage(Stage):
    """Weights in few bits: SpQR, GPTQ or rounding to nearest, calibrated on the pool that the model was trained on.

    model: the pretrain stage; rows, length: of calibration text (length: that of training); rest: the type of what is
    not compressed; tasks: measured before and after, beside bits per byte of the held-out text.
    """

    version: ClassVar[int] = 1
    uses_seed: ClassVar[bool] = True
    kind: str = "compress"
    model: str = "pretrain"
    method: MethodChoice = SpQR()  # type: ignore[valid-type]
    rows: int = Field(128, ge=1)
    length: int | None = Field(None, ge=2)
    rest: RestType = "float16"
    evaluation: EvaluateConfig = EvaluateConfig(tasks=[], rivals=False)

    def reads(self) -> list[str]:
        return [self.model]

    def run(self, context: Context) -> dict[str, Any]:
        model, tokenizer = load_model(context.input(self.model))
        model.to(pick_device(context.hardware.device))
        known = run_of(context.input(self.model))
        if known.training is None:
            raise BadInput(f"The compress stage calibrates on the pool that its model was trained on, and "
                           f"'{self.model}' leads to no pretrain stage of this run.")
        length = self.length or known.length or model.config.context
        batches = draw_batches(known.training, self.rows, length, context.seed)
        evaluation = self.evaluation.model_copy(update={"length": self.evaluation.length or known.length})
        report = compress_and_measure(model, tokenizer, self.method, batches, context.folder / "compressed", self.rest,
                                      evaluation, known.held_out)
        write_json(context.folder / "results.json", report)
        return {"folder": "compressed", "bits": report["bits"]["per_weight"],
                "bits_per_byte": {side: report[side].get("held_out", {}).get("bits_per_byte", {}).get("value")
                                  for side in ("before", "after")}}


def draw_batches(pool: Pool, rows: int, length: int, seed: int) -> list[Batch]:
    """Calibration text: `rows` rows of `length` positions drawn from a pool, packed as in training."""
    stream = PackedStream(pool, PolicyConfig().build(pool, seed), length, seed)
    counts = [min(ROWS_AT_ONCE, rows - first) for first in range(0, rows, ROWS_AT_ONCE)]
    return [stream.next(count) for count in counts]


def compress_and_measure(model: Any, tokenizer: Any, method: Method, batches: Sequence[Batch], folder: Path,
                         rest: RestType, evaluation: EvaluateConfig, held_out: Any = None,
                         held_out_texts: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure `model`, compress it in place, write the folder, measure again; returns the report as JSON holds it."""
    measuring = held_out is not None or bool(evaluation.tasks)

    def measured() -> Results:
        if not measuring:
            return {}
        return measure(model, tokenizer, length=model.config.context, config=evaluation, held_out=held_out,
                       held_out_texts=held_out_texts, quiet=True).results

    before, began, wall = measured(), time.process_time(), time.monotonic()
    progress = Progress("compressing", len(model.blocks), "blocks")
    layers = compress_model(model, method, batches, lambda done, total: progress.update(done))
    seconds = {"cpu_seconds": time.process_time() - began, "seconds": time.monotonic() - wall}
    bits = save_compressed(folder, model, tokenizer, method, rest)
    report = {"method": method.model_dump(mode="json"), "bits": bits, **seconds,
              "peak_memory_bytes": peak_memory(next(model.parameters()).device),
              "calibration_tokens": sum(batch["tokens"].numel() for batch in batches), "before": before,
              "after": measured(), "layers": {name: asdict(layer) for name, layer in layers.items()}}
    for line in summary(report):
        say(line)
    say(f"  {folder}")
    return report


def summary(report: dict[str, Any]) -> list[str]:
    """What a person wants to know: bits, outliers, time, scores before and after."""
    bits = report["bits"]
    lines = [f"  {bits['per_weight']:.3f} bits a weight over {bits['weights']:,} compressed weights, "
             f"{bits['per_parameter']:.3f} bits a parameter over all {bits['parameters']:,}; "
             f"{100 * bits['outlier_share']:.2f} % outliers; {duration(report['seconds'])}"]
    raised = [name for name, layer in report["layers"].items()
              if layer["damping"] > report["method"].get("damping", 0)]
    if raised:
        lines.append(f"  {len(raised)} layers ({raised[0]} first) needed more damping than asked for: calibrate on "
                     f"more text.")
    for task, metrics in report["after"].items():
        for name, after in list(metrics.items())[:1]:
            before = report["before"][task][name]["value"]
            lines.append(f"  {task}  {name}  {before:.4f} before, {after['value']:.4f} after (n = {after['n']})")
    return lines


def compress_folder(path: Path, output: Path, method: Method, calibration: Sequence[Path], data: Sequence[Path],
                    tasks: Sequence[str], rows: int, length: int | None, rest: Any, seed: int,
                    device: str) -> dict[str, Any]:
    """The command: a run, a model folder of Tilth or a Llama-family folder into `output`.

    Text to calibrate on: `calibration` files, else the pool of the run that the model belongs to. Measured: `data`
    files, else that run's held-out text, and `tasks`. Raises BadInput where calibration and data share a document.
    """
    from tilth.stages.commands import named_tasks, read_texts, tokenize_texts
    if rest not in get_args(RestType):
        raise BadInput(f"--rest is '{rest}'; choose one of {', '.join(get_args(RestType))}.")
    folder = find_model(path)
    model, tokenizer = load_model(folder)
    if compressed_layers(model):
        raise BadInput(f"{folder} is compressed already; compress the model that it was made from.")
    model.to(pick_device(device))
    known = run_of(folder.parent)
    with ExitStack() as stack:
        def place() -> Path:
            return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tilth-")))

        calibrating, texts = ([text for one in files for text in read_texts(one)] for files in (calibration, data))
        shared = {_digest(text) for text in calibrating} & {_digest(text) for text in texts}
        if shared:
            raise BadInput(f"{len(shared)} documents are in --calibration and in --data; scores would flatter. Take "
                           f"them out of one of the two.")
        batches: list[Batch] = []
        if method.calibrated:
            pool = tokenize_texts(calibrating, tokenizer, place()) if calibrating else known.training
            if pool is None:
                raise BadInput(f"{path} does not belong to a run with a training pool: name text to calibrate on with "
                               f"--calibration FILE (not the text that you measure on), or choose --method rtn.")
            batches = draw_batches(pool, rows, min(length or known.length or 2048, model.config.context), seed)
        held_out = tokenize_texts(texts, tokenizer, place()) if texts else known.held_out
        report = compress_and_measure(model, tokenizer, method, batches, output, rest, EvaluateConfig(
            tasks=named_tasks(tasks), rivals=False, length=known.length), held_out, texts or None)
    write_json(output / "results.json", report)
    return report


def _digest(text: str) -> str:
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()


@dataclass(frozen=True)
class KnownRun:
    """What a run says about the text of its model: pools, and the positions of a row in training."""

    training: Pool | None = None
    held_out: Pool | None = None
    length: int | None = None


def run_of(stage: Path) -> KnownRun:
    """The run that a stage's model comes from, found over the stages that it names as its `model` (export, adaptation);
    all None where the folder stands alone."""
    while (stage / "manifest.json").is_file():
        fields = read_json(stage / "manifest.json").get("fields", {})
        pool = stage.parent / str(fields.get("input"))
        if fields.get("kind") == "pretrain" and (pool / "fields").is_dir():
            held_out = pool / "held_out"
            return KnownRun(Pool.open(pool), Pool.open(held_out) if held_out.is_dir() else None, fields["length"])
        if not fields.get("model"):
            break
        stage = stage.parent / str(fields["model"])
    return KnownRun()


def method_of(kind: str, bits: int, changes: Sequence[str]) -> Method:
    """The method that the command line names, with `key=value` changes of its fields (tau=0.5)."""
    import yaml
    fields: dict[str, Any] = {"kind": kind, "bits": bits}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise BadInput(f"'{change}' is not of the form key=value (for example tau=0.5).")
        fields[key] = yaml.safe_load(value)
    return parse(CompressStage, {"method": fields}).method


__all__ = ["METHODS", "CompressStage", "compress_and_measure", "compress_folder", "draw_batches", "method_of"]
