"""Starting a manager, or finding the one that outlived the last worker; asking it; what managers leave behind."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tilth.recipe.errors import RunFailed
from tilth.train.survive import wire
from tilth.train.survive.group import ManagerSettings
from tilth.train.survive.region import NAME, shared_folder
from tilth.train.survive.wire import Address, Client


def start(settings: ManagerSettings) -> Address:
    """The manager of this place, the one that is there or a new one, which takes over slots that lie in memory.

    It is a fresh process in a session of its own (never a fork of this one, which may hold a GPU), so that signals to
    the worker's group do not reach it.
    """
    found = running(settings.key, settings.place)
    if found is not None:
        return found
    command = [sys.executable, "-m", "tilth.train.survive.daemon"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    with open(wire.log_path(settings.key, settings.place), "ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                                   start_new_session=True, env=environment)
    assert process.stdin and process.stdout
    process.stdin.write(json.dumps(settings.model_dump(mode="json")).encode())
    process.stdin.close()
    line = process.stdout.readline()
    if not line:
        said = wire.log_path(settings.key, settings.place).read_text(errors="replace").strip().splitlines()[-1:]
        raise RunFailed(f"The snapshot manager did not start: {said[0] if said else 'it said nothing'}")
    process.stdout.close()
    return json.loads(line)


def running(key: str, place: int) -> Address | None:
    """The address of the manager of a place, if one answers there."""
    path = wire.socket_path(key, place)
    address: Address = {"host": socket.gethostname(), "socket": str(path), "tcp": None}
    try:
        client = Client(address)
        address["tcp"] = client.ask("hello").get("tcp")
        client.close()
        return address
    except (OSError, EOFError):
        return None


@dataclass(frozen=True)
class Leftover:
    """A manager that runs, or what one left: its socket, its log, its regions. bytes: of shared memory."""

    key: str
    place: int
    pid: int | None
    worker: int | None
    step: int | None
    bytes: int
    paths: list[Path]


def leftovers() -> list[Leftover]:
    """All managers of this user on this machine, and everything that managers left, by run and place.

    Runs go on meanwhile: what ends while it is looked at counts as ended.
    """
    paths: dict[tuple[str, int], list[Path]] = {}
    for path in [*shared_folder().iterdir(), *wire.runtime_folder().iterdir()]:
        match = NAME.fullmatch(path.name)
        if match:
            paths.setdefault((match["key"], int(match["member"])), []).append(path)
        elif path.suffix in (".sock", ".log"):
            key, _, place = path.stem.partition("-")
            paths.setdefault((key, int(place)), []).append(path)
    return [_leftover(key, place, found) for (key, place), found in sorted(paths.items())]


def _leftover(key: str, place: int, paths: list[Path]) -> Leftover:
    pid = worker = step = None
    address = running(key, place)
    if address is not None:
        with contextlib.suppress(OSError, EOFError):
            said = Client(address).ask("hello")
            pid = said["pid"]
            worker = said["worker"]["pid"] if said["worker"]["pid"] and not said["worker"]["ended"] else None
            step = max((held["step"] for held in said["slots"]), default=None)
    size = 0
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            size += path.stat().st_size if NAME.fullmatch(path.name) else 0
    return Leftover(key, place, pid, worker, step, size, sorted(paths))


def clean(leftover: Leftover) -> None:
    """Stop the manager, if there is one, and remove what it left."""
    address = running(leftover.key, leftover.place)
    if address is not None:
        stop(address)
    for path in leftover.paths:
        path.unlink(missing_ok=True)


def stop(address: Address, watch: int | None = None) -> None:
    """Ask a manager to end; returns when it has cleared everything. watch: a process whose last work nobody else
    watches: the manager stays until it has ended, and ends it where it was stopped and does not go on."""
    with contextlib.suppress(OSError, EOFError):  # it hangs up as it ends
        Client(address).ask("stop", watch=watch)
