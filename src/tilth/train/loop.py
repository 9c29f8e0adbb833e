"""The one training loop. It knows a learner, a stream, optimizers and a schedule, and nothing of text or models."""

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from tilth.objectives.loss import Batch
from tilth.optim.schedules import Moment, Schedule
from tilth.recipe.console import Progress, quantity
from tilth.recipe.errors import BadInput, Diverged, Interrupted, RunFailed
from tilth.train.checkpoint import Checkpoints
from tilth.train.device import autocast, keep_freed_memory
from tilth.train.learner import FirstPass, Learner
from tilth.train.metrics import MetricsLog
from tilth.train.stopping import StopRequest


class Stream(Protocol):
    """Where batches come from; rows of successive calls are the same however they are grouped into calls."""

    def next(self, rows: int) -> Batch: ...

    def observe(self, unit_id: Tensor, loss: Tensor) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Judge(Protocol):
    """Decides whether an update that was worked out may be taken; see `tilth.train.stability`. It may put the learner
    and the optimizers back to an earlier state, but not the stream."""

    def allows(self, loop: "Loop", update: str, loss: float, gradient_norm: float) -> bool: ...

    def figures(self) -> dict[str, Any]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


Hook = Callable[["Loop"], dict[str, Any] | None]
Figures = Callable[[], dict[str, float]]


@dataclass
class Every:
    """A hook called after every `steps` steps and after the last; what it returns becomes a line of the metrics."""

    steps: int
    hook: Hook


@dataclass
class LoopSettings:
    """steps: the step to end at; rows: of a global batch; micro_rows: of one forward pass, divides `rows`;
    batch_tokens: positions of a step; first_step, tokens_before: where the run began, if it branched from another."""

    steps: int
    rows: int
    micro_rows: int
    seed: int = 0
    clip: float | None = 1.0
    precision: str = "fp32"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    checkpoint_seconds: float = 120.0
    checkpoint_steps: int | None = None
    batch_tokens: int = 1
    first_step: int = 0
    tokens_before: float = 0.0


@dataclass
class Progressed:
    """How far a run has come; saved with every checkpoint."""

    step: int = 0
    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    cpu_seconds: float = 0.0


