"""This worker among the workers and managers of its run: who protects whom, and whom to ask."""

import hashlib
import json
import os
import secrets
import socket
import threading
import time
import zlib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tilth.recipe.console import say
from tilth.recipe.files import read_json, write_json
from tilth.recipe.frame import Config, one_of
from tilth.train.survive import manager, wire
from tilth.train.survive.exchange import Exchange
from tilth.train.survive.group import ManagerSettings
from tilth.train.survive.parity import PARITIES, NoParity, Parity, Xor
from tilth.train.survive.placement import place
from tilth.train.survive.wire import Address, Client

MARK = "survive.json"


class Survive(Config):
    """Snapshots in memory that outlive the workers, so that a crash costs at most `snapshot_steps` steps.

    parity: what protects the shards of a lost machine: xor, reed_solomon (losses), none; domains: what fails together:
    each process, each machine, or auto (machines where there are several); persist_every: each so many snapshots the
    managers also write their shards to disk; hang_seconds: a worker without a step for so long writes its stacks and
    is ended, for the launcher to start again (longer than the longest pause between two steps; null: never);
    linger_seconds: how long managers wait for a worker to come back before they clear everything; bucket_mib: copied
    at a time.
    """

    snapshot_steps: int = Field(10, ge=1)
    parity: one_of(Parity, PARITIES) = Xor()  # type: ignore[valid-type]
    domains: Literal["auto", "process", "machine"] = "auto"
    persist_every: int | None = Field(None, ge=1)
    hang_seconds: float | None = Field(600.0, gt=0)
    linger_seconds: float = Field(600.0, gt=0)
    bucket_mib: float = Field(4.0, gt=0)


class Members:
    """Starts (or finds) the manager of this worker and learns what all managers hold: `said`, one dict a rank.

    resumed: whether the run before this one was cut off; groups: ranks that protect each other; code: by what;
    identity: number that shards of this run carry, so that those of another are never used; incarnation: number that
    the shards of this life of the group will carry. Raises BadInput where no grouping survives the losses asked for.
    """

    def __init__(self, settings: Survive, exchange: Exchange, folder: Path, identity: Any):
        self.settings, self.exchange, self.folder = settings, exchange, folder
        self._clients: dict[str, Client] = {}
        self.resumed, token = self._mark()
        self.key = wire.run_key(folder, token)
        hosts = set(exchange.everyone(socket.gethostname()))
        self._secret = hashlib.sha256(f"secret {token}".encode()).hexdigest() if len(hosts) > 1 else None
        if len(hosts) > 1 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            self.tell("  torchrun shares its store between machines, so that one that takes another's place cannot "
                      "join (torch 2.13); set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 where it starts")
        self.address = manager.start(self._manager_settings())
        self.said = exchange.everyone(self._holdings(len(hosts)))
        # One process has nobody to protect it against a lost machine.
        self.code: Parity = settings.parity if exchange.world > 1 else NoParity()
        self.groups = place([one["domain"] for one in self.said], self.code.losses)
        self.group = next(group for group in self.groups if exchange.rank in group)
        self.identity = zlib.crc32(json.dumps([identity, self.groups], sort_keys=True, default=str).encode())
        self.incarnation: int = exchange.everyone(secrets.randbits(62))[0]
        self.life = self._live()

    def _mark(self) -> tuple[bool, str]:
        """(whether an earlier run left its mark, the token in it). The mark goes when a run is over."""
        path, found = self.folder / MARK, None
        if self.exchange.rank == 0:
            resumed = path.exists()
            if not resumed:
                before = os.umask(0o077)  # the token opens the managers to other machines
                write_json(path, {"token": secrets.token_hex(16)})
                os.umask(before)
            found = [resumed, read_json(path)["token"]]
        resumed, token = self.exchange.everyone(found)[0]
        return resumed, token

    def _manager_settings(self) -> ManagerSettings:
        settings = self.settings
        return ManagerSettings(key=self.key, place=self.exchange.place, parity=settings.parity, secret=self._secret,
                               linger_seconds=settings.linger_seconds, hang_seconds=settings.hang_seconds)

    def _holdings(self, hosts: int) -> dict[str, Any]:
        machines = self.settings.domains == "machine" or (self.settings.domains == "auto" and hosts > 1)
        said = self.client().ask("holdings")
        for text in said["damaged"]:
            say(f"  snapshot damaged: {text}")
        return {**said, "address": self.address, "started": process_started(),
                "domain": socket.gethostname() if machines else f"process {self.exchange.rank}"}

    def _live(self) -> Client:
        """The connection whose end tells the manager that this process has ended."""
        life = Client(self.address)
        life.ask("live", pid=os.getpid())
        return life

    def client(self, address: Address | None = None) -> Client:
        """A connection to a manager (this worker's own by default), opened once by each thread that asks."""
        address = address or self.address
        name = f"{threading.get_ident()} {address['host']} {address['socket']}"
        if name not in self._clients:
            self._clients[name] = Client(address, bytes.fromhex(self._secret) if self._secret else None)
        return self._clients[name]

    def join(self, keep: list[int] | None) -> None:
        """Tell the manager who is in its group, and which stamp (step, incarnation) the group goes on from."""
        rank = self.exchange.rank
        self.client().ask("join", rank=rank, member=self.group.index(rank), identity=self.identity, keep=keep,
                          peers=[self.said[other]["address"] for other in self.group])

    def beat(self, step: int) -> None:
        """Tell the manager that a step is done."""
        try:
            self.life.tell("beat", step=step)
        except OSError:
            self.revive()

    def revive(self) -> None:
        """The manager is gone: start another, which takes over the slots that lie in memory."""
        self._clients.clear()
        self.address = manager.start(self._manager_settings())
        say("  the snapshot manager had ended; another has taken its place")
        held = self.client().ask("latest_clean")["held"]
        self.join([held["step"], held["incarnation"]] if held and held["identity"] == self.identity else None)
        self.life = self._live()

    def tell(self, text: str) -> None:
        if self.exchange.rank == 0:
            say(text)

    def end(self) -> None:
        """The run is over: the manager goes, with all that it holds."""
        self.exchange.everyone("over")
        self.life.close()
        # Writing the model is not done in steps, which a beat could tell of, but it can be stopped like anything else.
        manager.stop(self.address, os.getpid() if self.settings.hang_seconds else None)
        if self.exchange.rank == 0:
            (self.folder / MARK).unlink(missing_ok=True)


def process_started() -> float:
    """When this process was started, in seconds since 1970."""
    with open("/proc/self/stat", encoding="utf-8") as file:
        ticks = int(file.read().rpartition(")")[2].split()[19])
    with open("/proc/uptime", encoding="utf-8") as file:
        up = float(file.read().split()[0])
    return time.time() - up + ticks / os.sysconf("SC_CLK_TCK")
