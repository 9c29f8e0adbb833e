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
from tilth.trial.agents import Agents
from tilth.trial.namespaces import Nodes


@dataclass
class Target:
    """A run under torchrun. folder: of its training stage; key: of its managers; small_disk, small_memory: whether its
    folder, or its shared memory, lies on a small file system of its own, which may be filled; agents: where it runs on
    nodes, what runs it there."""

    folder: Path
    key: str
    chance: random.Random
    small_disk: bool = False
    small_memory: bool = False
    ballast: list[Path] = field(default_factory=list)
    agents: Agents | None = None

    def members(self) -> list[Leftover]:
        """The managers of the run that have a living worker."""
        return [one for one in left(self.agents) if one.key == self.key and one.worker]

    def number(self, one: Leftover) -> int:
        """Of its node, or its place on this machine."""
        return one.place if self.agents is None or self.agents.nodes is None else node_of(self.agents.nodes, one)

    def free(self) -> None:
        """Take the ballast out again."""
        while self.ballast:
            self.ballast.pop().unlink(missing_ok=True)


def end(pid: int | None, number: int = signal.SIGKILL) -> None:
    with suppress(ProcessLookupError):
        if pid:
            os.kill(pid, number)


def left(agents: Agents | None) -> list[Leftover]:
    """All managers of this machine, or of the nodes that the agents run on, and what managers left."""
    if agents is None or agents.nodes is None:
        return manager.leftovers()
    found = []
    for number in range(len(agents.nodes.addresses)):
        with agents.nodes.inside(number):
            found += manager.leftovers()
    return found


def node_of(nodes: Nodes, one: Leftover) -> int:
    """The node whose folders hold what was found."""
    folders = zip(nodes.runtime, nodes.shared, strict=True)
    return next(number for number, both in enumerate(folders)
                if any(path.is_relative_to(folder) for path in one.paths for folder in both))


def lose_machine(target: Target, one: Leftover) -> None:
    """Worker and manager killed, memory gone; on a node everything that ran there, and its agent."""
    if target.agents is not None and target.agents.nodes is not None:
        target.agents.lose(target.number(one))
        return
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
    return f"worker {target.number(one)}"


def node(target: Target) -> str:
    """One worker and its manager killed, and the manager's memory removed: a lost machine."""
    one = target.chance.choice(target.members())
    lose_machine(target, one)
    return f"node {target.number(one)}"


def nodes(target: Target) -> str:
    """Two lost machines at once: more than one parity can rebuild."""
    first = {target.number(one): one for one in target.members()}
    lost = target.chance.sample(sorted(first), 2)
    for number in lost:
        lose_machine(target, first[number])
    return "nodes " + ", ".join(map(str, lost))


def everything(target: Target) -> str:
    """All workers and managers at once."""
    for one in {target.number(one): one for one in target.members()}.values():
        lose_machine(target, one)
    return "all"


def network(target: Target) -> str:
    """The network of a node fails for longer than a run may stand still; nothing dies of it but by the watchdogs."""
    assert target.agents is not None and target.agents.nodes is not None
    number = target.chance.choice(sorted({target.number(one) for one in target.members()}))
    target.agents.nodes.cut(number)
    try:
        _wait(lambda: not any(target.number(one) != number for one in target.members()), 120.0)
        time.sleep(target.chance.uniform(0.0, 3.0))
    finally:
        target.agents.nodes.mend(number)
    return f"network of node {number} cut"


def hang(target: Target) -> str:
    """SIGSTOP to one worker: it stands still, and the others in their next collective."""
    one = target.chance.choice(target.members())
    end(one.worker, signal.SIGSTOP)
    return f"stopped worker {target.number(one)}"


def stalled_write(target: Target) -> str:
    """The first worker stands still in the middle of writing a checkpoint (or where it is, if it writes none soon)."""
    until = time.monotonic() + 20
    found = False
    while time.monotonic() < until and not found:
        found = any((target.folder / "checkpoints").glob(".step-*.part"))
        time.sleep(0.0005)
    for one in target.members():
        if target.number(one) == 0:
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
    return f"flipped a byte of member {target.number(one)}, killed {worker(target)}"


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
    lose_machine(target, one)
    _fill(shared_folder(), target)
    return f"full shared memory, node {target.number(one)}"


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
                                     "hang": [hang], "storage": storage, "network": [network]}
    return {kind: known[kind] for kind in kinds}


KINDS = ("worker", "node", "nodes", "all", "hang", "storage", "network")


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
    agents = target.agents
    folders = [shared_folder()] if agents is None or agents.nodes is None else agents.nodes.shared
    for path in (path for folder in folders for path in folder.glob(f"tilth-{target.key}-*-[ab]")):
        with suppress(OSError), open(path, "rb") as file:
            if np.frombuffer(file.read(24), np.int64)[2:3].tolist() == [1]:
                return True
    return False