class Loop:
    """Trains `learner` on `stream`. `run()` goes on from the newest checkpoint, and raises Interrupted when asked to
    stop, after writing one. figures: asked after every step, what they return joins the step's line of the metrics."""

    def __init__(self, learner: Learner, stream: Stream, optimizers: dict[str, torch.optim.Optimizer],
                 schedule: Schedule, settings: LoopSettings, checkpoints: Checkpoints, metrics: MetricsLog,
                 hooks: list[Every] | None = None, first_passes: list[FirstPass] | None = None,
                 figures: list[Figures] | None = None):
        if settings.rows % settings.micro_rows:
            raise BadInput(f"`micro_rows` ({settings.micro_rows}) must divide the batch of {settings.rows} rows.")
        self.learner, self.stream, self.optimizers, self.schedule = learner, stream, optimizers, schedule
        self.settings, self.checkpoints, self.metrics, self.hooks = settings, checkpoints, metrics, hooks or []
        self.figures = figures or []
        self.first_passes = [*(first_passes or []), *([learner.first_pass] if learner.first_pass else [])]
        self.at = Progressed()
        self.go_on = "run the same command again"
        self.origin: dict[str, Any] | None = None  # the state to begin from where there is no checkpoint yet
        self.judge: Judge | None = None

    def run(self) -> Progressed:
        keep_freed_memory(self.settings.device)
        self.restore()
        bar = Progress("training", self.settings.steps, "step", self.at.step)
        saved_at = time.monotonic()
        with StopRequest() as stop:
            while self.at.step < self.settings.steps:
                line = self.step()
                self.metrics.write(line)
                self._call_hooks()
                bar.update(self.at.step, f"loss {line['loss']:.3f}  {quantity(line['tokens_per_second'])} tokens/s")
                due = time.monotonic() - saved_at >= self.settings.checkpoint_seconds
                if stop.asked or due or self._checkpoint_step() or self.at.step == self.settings.steps:
                    path = self.save()
                    saved_at = time.monotonic()
                if stop.asked and self.at.step < self.settings.steps:
                    raise Interrupted(f"Stopped by {stop.asked} at step {self.at.step} of {self.settings.steps}; the "
                                      f"checkpoint is {path}. To go on, {self.go_on}.")
        return self.at

    def _checkpoint_step(self) -> bool:
        return bool(self.settings.checkpoint_steps) and self.at.step % (self.settings.checkpoint_steps or 1) == 0

    def _call_hooks(self) -> None:
        for every in self.hooks:
            if self.at.step % every.steps == 0 or self.at.step == self.settings.steps:
                extra = every.hook(self)
                if extra:
                    self.metrics.write({**vars(self.at), **extra})

    def step(self) -> dict[str, Any]:
        """One step: all updates of the learner on one global batch. Returns its line of the metrics."""
        start, cpu_start = time.perf_counter(), time.process_time()
        micro = self.settings.micro_rows
        batches = [self._to_device(self.stream.next(micro)) for _ in range(self.settings.rows // micro)]
        lr = self._set_rates()
        line: dict[str, Any] = {}
        for update in self.learner.updates:
            line |= self._update(update, batches)
        self.learner.after_step(self.at.step)
        tokens = int(line.pop("count"))
        flops = [self.learner.flops(batch) for batch in batches]
        seconds = time.perf_counter() - start
        at = self.at
        self.at = Progressed(at.step + 1, at.tokens + tokens, at.flops + sum(value or 0.0 for value in flops),
                             at.seconds + seconds, at.cpu_seconds + time.process_time() - cpu_start)
        judged = [] if self.judge is None else [self.judge.figures]
        more = {name: value for figures in [*self.figures, *judged] for name, value in figures().items()}
        return {**vars(self.at), **line, "lr": lr, "tokens_per_second": tokens / seconds, **padding(batches), **more}

    def spend(self, flops: float) -> None:
        """Count FLOPs that something beside the steps needs (a probe, a scorer) as part of the run's."""
        self.at.flops += flops

    def _set_rates(self) -> float:
        """Apply the schedule to every group of every optimizer; returns the rate of the first group."""
        settings = self.settings
        moment = Moment(self.at.step - settings.first_step, settings.steps - settings.first_step,
                        settings.batch_tokens, settings.tokens_before)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * self.schedule.factor(moment, group.get("base_lr", group["peak_lr"]))
        return next(iter(self.optimizers.values())).param_groups[0]["lr"]

    def _update(self, update: str, batches: list[Batch]) -> dict[str, float]:
        """Accumulate the gradient of sum(weight * total) / sum(weight * count) over the global batch, clip, step."""
        self.learner.before_update(update, self.at.step)
        # Another update may have left gradients on these parameters (a generator's loss passes the discriminator).
        self.learner.modules.zero_grad(set_to_none=True)
        batches = self._look_first(update, batches)
        counts = [self.learner.count(update, batch) for batch in batches]
        whole = sum(float((batch["weight"] * count).sum()) for batch, count in zip(batches, counts, strict=True))
        if whole <= 0:
            raise RunFailed(f"Step {self.at.step + 1} has nothing to learn from: the weights or the counts of all its "
                            f"units are 0.")
        predictions = sum(float(count.sum()) for count in counts)
        sums = {"loss": 0.0, "count": 0.0}
        for index, (batch, count) in enumerate(zip(batches, counts, strict=True)):
            share = float(count.sum()) / predictions
            self._accumulate(update, index, batch, count, whole, share, len(batches), sums)
        parameters = [p for group in self.optimizers[update].param_groups for p in group["params"]]
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.settings.clip or math.inf))
        loss = sums.pop("loss") / max(sums["count"], 1.0)
        if self._allowed(update, loss, norm):
            self.optimizers[update].step()
        self.optimizers[update].zero_grad(set_to_none=True)
        name = "" if update == self.learner.updates[0] else f"{update}_"
        terms = {f"{name}{key}": value for key, value in sums.items() if name == "" or key != "count"}
        return {f"{name}loss": loss, f"{name}gradient_norm": norm, **terms}

    def _allowed(self, update: str, loss: float, norm: float) -> bool:
        """Whether to take the step: the judge's word if there is one; without, what is not finite ends the run."""
        allowed = self.judge is None or self.judge.allows(self, update, loss, norm)
        if allowed and not (math.isfinite(loss) and math.isfinite(norm)):
            raise Diverged(f"Step {self.at.step + 1} diverged (loss {loss}, gradient norm {norm}). The weights before "
                           f"it are in the newest checkpoint; lower the learning rate, or train in fp32.")
        return allowed

    def _accumulate(self, update: str, index: int, batch: Batch, count: Tensor, whole: float, share: float,
                    micro_batches: int, sums: dict[str, float]) -> None:
        """Forward and backward of one micro-batch, which holds `share` of the predictions of the global batch; adds
        its loss, count and penalties to `sums`."""
        with autocast(self.settings.precision, self.settings.device):
            loss = self.learner.loss(update, batch, self._rng(update, index))
        if loss.couples == "batch" and micro_batches > 1:
            raise BadInput("This objective couples the units of a batch, so a batch cannot be split: "
                           "set micro_rows to the whole batch, or give the learner a first pass.")
        penalty = sum((term * share for term in loss.terms.values()), torch.zeros((), device=loss.total.device))
        ((batch["weight"] * loss.total).sum() / whole + penalty).backward()
        sums["loss"] += float(loss.total.detach().sum())
        sums["count"] += float(count.sum())
        for name, term in loss.terms.items():
            sums[name] = sums.get(name, 0.0) + float(term.detach()) * share
        if update == self.learner.updates[0]:
            self.stream.observe(batch["unit_id"].cpu(), (loss.total.detach() / count.clamp(min=1)).cpu())

    def _look_first(self, update: str, batches: list[Batch]) -> list[Batch]:
        """Run the first passes, each over the whole global batch without gradient, and join their results."""
        for first_pass in self.first_passes:
            if self.at.step < getattr(first_pass, "starts", 0):
                continue
            results = []
            for index, batch in enumerate(batches):
                with torch.no_grad(), autocast(self.settings.precision, self.settings.device):
                    results.append(first_pass.first(self.learner, update, batch, self._rng(update, index)))
                self.at.flops += (self.learner.flops(batch) or 0.0) / 3  # a forward pass is a third of training
            extras = first_pass.between(results, batches)
            batches = [{**batch, **extra} for batch, extra in zip(batches, extras, strict=True)]
        return batches

    def _rng(self, update: str, index: int) -> torch.Generator:
        return seeded(self.settings.seed, update, self.at.step, index, device=self.settings.device)

    def _to_device(self, batch: Batch) -> Batch:
        device = self.settings.device
        return batch if device.type == "cpu" else {k: v.to(device, non_blocking=True) for k, v in batch.items()}

    def save(self) -> Any:
        state = {"at": vars(self.at), "learner": self.learner.state_dict(), "stream": self.stream.state_dict(),
                 "optimizers": {name: value.state_dict() for name, value in self.optimizers.items()},
                 "torch_rng": torch.get_rng_state()}
        if self.judge is not None:
            state["judge"] = self.judge.state_dict()
        return self.checkpoints.save(self.at.step, state)

    def restore(self) -> None:
        """Go back to the newest whole checkpoint, or else to `origin`, and cut the metrics back to it."""
        state = self.checkpoints.newest() or self.origin
        if state is not None:
            self.at = Progressed(**state["at"])
            self.learner.load_state_dict(state["learner"])
            self.stream.load_state_dict(state["stream"])
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(state["optimizers"][name])
            torch.set_rng_state(state["torch_rng"])
            if self.judge is not None and "judge" in state:
                self.judge.load_state_dict(state["judge"])
        self.metrics.cut_back(self.at.step)


def seeded(*parts: object, device: torch.device | None = None) -> torch.Generator:
    """A generator whose numbers depend on `parts` alone (run seed, purpose, step, ...), never on what ran before."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return torch.Generator(device or "cpu").manual_seed(int.from_bytes(digest, "little") >> 1)


def padding(batches: list[Batch]) -> dict[str, float]:
    """The share of positions that hold no unit, where rows are packed."""
    if "unit_index" not in batches[0]:
        return {}
    positions = sum(batch["unit_index"].numel() for batch in batches)
    return {"padded": sum(int((batch["unit_index"] < 0).sum()) for batch in batches) / positions}
