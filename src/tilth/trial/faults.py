"""Faults that chaos runs inject: each ends processes, takes memory or disk away, or damages what is stored."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tilth.train.survive import manager
from tilth.train.survive.manager import Leftover
from tilth.train.survive.region import PAGE, shared_folder


@dataclass
class Target:
    """A run under torchrun. folder: of its training stage; key: of its managers; small_disk, small_memory: whether its
    folder, or its shared memory, lies on a small file system of its own, which may be filled."""

    folder: Path
    key: str
    chance: random.Random
    small_disk: bool = False
    small_memory: bool = False
    ballast: list[Path] = field(default_factory=list)

    def members(self) -> list[Leftover]:
        """The managers of the run that have a living worker."""
        return [one for one in manager.leftovers() if one.key == self.key and one.worker]

    def free(self) -> None:
        """Take the ballast out again."""
        while self.ballast:
            self.ballast.pop().unlink(missing_ok=True)


def end(pid: int | None, number: int = signal.SIGKILL) -> None:
    with suppress(ProcessLookupError):
        if pid:
            os.kill(pid, number)


def lose_machine(one: Leftover) -> None:
    """Worker and manager killed, memory gone."""
    end(one.pid)
    end(one.worker)
    while one.pid and _runs(one.pid):
        time.sleep(0.005)
    manager.clean(one)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def worker(target: Target) -> str:
    """SIGKILL to one worker."""
    one = target.chance.choice(target.members())
    end(one.worker)
    return f"worker {one.place}"


def node(target: Target) -> str:
    """One worker and its manager killed, and the manager's memory removed: a lost machine."""
    one = target.chance.choice(target.members())
    lose_machine(one)
    return f"node {one.place}"


def nodes(target: Target) -> str:
    """Two lost machines at once: more than one parity can rebuild."""
    lost = target.chance.sample(target.members(), 2)
    for one in lost:
        lose_machine(one)
    return "nodes " + ", ".join(str(one.place) for one in lost)


def everything(target: Target) -> str:
    """All workers and managers at once."""
    for one in target.members():
        lose_machine(one)
    return "all"


def hang(target: Target) -> str:
    """SIGSTOP to one worker: it stands still, and the others in their next collective."""
    one = target.chance.choice(target.members())
    end(one.worker, signal.SIGSTOP)
    return f"stopped worker {one.place}"


def stalled_write(target: Target) -> str:
    """The first worker stands still in the middle of writing a checkpoint (or where it is, if it writes none soon)."""
    until = time.monotonic() + 20
    found = False
    while time.monotonic() < until and not found:
        found = any((target.folder / "checkpoints").glob(".step-*.part"))
        time.sleep(0.0005)
    for one in target.members():
        if one.place == 0:
            end(one.worker, signal.SIGSTOP)
    return "stalled write of a checkpoint" if found else "stopped worker 0"


def flipped_byte(target: Target) -> str:
    """One byte of a shard in memory changed, then a worker killed."""
    one = target.chance.choice(target.members())
    regions = [path for path in one.paths if path.name.endswith(("-a", "-b"))]
    for path in regions:
        with open(path, "r+b") as file:
            size = int(np.frombuffer(file.read(PAGE), np.int64)[4])
            at = PAGE + target.chance.randrange(max(size, 1))
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 1]))
    return f"flipped a byte of member {one.place}, killed {worker(target)}"


def cut_file(target: Target) -> str:
    """The newest checkpoint cut short, then everything killed."""
    steps = sorted((target.folder / "checkpoints").glob("step-*"))
    for path in steps[-1:]:
        for file in sorted(path.glob("*.safetensors"))[:1]:
            os.truncate(file, 100)
    everything(target)
    return f"cut {steps[-1].name} short, killed all" if len(steps) > 1 else "all"


def full_disk(target: Target) -> str:
    """The run's disk full for some seconds, while a worker is killed."""
    _fill(target.folder, target)
    said = worker(target)
    time.sleep(target.chance.uniform(1.0, 6.0))
    target.free()
    return f"full disk, {said}"


def full_memory(target: Target) -> str:
    """Shared memory full, and a machine lost: its new manager finds no room until the others make it."""
    one = target.chance.choice(target.members())
    lose_machine(one)
    _fill(shared_folder(), target)
    return f"full shared memory, node {one.place}"


def _fill(folder: Path, target: Target) -> None:
    path = folder / "ballast"
    with open(path, "wb") as file, suppress(OSError):
        while True:
            file.write(b"\0" * (1 << 16))
            file.flush()
    target.ballast.append(path)


Fault = Callable[[Target], str]


def faults(kinds: list[str], target: Target) -> dict[str, list[Fault]]:
    """What each kind can do to this target."""
    storage: list[Fault] = [flipped_byte, cut_file, stalled_write]
    storage += [full_disk] if target.small_disk else []
    storage += [full_memory] if target.small_memory else []
    known: dict[str, list[Fault]] = {"worker": [worker], "node": [node], "nodes": [nodes], "all": [everything],
                                     "hang": [hang], "storage": storage}
    return {kind: known[kind] for kind in kinds}


KINDS = ("worker", "node", "nodes", "all", "hang", "storage")


@contextmanager
def small_file_system(path: Path, mebibytes: int) -> Iterator[bool]:
    """A file system in memory at `path`, if this user may mount one; yields whether."""
    path.mkdir(parents=True, exist_ok=True)
    mounted = os.getuid() == 0 and shutil.which("mount") is not None and _run(
        ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=0700", "none", str(path)])
    try:
        yield mounted
    finally:
        if mounted:
            _run(["umount", "-l", str(path)])


def _run(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0


def moments(target: Target, step_seconds: float) -> dict[str, Callable[[], Any]]:
    """Moments worth dying at: any; while a slot is being written; while a checkpoint is."""
    return {"step": lambda: time.sleep(target.chance.uniform(0, 2 * step_seconds)),
            "snapshot": lambda: _wait(lambda: _dirty(target)),
            "checkpoint": lambda: _wait(lambda: any((target.folder / "checkpoints").glob(".step-*.part")))}


def _wait(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.0005)
    return False


def _dirty(target: Target) -> bool:
    for path in shared_folder().glob(f"tilth-{target.key}-*-[ab]"):
        with suppress(OSError), open(path, "rb") as file:
            if np.frombuffer(file.read(24), np.int64)[2:3].tolist() == [1]:
                return True
    return False
