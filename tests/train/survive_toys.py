"""Groups of workers as threads of one process, each with a real manager; and states to keep."""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import torch

from tilth.train.survive import manager
from tilth.train.survive.members import Survive
from tilth.train.survive.snapshots import Snapshots
from tilth.train.survive.wire import Client

QUICK = {"hang_seconds": None, "linger_seconds": 60.0}


class Meeting:
    """What the threads of a group use for `Exchange`."""

    def __init__(self, world: int):
        self.world, self.barrier, self.values = world, threading.Barrier(world, timeout=60), [None] * world

    def seat(self, rank: int) -> "Seat":
        return Seat(self, rank)


class Seat:
    def __init__(self, meeting: Meeting, rank: int):
        self.meeting, self.rank, self.place, self.world = meeting, rank, rank, meeting.world

    def everyone(self, value):
        self.meeting.values[self.rank] = value
        self.meeting.barrier.wait()
        found = list(self.meeting.values)
        self.meeting.barrier.wait()
        return found


def together(world: int, work) -> list:
    """`work(seat)` in a thread for each rank; their results in order, or the first error."""
    meeting, results, errors = Meeting(world), [None] * world, []

    def run(rank: int) -> None:
        try:
            results[rank] = work(meeting.seat(rank))
        except BaseException as error:
            errors.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def state_at(step: int, rank: int = 0, size: int = 1000) -> dict:
    """A training state in small: replicated tensors of several types, a NaN with a payload, nested numbers and text."""
    generator = torch.Generator().manual_seed(step)
    weights = torch.randn(size, generator=generator)
    weights[3] = torch.tensor(0x7FC01234, dtype=torch.int32).view(torch.float32)
    return {"at": {"step": step, "seconds": step / 3 + rank / 7}, "learner": {
        "weights": weights, "half": weights[:17].bfloat16(), "count": torch.tensor(step), "flags": weights[:5] > 0},
        "optimizers": {"main": {"state": {0: {"exp_avg": weights.flip(0), "step": torch.tensor(float(step))}}}},
        "torch_rng": torch.arange(step + rank, step + rank + 100).to(torch.uint8), "empty": torch.empty(0, 3)}


def equal(one, other) -> bool:
    """Whether two states are the same, bit for bit."""
    if isinstance(one, torch.Tensor):
        return (isinstance(other, torch.Tensor) and one.dtype == other.dtype and one.shape == other.shape
                and raw(one) == raw(other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return one == other


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def snapshots_of(seat, folder: Path, stays=lambda tensor: False, recipe=1, **fields) -> Snapshots:
    """Tensors of more than 100 numbers are shared by all ranks, smaller ones are each rank's own."""
    return Snapshots(Survive(**{**QUICK, **fields}), seat, folder, {"recipe": recipe}, stays, is_shared)


def is_shared(tensor: torch.Tensor) -> bool:
    return tensor.numel() > 100


def restore(snapshots: Snapshots, checkpoint=None):
    """The state that the group goes on from; checkpoint: the newest on disk."""
    step = None if checkpoint is None else checkpoint["at"]["step"]
    return snapshots.restore(step, lambda: checkpoint, {}, lambda name: name)


def take(snapshots: Snapshots, step: int, **more) -> None:
    """A snapshot, waited for until every member has it with its parity."""
    rank = snapshots.members.exchange.rank
    snapshots.begin(step, state_at(step, rank, **more))
    snapshots.fence()
    snapshots.members.client().ask("safe", step=step, incarnation=snapshots.members.incarnation, wait=30.0)


def crash(snapshots: Snapshots) -> None:
    """What is left of a worker that was killed: its manager, and a mark in the stage's folder."""
    snapshots.copier.stop()
    snapshots.members.life.close()


def lose_machine(snapshots: Snapshots) -> None:
    """The manager killed, its memory gone."""
    crash(snapshots)
    pid = snapshots.members.client().ask("hello")["pid"]
    os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + 10
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.01)
    for one in manager.leftovers():
        if (one.key, one.place) == (snapshots.members.key, snapshots.members.exchange.place):
            manager.clean(one)


def alive(pid: int) -> bool:
    """Whether a process runs (one that ended and was not yet waited for does not)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def flip_byte(region_bytes: np.ndarray, at: int) -> None:
    region_bytes[at] ^= 1


def ask(snapshots: Snapshots, what: str, **fields):
    return Client(snapshots.members.address).ask(what, **fields)
