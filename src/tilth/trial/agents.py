"""torchrun as chaos runs it: one agent on this machine, or one on every node, replaced where a node is lost."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tilth.trial.namespaces import Nodes

RESTARTS = 100_000  # of the workers of an agent
GRACE = 40  # seconds between asking and ending


class Agents:
    """The agents of one run; `start` starts that of a node. An agent that fails while others go on is started again,
    as whoever rents machines would do."""

    def __init__(self, start: Callable[[int], subprocess.Popen[bytes]], nodes: Nodes | None = None, store: Any = None):
        self.start, self.nodes = start, nodes
        self.store = store  # where agents of several nodes find each other; it lives as long as they do
        self.all = [start(number) for number in range(len(nodes.addresses) if nodes else 1)]

    def poll(self) -> int | None:
        """None while the run goes on; then 0, or the code of an agent that failed."""
        codes = [one.poll() for one in self.all]
        if None not in codes:
            return next((code for code in codes if code), 0)
        for number, code in enumerate(codes):
            if code:
                self.all[number] = self.start(number)
        return None

    def wait(self, seconds: float) -> int:
        """The code; TimeoutExpired where the run does not end in so many seconds."""
        until = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired("torchrun", seconds)
            time.sleep(0.05)
        return code

    def lose(self, number: int) -> None:
        """A node goes, with all that ran and lay there, and an empty one takes its place."""
        assert self.nodes is not None
        self.nodes.lose(number)
        self.all[number].wait()
        self.all[number] = self.start(number)

    def end(self) -> None:
        """End what still runs."""
        for one in self.all:
            _signal(one, signal.SIGTERM)
        until = time.monotonic() + GRACE
        for one in self.all:
            with suppress(subprocess.TimeoutExpired):
                one.wait(max(until - time.monotonic(), 0.1))
            _signal(one, signal.SIGKILL)


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def here(arguments: Sequence[str], processes: int, restarts: int, log: Path) -> Agents:
    """One agent on this machine with so many workers."""
    command = [*_torchrun(processes, restarts), "--standalone", *arguments]

    def start(number: int) -> subprocess.Popen[bytes]:
        with open(log, "ab") as file:
            return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True, env=_environment())

    return Agents(start)


def on_nodes(arguments: Sequence[str], processes: int, nodes: Nodes, log: Path) -> Agents:
    """An agent on every node, which find each other at a store outside of them."""
    from torch.distributed import TCPStore
    store: Any = TCPStore(nodes.outside, 0, is_master=True, wait_for_workers=False)
    command = [*_torchrun(processes // len(nodes.addresses), RESTARTS), "--nnodes", str(len(nodes.addresses)),
               "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{nodes.outside}:{store.port}", "--rdzv-id", nodes.name,
               "--rdzv-conf", "is_host=0,keep_alive_interval=1"]
    environment = {**_environment(), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}

    def start(number: int) -> subprocess.Popen[bytes]:
        address = ["--local-addr", nodes.addresses[number]]
        return nodes.start(number, [*command, *address, *arguments], environment, log)

    return Agents(start, nodes, store)


def _torchrun(processes: int, restarts: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--max-restarts",
            str(restarts), "--monitor-interval", "0.05"]


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
