"""Runs under torchrun for test_processes.py: `spread_scenarios.py FOLDER NAME...`, each scenario in FOLDER/NAME."""

import json
import sys
from pathlib import Path

import torch
from test_accumulation import GatheredTowers, HardestFirst
from train_toys import LENGTH, PackedRows, Pairs, PlainSGD, pool_stream

from tilth.adapt.lora import Lora
from tilth.data.stream import PackedStream
from tilth.models import TransformerConfig
from tilth.objectives import Causal
from tilth.optim import AdamW, Constant, Muon
from tilth.optim.spread import whole_state
from tilth.train import Checkpoints, Every, Learner, Loop, LoopSettings, MetricsLog
from tilth.train.averaging import Ema, MovingAverage
from tilth.train.metrics import NoMetrics
from tilth.train.parallel import Parallel, ParallelSettings
from tilth.train.processes import Processes, start_processes, stop_processes

VOCABULARY = 17


class Share:
    """This process's rows of a stream that knows of one process only."""

    def __init__(self, inner, processes: Processes):
        self.inner, self.processes = inner, processes
        self.observe, self.state_dict, self.load_state_dict = inner.observe, inner.state_dict, inner.load_state_dict

    def next(self, rows):
        start = self.inner.at
        self.inner.at = start + self.processes.data_rank * rows
        batch = self.inner.next(rows)
        self.inner.at = start + self.processes.data_world * rows
        return batch


class Told(PackedStream):
    """Keeps what it was told of units."""

    def observe(self, unit_id, loss):
        self.__dict__.setdefault("told", []).append((unit_id.tolist(), loss.tolist()))
        super().observe(unit_id, loss)


def text_learner(**more) -> Learner:
    config = TransformerConfig(vocab_size=VOCABULARY, layers=2, width=16, heads=2, feed_forward=24, context=LENGTH,
                               **more)
    return Learner(config.build().initialize(0).double(), Causal(z_loss=1e-3), flops_per_row=10.0)


def text_stream(folder: Path, processes: Processes) -> Told:
    whole = pool_stream(folder / "pool")
    return Told(whole.pool, whole.policy, LENGTH, 0, processes.data_rank, processes.data_world)


def build(folder: Path, processes: Processes, settings: ParallelSettings, *, learner=None, stream=None, optimizer=None,
          first_passes=None, steps=4, name="run", background=False, average=None) -> Loop:
    learner = learner or text_learner()
    hooks = [] if average is None else [Every(1, MovingAverage(learner, average))]
    stream = text_stream(folder, processes) if stream is None else Share(stream, processes)
    parallel = Parallel(learner, processes, settings)
    optimizer = optimizer or AdamW(lr=1e-2)
    optimizers = {update: optimizer.build(learner.parameter_groups(update)) for update in learner.updates}
    checkpoints = Checkpoints(folder / name / "checkpoints", {"recipe": 1}, 1, background=background,
                              processes=processes)
    metrics = MetricsLog(folder / name / "metrics.jsonl") if processes.main else NoMetrics()
    return Loop(learner, stream, optimizers, Constant(warmup=0), LoopSettings(steps, 8, 2), checkpoints, metrics,
                hooks, first_passes=first_passes, parallel=parallel)


def plain(**more):
    return {"optimizer": PlainSGD(lr=0.3, weight_decay=0.0), **more}


def mixed(**more):
    """More experts than most micro-batches ask."""
    return {"learner": text_learner(experts={"count": 12, "active": 2, "hidden": 8, **more})}


def adapted():
    """Adapters beside frozen weights."""
    learner = text_learner()
    Lora(rank=2).adapt(learner.modules["model"], 0)
    return learner


SCENARIOS = {
    "replicate": (ParallelSettings(), dict),
    "shard": (ParallelSettings("shard", remember="inputs"), lambda: {"background": True}),
    "hybrid": (ParallelSettings("shard", replicas=2), dict),
    "tensor": (ParallelSettings(tensor=2), dict),
    "tensor_shard": (ParallelSettings("shard", tensor=2), dict),
    "context": (ParallelSettings(context=2), dict),
    "context_shard": (ParallelSettings("shard", context=2), dict),
    "muon": (ParallelSettings("shard"), lambda: {"optimizer": Muon(lr=1e-2)}),
    "hardest": (ParallelSettings(), lambda: plain(stream=PackedRows(), first_passes=[HardestFirst()])),
    "hardest_shard": (ParallelSettings("shard"), lambda: plain(stream=PackedRows(), first_passes=[HardestFirst()])),
    "towers": (ParallelSettings(), lambda: plain(learner=in_double(GatheredTowers()), stream=Pairs())),
    "experts": (ParallelSettings(), mixed),
    "experts_shard": (ParallelSettings("shard", remember="inputs"), mixed),
    "capacity": (ParallelSettings("shard", remember="products"), lambda: mixed(capacity=1.0)),
    "unbalanced": (ParallelSettings(context=2), lambda: plain(**mixed(balance=0.0, router_z=0.1))),
    "adapted": (ParallelSettings("shard"), lambda: {"learner": adapted(), "average": Ema(decay=0.5)}),
    "resume": (ParallelSettings("shard"), lambda: {"optimizer": Muon(lr=1e-2)}),
    "again": (ParallelSettings("shard"), lambda: {"optimizer": Muon(lr=1e-2)}),  # stopped after two steps
}


def in_double(learner: Learner) -> Learner:
    learner.modules.double()
    return learner


def run(folder: Path, name: str, processes: Processes, settings: ParallelSettings | None = None, **more) -> Loop:
    """Run a scenario; the first process writes whole weights, and what the stream was told, beside the metrics."""
    spread, parts = SCENARIOS[name]
    loop = build(folder, processes, spread if settings is None else settings, name=name, **{**parts(), **more})
    loop.run()
    weights = whole_state(loop.learner.modules)
    if processes.main:
        told = getattr(loop.stream, "told", [])
        (folder / name / "end.json").write_text(json.dumps({
            "weights": {key: tensor.tolist() for key, tensor in weights.items()}, "told": told,
            "at": vars(loop.at)}))
    return loop


if __name__ == "__main__":
    torch.set_num_threads(1)
    where, names = Path(sys.argv[1]), sys.argv[2:]
    by_shape: dict[tuple[int, int], Processes] = {}
    for one in names:
        if one == "again":
            names.insert(names.index(one) + 1, "again:4")
            one = "again:2"
        one, _, steps = one.partition(":")
        shape = SCENARIOS[one][0].tensor, SCENARIOS[one][0].context
        if shape not in by_shape:
            by_shape[shape] = start_processes("cpu", *shape)
        run(where, one, by_shape[shape], **({"steps": int(steps)} if steps else {}))
    stop_processes()
    assert all(one.quiet_group is None and one.sum_group is None for one in by_shape.values())
