"""What snapshots cost: one training run in blocks of steps, each block with another way of saving, taking turns.

Run by torchrun: `torchrun ... -m tilth.trial.survival RECIPE.yaml RUN OUT.json --rounds 10`, where RUN holds the
finished stages that the recipe's training reads. Every block waits for its own save to be complete, so that all of its
cost, in all workers and managers, is in its own time. Then one state is loaded from memory and from disk, by turns.
"""

import argparse
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tilth.recipe.files import write_json
from tilth.stages.load import load_recipe
from tilth.stages.pretraining import Pretraining
from tilth.stages.stage import Context, Hardware
from tilth.train.checkpoint import path_of
from tilth.train.loop import Loop
from tilth.train.processes import start_processes, stop_processes
from tilth.train.survive.hook import Surviving
from tilth.train.survive.recovery import choose, holdings_of
from tilth.train.survive.restoring import Restoring
from tilth.trial.trial import only

ARMS = ("plain", "memory", "disk", "async_save")


class Timed:
    """The loop of a recipe with four ways of saving. folder: where the disk ways write."""

    def __init__(self, loop: Loop, surviving: Surviving, folder: Path):
        self.loop, self.snapshots, self.folder = loop, surviving.snapshots, folder
        self.surviving, self.processes = surviving, loop.processes
        self.manager = self.snapshots.members.client().ask("hello")["pid"]
        self._future: Any = None

    def block(self, arm: str, steps: int) -> dict[str, float]:
        """`steps` steps, with one save after the first: seconds of this worker's clock, CPU-seconds of all workers and
        managers, and the seconds that the training thread gave to the save."""
        self.processes.barrier()
        start, cpu, given = time.perf_counter(), self._cpu(), self.snapshots.seconds
        saving = 0.0
        for number in range(steps):
            self.loop.step()
            if number == 0:
                begun = time.perf_counter()
                getattr(self, f"_{arm}")()
                saving = time.perf_counter() - begun
        self._finish(arm)
        self.processes.barrier()
        seconds = time.perf_counter() - start
        [spent] = self.processes.total([self._cpu() - cpu])
        return {"seconds": seconds, "cpu": spent,
                "training": self.snapshots.seconds - given if arm == "memory" else saving}

    def _cpu(self) -> float:
        """CPU-seconds so far of this worker and its manager."""
        with open(f"/proc/{self.manager}/stat", encoding="utf-8") as file:
            ticks = sum(map(int, file.read().rpartition(")")[2].split()[11:13]))
        return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")

    def _plain(self) -> None:
        pass

    def _memory(self) -> None:
        self.surviving.take(self.loop)

    def _disk(self) -> None:
        """torch.save by the first process, synced to disk; the others wait for it in their next collective."""
        if self.processes.main:
            with open(self.folder / "whole.pt", "wb") as file:
                torch.save(self.loop.state(), file)
                file.flush()
                os.fsync(file.fileno())

    def _async_save(self) -> None:
        """torch.distributed.checkpoint.async_save: copies, then writes in a thread, each rank its share."""
        import torch.distributed.checkpoint as dcp
        state = self.loop.state()
        self._future = dcp.async_save({"learner": state["learner"], "optimizers": state["optimizers"]},
                                      checkpoint_id=self.folder / "async",
                                      process_group=self.processes.checkpoint_group)

    def _finish(self, arm: str) -> None:
        if arm == "memory":
            stamp = {"step": self.snapshots.step, "incarnation": self.snapshots.members.incarnation}
            self.snapshots.members.client().ask("safe", wait=60.0, **stamp)
        if arm == "async_save":
            self._future.result()

    def loads(self, times: int) -> dict[str, list[float]]:
        """Seconds to the whole state in the hands of every worker, from memory and from a checkpoint, by turns."""
        self.surviving.take(self.loop)
        self._finish("memory")
        self.loop.save()
        self.loop.checkpoints.wait()
        found: dict[str, list[float]] = {"memory": [], "disk": []}
        for _ in range(times):
            found["memory"].append(self._clocked(self._from_memory))
            found["disk"].append(self._clocked(lambda: self.loop.checkpoints.newest({})))
        return found

    def _clocked(self, load: Callable[[], Any]) -> float:
        self.processes.barrier()
        start = time.perf_counter()
        load()
        self.processes.barrier()
        return time.perf_counter() - start

    def _from_memory(self) -> Any:
        members = self.snapshots.members
        said = members.exchange.everyone({**members.client().ask("holdings"), "address": members.address})
        choice, _ = choose(holdings_of(said), members.groups, members.code.losses, members.identity)
        assert choice is not None and choice.stamp.step == self.loop.at.step
        return Restoring(members, {}, path_of).load(choice)


def copy_bandwidth(size: int = 1 << 26) -> float:
    """Bytes a second of one thread's copy of memory, the best of several."""
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        np.copyto(target, source)
        best = max(best, size / (time.perf_counter() - start))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--block", type=int, default=10)
    arguments = parser.parse_args()
    processes = start_processes("cpu")
    recipe = load_recipe(arguments.recipe)
    stage: Any = recipe.stages[only(recipe, "pretrain")]
    folder = arguments.run / "timed"
    if processes.main:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    processes.barrier()
    pretraining = Pretraining(stage, Context(arguments.run, folder, recipe.seed, Hardware(device="cpu"), "", processes))
    loop = pretraining.loop()
    with Surviving(stage.survive, loop, folder) as surviving:
        loop.restore()
        timed = Timed(loop, surviving, folder)
        timed.block("plain", arguments.block)
        for arm in ARMS[1:]:
            timed.block(arm, 2)  # what is done once: memory reserved, folders made
        blocks = []
        for number in range(arguments.rounds):
            turn = [*ARMS[number % len(ARMS):], *ARMS[:number % len(ARMS)]]
            blocks.append({arm: timed.block(arm, arguments.block) for arm in turn})
        found = {"blocks": blocks, "block": arguments.block, "processes": processes.world, "loads": timed.loads(7),
                 "snapshot_bytes": surviving.snapshots.copier.bytes / surviving.snapshots.taken,
                 "copy_bandwidth": copy_bandwidth(), "parameters": pretraining.model.config.parameters()}
    if processes.main:
        write_json(arguments.out, found)
    stop_processes()


if __name__ == "__main__":
    main()
