"""One execution of a pretrain stage: what it decides before its first step, builds, runs and sums up."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from tilth.adapt.lora import merged
from tilth.analyze.sharpness import SharpnessHook
from tilth.data.pool import Pool
from tilth.data.stream import PackedStream
from tilth.data.trace import served_by_source
from tilth.objectives import Batch
from tilth.optim.spread import whole_state
from tilth.recipe.console import quantity, say
from tilth.recipe.errors import BadInput
from tilth.recipe.files import read_json, read_json_lines, write_json
from tilth.select.policy import PolicyConfig
from tilth.select.probe import Probe
from tilth.stages import averaging
from tilth.stages.advice import advice_for, settled, tell, wants_advice
from tilth.stages.branching import BEGINNING, Branch
from tilth.stages.building import Probe as SpeedProbe
from tilth.stages.building import counted, probe_speed, random_batch
from tilth.stages.held_out import HeldOutHook
from tilth.stages.model_folder import save_model
from tilth.stages.paying import Paying
from tilth.stages.pretrain import PretrainStage
from tilth.stages.stage import Context
from tilth.stages.tensorboard import TensorBoardSink
from tilth.train import Checkpoints, Every, Learner, Loop, LoopSettings, MetricsLog
from tilth.train.averaging import LastCheckpoints
from tilth.train.device import matmul_peak, peak_memory, pick_device, resolve_precision
from tilth.train.metrics import Metrics, NoMetrics
from tilth.train.micro import largest_micro_batch
from tilth.train.parallel import Parallel, check_parallel
from tilth.train.survive.hook import Surviving


class Pretraining:
    """One execution of a pretrain stage."""

    def __init__(self, stage: PretrainStage, context: Context):
        self.stage, self.context = stage, context
        self.processes = context.processes
        several = self.processes.world > 1
        self.device = pick_device(context.hardware.device, self.processes.local_rank if several else None)
        self.precision = resolve_precision(stage.precision, self.device)
        check_parallel(self.precision, context.hardware.parallel)
        if stage.lora is not None and context.hardware.parallel.tensor > 1:
            raise BadInput("Adapters (`lora`) are not split by --tensor; train without it, or with --shard.")
        self.pool_folder = context.input(stage.input)
        self.pool = Pool.open(self.pool_folder)
        self.learner = stage.learner(self.pool.vocab_size, context.seed)
        self.moving = averaging.moving_average(stage.average, self.learner)
        self.learner.to(self.device)
        self.model: Any = self.learner.modules["model"]
        self.policy = stage.policy.build(self.pool, context.seed)
        self.stream = PackedStream(self.pool, self.policy, stage.length, context.seed, self.processes.data_rank,
                                   self.processes.data_world, context.folder / "drawn" if self.processes.main else None,
                                   self.processes.agree)
        self.branch = Branch(stage, context.input(stage.branch_from.stage)) if stage.branch_from else None
        self.decided = self.processes.tell(self._decide() if self.processes.main else None)
        if self.decided["advice"] is not None:
            self.stage = settled(stage, self.decided["advice"])

    def _decide(self) -> dict[str, Any]:
        """Steps and micro-batch: worked out once, before step 0, written down, and kept by every resumption."""
        path = self.context.folder / "budget.json"
        if path.exists():
            decided = {**BEGINNING, **read_json(path)}
            return {**decided, "micro_rows": self._fitting(decided["rows"], decided["micro_rows"])}
        advice = self._advice() if wants_advice(self.stage) else None
        stage, rows = self.stage, self.stage.rows
        micro = self.context.hardware.micro_rows or largest_micro_batch(
            self.learner, self._plain_stream(), self._share(rows), self.precision, self.device,
            stage.optimizer.state_bytes)
        seconds = self._probe(micro) if stage.budget.minutes else None
        beginning = self.branch.beginning() if self.branch else BEGINNING
        decided = {**self._steps(seconds), "rows": rows, "micro_rows": micro, "seconds_per_step_probed": seconds,
                   **beginning, "advice": advice}
        decided["tokens"] = decided["steps"] * rows * stage.length
        write_json(path, decided)
        return decided

    def _steps(self, seconds: float | None) -> dict[str, Any]:
        """`steps`; `most_steps` by other limits than FLOPs, and, where FLOPs limit them, `stretches` to choose for."""
        budget, row_flops = self.stage.budget, self.learner.flops_per_row or 0.0
        rows, length, tokens = self.stage.rows, self.stage.length, len(self.pool.values("tokens"))
        paying = Paying(self.policy, budget.flops or 0.0, rows, length, row_flops)
        paid, stretches = paying.plan(budget.flops - budget.before) if budget.flops else (0, 0)
        others = budget.without_flops()
        most = others and others.in_steps(rows * length, row_flops * rows or 1.0, tokens, seconds)
        if not budget.flops or (most and most < paid):
            return {"steps": most, "stretches": None, "most_steps": most}
        return {"steps": max(paid, 1), "stretches": stretches, "most_steps": most}

    def _share(self, rows: int) -> int:
        """Rows of a step for each process."""
        if rows % self.processes.data_world:
            raise BadInput(f"A batch of {rows} rows cannot be shared by {self.processes.data_world} processes: choose "
                           f"another `batch_tokens`, `length` or number of processes.")
        return rows // self.processes.data_world

    def _fitting(self, rows: int, micro: int) -> int:
        """The micro-batch of a run that goes on, perhaps with another number of processes: at most as large."""
        share = self._share(rows)
        return max(size for size in range(1, micro + 1) if share % size == 0)

    def _advice(self) -> dict[str, Any]:
        """Settle what the recipe left to the advisor."""
        probe = self._short_probe() if self.stage.budget.minutes else None
        advice = advice_for(self.stage, self.model.config, len(self.pool.values("tokens")), lambda batch:
                            probe.seconds_per_step(batch / self.stage.length) if probe else 0.0)
        self.stage = settled(self.stage, advice)
        tell(advice, self.context.folder.name)
        return advice

    def _plain_stream(self) -> PackedStream:
        """Rows like those of the run, from a policy that asks nobody: for measuring, before there is a probe."""
        return PackedStream(self.pool, PolicyConfig().build(self.pool, self.context.seed), self.stage.length,
                            self.context.seed)

    def _probe(self, micro: int) -> float:
        """Seconds of a step, from a learner that is thrown away."""
        return self._short_probe(micro).seconds_per_step(self.stage.rows)

    def _short_probe(self, micro: int = 1) -> SpeedProbe:
        spare = self.stage.learner(self.pool.vocab_size, 0)
        spare.to(self.device)
        batch = random_batch(self.pool.vocab_size, micro, self.stage.length, self.device)
        return probe_speed(spare, self.stage.optimizer, batch, self.precision, self.device)

    def loop(self) -> Loop:
        """The loop of this stage, ready to run (or to be stepped, by benchmarks and tests)."""
        stage, decided, folder = self.stage, self.decided, self.context.folder
        settings = LoopSettings(
            steps=decided["first_step"] + decided["steps"], rows=decided["rows"], micro_rows=decided["micro_rows"],
            seed=self.context.seed, batch_tokens=decided["rows"] * stage.length, first_step=decided["first_step"],
            tokens_before=decided["tokens_before"],
            clip=stage.clip, precision=self.precision, device=self.device, checkpoint_seconds=stage.checkpoint.seconds,
            checkpoint_steps=stage.checkpoint.steps or stage.checkpoint.keep_every)
        self._averaged_steps(settings.steps)  # refused before training, if there are too few
        identity = {**stage.model_dump(mode="json"), "seed": self.context.seed, "version": stage.version}
        parallel = Parallel(self.learner, self.processes, self.context.hardware.parallel, self.precision, self.device)
        optimizers = {name: stage.optimizer.build(self.learner.parameter_groups(name))
                      for name in self.learner.updates}
        figures = [one.figures for one in optimizers.values() if hasattr(one, "figures")]
        loop = Loop(self.learner, self.stream, optimizers, stage.schedule, settings,
                    self._checkpoints(identity), self._metrics(), self._all_hooks(),
                    [WeighByLoss(self.policy)] if self.policy.needs_losses else [], [self.policy.metrics, *figures],
                    parallel)
        loop.go_on = self.context.command or loop.go_on
        loop.judge = stage.stability.build() if stage.stability else None
        branch = self.branch
        if branch is not None:
            loop.origin = lambda: branch.origin(self.stream, optimizers, folder / "drawn", loop.layout(),
                                                self.processes.main)
        loop.spend(stage.budget.before)
        stretches, row_flops = decided.get("stretches"), self.learner.flops_per_row or 0.0
        self.policy.tell_plan(self.policy.plan(decided["steps"], decided["rows"], stage.length, row_flops, stretches))
        if stage.budget.flops and stretches is not None and branch is None:
            Paying(self.policy, stage.budget.flops, decided["rows"], stage.length, row_flops,
                   decided["most_steps"], stretches).bind(loop, self.stream)
        self.stream.bind(Probe(self.learner, optimizers, settings, self.pool, stage.length, loop.spend, loop.fence))
        return loop

    def _checkpoints(self, identity: dict[str, Any]) -> Checkpoints:
        keep = self.stage.checkpoint
        return Checkpoints(self.context.folder / "checkpoints", identity, keep.keep, keep.keep_every, keep.keep_best,
                           keep.background, self.processes)

    def _metrics(self) -> Metrics:
        folder = self.context.folder
        return MetricsLog(folder / "metrics.jsonl", [TensorBoardSink(folder / "tensorboard")]) if (
            self.processes.main) else NoMetrics()

    def _averaged_steps(self, last: int) -> list[int]:
        """The checkpoints whose mean a run that ends at step `last` ends with, if any."""
        average, first = self.stage.average, self.decided["first_step"]
        return [] if not isinstance(average, LastCheckpoints) else averaging.averaged_steps(
            average, self.stage.checkpoint.keep_every, first, last)

    def _all_hooks(self) -> list[Every]:
        held_out = self._held_out()
        mine = [] if held_out is None else [Every(*held_out)]
        return [*averaging.hooks(self.moving, self.stage.objective, held_out), *mine, *self._hooks()]

    def _held_out(self) -> tuple[int, HeldOutHook] | None:
        """How often (steps), and what, is asked of held-out text, if there is any."""
        every, folder = self.stage.held_out_every, self.pool_folder / "held_out"
        steps = max(1, round(every * self.decided["steps"]) if every < 1 else int(every))
        return (steps, HeldOutHook(Pool.open(folder), self.stage.length, self.stage.held_out_tokens)) if (
            folder.exists()) else None

    def _hooks(self) -> list[Every]:
        inside = self.stage.evaluation
        tasks = [] if inside is None else [inside.hook(self.context.run, self.context.folder, self.pool_folder,
                                                       self.stage.length, self.decided, self.processes.world)]
        folder = self.pool_folder / "held_out"
        if not folder.exists():
            if self.stage.sharpness is not None:
                raise BadInput("`sharpness` is measured on held-out text, and this recipe holds none out (`held_out` "
                               "of its curate stage).")
            return tasks
        more = [] if self.stage.sharpness is None else [
            Every(self.stage.sharpness.steps(self.decided["steps"]),
                  SharpnessHook(self.stage.sharpness, Pool.open(folder), self.stage.length))]
        return [*more, *tasks]

    def run(self) -> dict[str, Any]:
        config = self.model.config
        used = config.parameters(active=True)
        active = f" ({quantity(used)} active for a token)" if used != config.parameters() else ""
        trained = f", {quantity(counted(self.model)[1])} of them trained" if self.stage.lora is not None else ""
        say(f"  {quantity(config.parameters())} parameters{active}{trained}, {self.decided['steps']} steps of "
            f"{self.decided['rows']} x {self.stage.length} positions ({self.decided['micro_rows']} rows at a time), "
            f"{self.precision} on {self.device}")
        loop = self.loop()
        survive = self.stage.survive
        try:
            with Surviving(survive, loop, self.context.folder) if survive else nullcontext():
                at = loop.run()
        finally:
            loop.metrics.close()
        state = whole_state(self.model)
        average = None if self.moving is None else whole_state(self.learner.modules["average"])
        if not self.processes.main:
            return {}
        if steps := self._averaged_steps(at.step):
            average = averaging.mean_of_checkpoints(self.context.folder / "checkpoints", steps)
        self._save(state, average)
        summary = self._summary(loop, vars(at))
        held_out = self._held_out()
        if average is not None and held_out is not None:
            spare = self.stage.learner(self.pool.vocab_size, 0)
            spare.modules["model"].load_state_dict(average)
            spare.to(self.device)
            summary["held_out_average"] = held_out[1].measure(spare, loop.settings)["bits_per_byte"]
        return summary

    def _save(self, state: dict[str, Tensor], average: dict[str, Tensor] | None) -> None:
        """Write the model that later stages read, and beside it the other one where weights were averaged."""
        folders = {"model": state}
        if average is not None and self.stage.average is not None:
            folders = {"model": average, "last": state} if self.stage.average.use else {**folders, "averaged": average}
        for name, weights in folders.items():
            save_model(self.context.folder / name, self.model, self.pool.tokenizer(), merged(self.model, weights))

    def _summary(self, loop: Loop, at: dict[str, Any]) -> dict[str, Any]:
        config = self.model.config
        peak = matmul_peak(self.device, self.precision)
        lines = read_json_lines(self.context.folder / "metrics.jsonl")
        held_out = [line["held_out"] for line in lines if "held_out" in line]
        drawn = served_by_source(self.context.folder, self.pool, self.stream.rows)
        licenses = dict(zip(self.pool.sources, source_licenses(self.pool), strict=True))
        return {
            "parameters": config.parameters(), "parameters_non_embedding": config.parameters(embeddings=False),
            "parameters_active": config.parameters(active=True), "parameters_trained": counted(self.model)[1],
            "tokens": at["tokens"], "steps": at["step"], "epochs": self.stream.epoch, "flops": at["flops"],
            "seconds": at["seconds"], "cpu_seconds": at["cpu_seconds"],
            "tokens_per_second": at["tokens"] / max(at["seconds"], 1e-9), "padded": self.stream.padded,
            "split_units": self.stream.split,
            "peak_memory_bytes": peak_memory(self.device), "matmul_flops_per_second": peak,
            "utilisation": at["flops"] / max(at["seconds"], 1e-9) / peak / self.processes.world,
            "precision": self.precision,
            "device": str(self.device), "micro_rows": self.decided["micro_rows"], "threads": torch.get_num_threads(),
            "processes": self.processes.world, "parallel": vars(self.context.hardware.parallel),
            "final_loss": [line["loss"] for line in lines if "loss" in line][-1],
            "held_out_bits_per_byte": held_out[-1]["bits_per_byte"] if held_out else None,
            "sources": {one["source"]: {"tokens": one["tokens"], "units": one["units"], "documents": one["documents"],
                                        "license": licenses[one["source"]]} for one in drawn},
            "policy": self.policy.report()}


def source_licenses(pool: Pool) -> list[str]:
    """The licences of each source's units, joined where there are several."""
    table = pool.table(["source", "license"]).to_pydict()
    found: dict[str, set[str]] = {}
    for source, name in set(zip(table["source"], table["license"], strict=True)):
        found.setdefault(source, set()).add(name or "unknown")
    return [", ".join(sorted(found.get(source, {"unknown"}))) for source in pool.sources]


class WeighByLoss:
    """The first pass of a weigher that looks at losses: weights of the units of the whole global batch."""

    def __init__(self, policy: Any):
        self.policy, self.starts = policy, policy.weigher.starts

    def first(self, learner: Learner, update: str, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        loss = learner.loss(update, batch, rng)
        return {"loss": loss.total / loss.count.clamp(min=1)}

    def between(self, results: list[dict[str, Tensor]], batches: list[Batch]) -> list[dict[str, Tensor]]:
        units = [batch["unit_id"].shape[0] for batch in batches]
        whole = {key: torch.cat([batch[key] for batch in batches]) for key in ("unit_id", "source", "weight")}
        weights = self.policy.weights(whole, torch.cat([result["loss"] for result in results]))
        return [{"weight": part} for part in weights.to(whole["weight"].device).split(units)]
