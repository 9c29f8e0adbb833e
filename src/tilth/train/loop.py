"""The one training loop. It knows a learner, a stream, optimizers and a schedule, and nothing of text or models."""

import hashlib
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tilth.objectives.loss import Batch
from tilth.optim.schedules import Moment, Schedule
from tilth.optim.spread import clip_gradients, is_spread
from tilth.recipe.console import Progress, quantity
from tilth.recipe.errors import BadInput, Diverged, Interrupted, RunFailed
from tilth.train.checkpoint import Checkpoints
from tilth.train.device import autocast, keep_freed_memory
from tilth.train.learner import FirstPass, Learner
from tilth.train.metrics import Metrics
from tilth.train.parallel import Parallel, ParallelSettings
from tilth.train.processes import Processes
from tilth.train.protocols import Every, Figures, Judge, LoopSettings, Progressed, Stream
from tilth.train.stopping import StopRequest

PER_UNIT = ("unit_id", "source", "weight")  # what processes tell each other of their batches before a second pass


class Loop:
    """Trains `learner` on `stream`. `run()` goes on from the newest checkpoint, and raises Interrupted when asked to
    stop, after writing one. figures: asked after every step, what they return joins the step's line of the metrics."""

    def __init__(self, learner: Learner, stream: Stream, optimizers: dict[str, torch.optim.Optimizer],
                 schedule: Schedule, settings: LoopSettings, checkpoints: Checkpoints, metrics: Metrics,
                 hooks: list[Every] | None = None, first_passes: list[FirstPass] | None = None,
                 figures: list[Figures] | None = None, parallel: Parallel | None = None):
        self.parallel = parallel or Parallel(learner, Processes(), ParallelSettings())
        self.processes = self.parallel.processes
        self.micro_batches, left = divmod(settings.rows, settings.micro_rows * self.processes.data_world)
        if left:
            raise BadInput(f"`micro_rows` ({settings.micro_rows}) times {self.processes.data_world} processes must "
                           f"divide the batch of {settings.rows} rows.")
        self.learner, self.stream, self.optimizers, self.schedule = learner, stream, optimizers, schedule
        self.settings, self.checkpoints, self.metrics, self.hooks = settings, checkpoints, metrics, hooks or []
        self.figures = figures or []
        self.first_passes = [*(first_passes or []), *([learner.first_pass] if learner.first_pass else [])]
        self.at = Progressed()
        self.go_on = "run the same command again"
        self.origin: Callable[[], dict[str, Any]] | None = None  # the state to begin from where there is none yet
        self.judge: Judge | None = None
        self.replan: Callable[[Loop], None] | None = None  # may move `settings.steps`, once a step's rows are drawn
        self.fences: list[Callable[[], Any]] = []  # called before anything may overwrite parameters or moments
        self.newest: Callable[[dict[str, Tensor]], dict[str, Any] | None] = checkpoints.newest

    def run(self) -> Progressed:
        keep_freed_memory(self.settings.device)
        self.restore()
        bar = Progress("training", self.settings.steps, "step", self.at.step)
        saved_at = time.monotonic()
        with StopRequest() as stop:
            while self.at.step < self.settings.steps:
                line = self.step()
                self.metrics.write(line)
                better = self._call_hooks()
                bar.update(self.at.step, f"loss {line['loss']:.3f}  {quantity(line['tokens_per_second'])} tokens/s")
                stopping, due = self.processes.any(
                    stop.asked is not None, time.monotonic() - saved_at >= self.settings.checkpoint_seconds)
                if stopping or due or better or self._checkpoint_step() or self.at.step == self.settings.steps:
                    path = self.save()
                    saved_at = time.monotonic()
                if stopping and self.at.step < self.settings.steps:
                    self.checkpoints.wait()
                    raise Interrupted(f"Stopped by {stop.asked or 'another process'} at step {self.at.step} of "
                                      f"{self.settings.steps}; the checkpoint is {path}. To go on, {self.go_on}.")
        self.checkpoints.wait()
        return self.at

    def _checkpoint_step(self) -> bool:
        return bool(self.settings.checkpoint_steps) and self.at.step % (self.settings.checkpoint_steps or 1) == 0

    def _call_hooks(self) -> bool:
        """Call the hooks that are due; returns whether one of them found the model the best so far."""
        better = False
        for every in self.hooks:
            if self.at.step % every.steps == 0 or self.at.step == self.settings.steps:
                extra = every.hook(self)
                if extra:
                    self.metrics.write({**vars(self.at), **extra})
                score = getattr(every.hook, "score", None)
                better |= score is not None and self.checkpoints.better(self.at.step, score)
        return better

    def step(self) -> dict[str, Any]:
        """One step: all updates of the learner on one global batch. Returns its line of the metrics."""
        start, cpu_start = time.perf_counter(), time.process_time()
        batches = [self.parallel.positions_of(self._to_device(self.stream.next(self.settings.micro_rows)))
                   for _ in range(self.micro_batches)]
        if self.replan is not None:
            self.replan(self)
        lr = self._set_rates()
        line: dict[str, Any] = {}
        for update in self.learner.updates:
            line |= self._update(update, batches)
        self.learner.after_step(self.at.step)
        tokens = int(line.pop("count"))
        mine = sum(self.learner.flops(batch) or 0.0 for batch in batches) / self.processes.context
        flops, empty, positions = self.processes.total([mine, *padding(batches)])
        [cpu_seconds] = self.processes.total([time.process_time() - cpu_start], everyone=True)
        seconds = time.perf_counter() - start
        at = self.at
        self.at = Progressed(at.step + 1, at.tokens + tokens, at.flops + flops, at.seconds + seconds,
                             at.cpu_seconds + cpu_seconds)
        judged = [] if self.judge is None else [self.judge.figures]
        more = {name: value for figures in [*self.figures, *judged] for name, value in figures().items()}
        padded = {"padded": empty / positions} if positions else {}
        return {**vars(self.at), **line, "lr": lr, "tokens_per_second": tokens / seconds, **padded, **more}

    def fence(self) -> None:
        """Wait until parameters and moments may change: whoever writes to them calls this first."""
        for fence in self.fences:
            fence()

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

    def _update(self, update: str, batches: list[Batch]) -> dict[str, Any]:
        """Accumulate the gradient of sum(weight * total) / sum(weight * count) over the global batch, clip, step."""
        self.learner.before_update(update, self.at.step)
        # Another update may have left gradients on these parameters (a generator's loss passes the discriminator).
        self.learner.modules.zero_grad(set_to_none=True)
        batches = self._look_first(update, batches)
        counts = [self.learner.count(update, batch) for batch in batches]
        weighted = sum(float((batch["weight"] * count).sum()) for batch, count in zip(batches, counts, strict=True))
        whole, predictions = self.processes.total([weighted, sum(float(count.sum()) for count in counts)])
        if whole <= 0:
            raise RunFailed(f"Step {self.at.step + 1} has nothing to learn from: the weights or the counts of all its "
                            f"units are 0.")
        sums: dict[str, Any] = {"loss": 0.0, "count": 0.0}
        seen = []
        for index, (batch, count) in enumerate(zip(batches, counts, strict=True)):
            share = float(count.sum()) / predictions
            with self.parallel.accumulating(last=index == len(batches) - 1):
                seen.append(self._accumulate(update, index, batch, count, whole, share, sums))
        parameters = [p for group in self.optimizers[update].param_groups for p in group["params"]]
        self.parallel.reduce(parameters)
        norm = clip_gradients(parameters, self.settings.clip or math.inf)
        sums = summed(self.processes, sums)
        if update == self.learner.updates[0]:
            self._observe(seen)
        loss = sums.pop("loss") / max(sums["count"], 1.0)
        self.fence()
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
                    sums: dict[str, Any]) -> dict[str, Tensor]:
        """Forward and backward of one micro-batch, which holds `share` of the predictions of the global batch; adds
        its loss, count, penalties and figures to `sums`, and returns the mean loss of each of its units."""
        with autocast(self.settings.precision, self.settings.device):
            loss = self.learner.loss(update, batch, self._rng(update, index))
        if loss.couples == "batch" and self.micro_batches * self.processes.data_world > 1:
            raise BadInput("This objective couples the units of a batch, so a batch cannot be split: set micro_rows to "
                           "the whole batch of one process, or give the learner a first pass.")
        penalty = sum((term * share for term in loss.terms.values()), torch.zeros((), device=loss.total.device))
        ((batch["weight"] * loss.total).sum() / whole + penalty).backward()
        sums["loss"] += float(loss.total.detach().sum())
        sums["count"] += float(count.sum())
        for name, figure in {**loss.terms, **loss.figures}.items():
            sums[name] = sums.get(name, 0.0) + figure.detach().double().cpu() * share
        over = self.processes.over_positions
        return {"unit_id": batch["unit_id"], "loss": over(loss.total.detach()) / over(count).clamp(min=1)}

    def _observe(self, seen: list[dict[str, Tensor]]) -> None:
        """Tell the stream, on every process, of the units of the global batch, in the order of one process alone."""
        for micro in seen:
            for part in self.processes.gather(micro):
                self.stream.observe(part["unit_id"].cpu(), part["loss"].cpu())

    def _look_first(self, update: str, batches: list[Batch]) -> list[Batch]:
        """Run the first passes, each over the whole global batch without gradient, and join their results."""
        if self.first_passes and self.processes.context > 1:
            raise BadInput("A first pass (a weigher that looks at losses, gathered embeddings) needs whole rows in "
                           "each process; train without --context.")
        for first_pass in self.first_passes:
            if self.at.step < getattr(first_pass, "starts", 0):
                continue
            results: list[dict[str, Tensor]] = []
            everyone: list[Batch] = []
            spent = 0.0
            for index, batch in enumerate(batches):
                with torch.no_grad(), autocast(self.settings.precision, self.settings.device):
                    result = first_pass.first(self.learner, update, batch, self._rng(update, index))
                results += self.processes.gather(result)
                everyone += self._everyone(batch)
                spent += (self.learner.flops(batch) or 0.0) / 3  # a forward pass is a third of training
            self.at.flops += sum(self.processes.total([spent]))
            extras = first_pass.between(results, everyone)[self.processes.data_rank::self.processes.data_world]
            batches = [{**batch, **extra} for batch, extra in zip(batches, extras, strict=True)]
        return batches

    def _everyone(self, batch: Batch) -> list[Batch]:
        """The micro-batches of all processes, in order: this one's own whole, of the others what belongs to units."""
        others = self.processes.gather({name: batch[name] for name in PER_UNIT})
        return [batch if rank == self.processes.data_rank else other for rank, other in enumerate(others)]

    def _rng(self, update: str, index: int) -> torch.Generator:
        """Random numbers of a micro-batch by its place in the global batch, whichever process computes it."""
        place = index * self.processes.data_world + self.processes.data_rank
        return seeded(self.settings.seed, update, self.at.step, place, device=self.settings.device)

    def _to_device(self, batch: Batch) -> Batch:
        device = self.settings.device
        return batch if device.type == "cpu" else {k: v.to(device, non_blocking=True) for k, v in batch.items()}

    def save(self) -> Any:
        return self.checkpoints.save(self.at.step, self.state())

    def state(self) -> dict[str, Any]:
        """Everything that an exact restart needs; tensors are those that training goes on with, not copies."""
        state = {"at": vars(self.at), "learner": self.learner.state_dict(), "stream": self.stream.state_dict(),
                 "optimizers": {name: value.state_dict() for name, value in self.optimizers.items()},
                 "torch_rng": torch.get_rng_state()}
        if self.judge is not None:
            state["judge"] = self.judge.state_dict()
        if self.replan is not None:
            state["steps"] = self.settings.steps
        return state

    def layout(self) -> dict[str, Tensor]:
        """Of each part of the state that is spread over processes, by its path, a tensor that is spread in that way."""
        spread = {f"/learner/modules/{name}": tensor for name, tensor in self.learner.modules.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            for path, part in parts_of(optimizer, f"/optimizers/{name}"):
                parameters = [p for group in part.param_groups for p in group["params"]]
                spread |= {f"{path}/state/{index}/": parameter for index, parameter in enumerate(parameters)}
        return {path: tensor for path, tensor in spread.items() if is_spread(tensor)}

    def restore(self) -> None:
        """Go back to the newest whole state (a checkpoint, if `newest` says no other), or else to `origin`, and cut the
        metrics back to it."""
        state = self.newest(self.layout()) or (self.origin() if self.origin else None)
        if state is not None:
            self.at = Progressed(**state["at"])
            self.learner.load_state_dict(state["learner"])
            self.stream.load_state_dict(state["stream"])
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(state["optimizers"][name])
            torch.set_rng_state(state["torch_rng"])
            if self.judge is not None and "judge" in state:
                self.judge.load_state_dict(state["judge"])
            if self.replan is not None and "steps" in state:
                self.settings.steps = state["steps"]
        else:  # whatever the preparations drew, and in whichever process
            torch.manual_seed(seeded(self.settings.seed, "global", self.processes.rank).initial_seed())
        self.metrics.cut_back(self.at.step)


def parts_of(optimizer: Any, path: str) -> list[tuple[str, torch.optim.Optimizer]]:
    """The optimizers that one is made of (itself, if of none), with the paths of their states."""
    parts = getattr(optimizer, "parts", None)
    if parts is None:
        return [(path, optimizer)]
    return [one for index, part in enumerate(parts) for one in parts_of(part, f"{path}/parts/{index}")]


def seeded(*parts: object, device: torch.device | None = None) -> torch.Generator:
    """A generator whose numbers depend on `parts` alone (run seed, purpose, step, ...), never on what ran before."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return torch.Generator(device or "cpu").manual_seed(int.from_bytes(digest, "little") >> 1)


def summed(processes: Processes, sums: dict[str, Any]) -> dict[str, Any]:
    """Numbers and float64 tensors summed over processes; tensors come back as (nested lists of) numbers."""
    tensors = [torch.as_tensor(value, dtype=torch.float64) for value in sums.values()]
    totals = torch.tensor(processes.total(torch.cat([one.flatten() for one in tensors]).tolist()), dtype=torch.float64)
    parts = totals.split([one.numel() for one in tensors])
    return {name: part.view(one.shape).tolist() for name, part, one in zip(sums, parts, tensors, strict=True)}


def padding(batches: list[Batch]) -> tuple[int, int]:
    """Positions that hold no unit, and all positions, where rows are packed; else 0 and 0."""
    if "unit_index" not in batches[0]:
        return 0, 0
    return (sum(int((batch["unit_index"] < 0).sum()) for batch in batches),
            sum(batch["unit_index"].numel() for batch in batches))
