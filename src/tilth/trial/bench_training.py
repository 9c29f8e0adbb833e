"""`tilth bench train`: how fast a recipe trains on this device, how near to its limits, and where a step's time goes.

The limits: the rate of large matrix products measured on this very device, and the memory that weights, gradients,
moments and what is kept for the backward pass must take.
"""

import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tilth.recipe.console import duration, quantity, say
from tilth.recipe.errors import BadInput
from tilth.stages.pretrain import PretrainStage
from tilth.stages.pretraining import Pretraining
from tilth.stages.runner import run_recipe
from tilth.stages.stage import Context, Hardware, Recipe
from tilth.train.device import begin_peak, matmul_peak, peak_since, pick_device, wait_for
from tilth.train.loop import Loop
from tilth.train.micro import row_bytes

WARMUP = 3  # steps that are not counted: allocation, compilation, first touches


class Timers:
    """Adds up the seconds within wrapped functions, by name; a wrapped call inside another is counted for itself only,
    so the parts do not overlap."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._last = 0.0

    def wrap(self, owner: Any, method: str, name: str) -> None:
        """Replace `owner.method` by one that is timed as `name`."""
        inner: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return inner(*args, **kwargs)

        setattr(owner, method, timed)

    @contextmanager
    def part(self, name: str) -> Any:
        self._turn(name)
        try:
            yield
        finally:
            self._turn(None)

    def _turn(self, name: str | None) -> None:
        """Credit the time since the last turn to the innermost open part; open `name`, or close that part."""
        wait_for(self.device)
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + now - self._last
        self._last = now
        self._open.append(name) if name is not None else self._open.pop()


def bench_training(recipe: Recipe, folder: Path, hardware: Hardware, steps: int = 20) -> dict[str, Any]:
    """Train the recipe's first pretrain stage for a few steps in a scratch folder, beside the data that its earlier
    stages leave in `folder` (made there if need be). Seconds of parts are of steps run one after the other with a wait
    between the parts; tokens per second are of further steps without."""
    name, stage = first_pretrain(recipe)
    before = _before(recipe, stage)
    if before.stages:
        run_recipe(before, folder, hardware)
    stage = stage.model_copy(update={
        "budget": stage.budget.model_copy(update={"steps": 2 * steps + WARMUP, "tokens": None, "epochs": None,
                                                  "flops": None, "minutes": None})})
    with tempfile.TemporaryDirectory(prefix="tilth-bench-") as scratch:
        at_rest = begin_peak(pick_device(hardware.device))
        pretraining = Pretraining(stage, Context(folder, Path(scratch) / name, recipe.seed, hardware))
        loop = pretraining.loop()
        loop.restore()
        for _ in range(WARMUP):
            loop.step()
        rate = _rate(loop, steps)
        seconds = _parts(loop, steps)
        loop.metrics.close()
    return _report(pretraining, loop, name, rate, seconds, at_rest, steps)


def first_pretrain(recipe: Recipe) -> tuple[str, PretrainStage]:
    for name, stage in recipe.stages.items():
        if isinstance(stage, PretrainStage):
            return name, stage
    raise BadInput(f"The recipe '{recipe.name}' trains nothing: it has no stage of kind pretrain.")


def _before(recipe: Recipe, stage: PretrainStage) -> Recipe:
    """The recipe cut to what `stage` reads."""
    wanted = list(stage.reads())
    for one in wanted:
        wanted += [name for name in recipe.stages[one].reads() if name not in wanted]
    return recipe.model_copy(update={"stages": {key: one for key, one in recipe.stages.items() if key in wanted}})


def _rate(loop: Loop, steps: int) -> float:
    """Tokens a second over `steps` steps as they come."""
    wait_for(loop.settings.device)
    tokens, start = loop.at.tokens, time.perf_counter()
    for _ in range(steps):
        loop.metrics.write(loop.step())
    wait_for(loop.settings.device)
    return (loop.at.tokens - tokens) / (time.perf_counter() - start)


def _parts(loop: Loop, steps: int) -> dict[str, float]:
    """Seconds of each part of a step, and of one checkpoint."""
    timers = Timers(loop.settings.device)
    timers.wrap(loop.stream, "next", "data")
    timers.wrap(loop, "_accumulate", "backward")  # what is left of it without the forward pass inside
    timers.wrap(loop.learner, "loss", "forward")
    timers.wrap(loop.parallel, "reduce", "exchange")
    for optimizer in loop.optimizers.values():
        timers.wrap(optimizer, "step", "optimizer")
    timers.wrap(loop.metrics, "write", "logging")
    for _ in range(steps):
        with timers.part("rest"):
            line = loop.step()
        loop.metrics.write(line)
    seconds = {part: total / steps for part, total in timers.seconds.items()}
    start = time.perf_counter()
    loop.save()
    loop.checkpoints.wait()
    return {**seconds, "checkpoint": time.perf_counter() - start}


def _report(pretraining: Pretraining, loop: Loop, name: str, rate: float, seconds: dict[str, float], at_rest: int,
            steps: int) -> dict[str, Any]:
    stage, device, decided = pretraining.stage, pretraining.device, pretraining.decided
    peak = matmul_peak(device, pretraining.precision)
    flops_per_token = (pretraining.learner.flops_per_row or 0.0) / stage.length
    step = sum(value for part, value in seconds.items() if part != "checkpoint")
    weights = sum(p.numel() * p.element_size() for p in pretraining.learner.modules.parameters())
    moments = sum(tensor.numel() * tensor.element_size() for optimizer in loop.optimizers.values()
                  for tensor in _tensors(optimizer.state_dict()))
    kept = row_bytes(pretraining.learner, pretraining.stream, pretraining.precision, device) * decided["micro_rows"]
    floor = {"weights": weights, "gradients": weights, "moments": moments, "activations": kept}
    every = stage.checkpoint.seconds
    return {"stage": name, "device": str(device), "precision": pretraining.precision, "steps": steps,
            "parameters": pretraining.model.config.parameters(), "micro_rows": decided["micro_rows"],
            "batch_tokens": decided["rows"] * stage.length, "tokens_per_second": rate,
            "utilisation": rate * flops_per_token / peak, "matmul_flops_per_second": peak,
            "seconds_by_part": seconds, "share_by_part": {part: value / step for part, value in seconds.items()
                                                          if part != "checkpoint"},
            "checkpoint_share": seconds["checkpoint"] / (seconds["checkpoint"] + every),
            "memory_floor_bytes": floor, "memory_peak_bytes": peak_since(device) - at_rest,
            "memory_before_bytes": at_rest}


def _tensors(state: Any) -> list[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return [state]
    inner = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return [tensor for one in inner for tensor in _tensors(one)]


def bench_text(found: dict[str, Any]) -> str:
    """The report for people."""
    parts = ", ".join(f"{part} {100 * share:.1f} %" for part, share in
                      sorted(found["share_by_part"].items(), key=lambda item: -item[1]))
    floor = found["memory_floor_bytes"]
    return "\n".join([
        f"stage {found['stage']} on {found['device']} in {found['precision']}: "
        f"{quantity(found['parameters'])} parameters, {quantity(found['batch_tokens'])} tokens a step, "
        f"{found['micro_rows']} rows at a time",
        f"  speed       {quantity(found['tokens_per_second'])} tokens/s, {100 * found['utilisation']:.0f} % of the "
        f"measured matrix-product peak ({quantity(found['matmul_flops_per_second'], 'FLOP/s')})",
        f"  a step      {parts}",
        f"  checkpoint  {duration(found['seconds_by_part']['checkpoint'])}, "
        f"{100 * found['checkpoint_share']:.2f} % of the time at the recipe's interval",
        f"  memory      {quantity(found['memory_peak_bytes'], 'B')} over what the process held before; floor "
        f"{quantity(sum(floor.values()), 'B')}: "
        + ", ".join(f"{name} {quantity(size, 'B')}" for name, size in floor.items())])


def bench_recipe(name: str, changes: list[str], folder: Path | None, hardware: Hardware, steps: int) -> dict[str, Any]:
    """The command: measure, print, return."""
    from tilth.stages.commands import default_folder
    from tilth.stages.load import load_recipe
    recipe = load_recipe(name, changes)
    found = bench_training(recipe, folder or default_folder(recipe), hardware, steps)
    say("")
    print(bench_text(found))
    return found
