"""The settings of a manager, and the sharding group as one of its managers knows it: how it asks the others, and takes
their blocks, over a connection or, on one machine, from where they lie in shared memory."""

import socket
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilth.recipe.frame import Config, one_of
from tilth.train.survive.parity import PARITIES, Layout, Parity, Xor
from tilth.train.survive.region import PAGE, Attached
from tilth.train.survive.slots import Slot, Stamp, Status
from tilth.train.survive.wire import Address, Client, Refused


class ManagerSettings(Config):
    """place: of the worker on its machine, which names the manager; linger_seconds: how long it waits for a worker
    before it clears everything; hang_seconds: silence after which its worker is ended; patience_seconds: how long it
    waits for the other managers; secret: hexadecimal key for other machines, where there are any."""

    key: str
    place: int
    parity: one_of(Parity, PARITIES) = Xor()  # type: ignore[valid-type]
    linger_seconds: float = 600.0
    hang_seconds: float | None = None
    patience_seconds: float = 10.0
    secret: str | None = None


@dataclass(frozen=True)
class Given:
    """What a member gives to a stripe: `block`, uint8 (n,); bytes, checksum: of its whole shard. lies_in: the slot of
    which `block` is a view, where it was not sent."""

    block: np.ndarray
    bytes: int
    checksum: int
    lies_in: Slot | None = None

    def check(self, stamp: Stamp) -> None:
        """Refused where the giver has begun to write something else there. A slot is DIRTY, or of another stamp,
        before its first byte changes: what was read before this says nothing was read as the snapshot had it."""
        slot = self.lies_in
        if slot is not None and (slot.status < Status.CLEAN or slot.stamp != stamp):
            raise Refused("late", f"a member has gone on from step {stamp.step} while its block was read")


class Group:
    """The sharding group as its worker described it: who is who, and what fits together."""

    def __init__(self, settings: ManagerSettings, rank: int, member: int, peers: list[Address], identity: int):
        self.rank, self.member, self.peers, self.identity = rank, member, peers, identity
        self.code: Parity = settings.parity
        self.layout = Layout(len(peers), self.code.losses if len(peers) > 1 else 0)
        self._secret = bytes.fromhex(settings.secret) if settings.secret else None
        self._clients: dict[int, Client] = {}
        self._slots = Attached()
        self.over = False  # another incarnation has begun

    def ask(self, member: int, what: str, until: float, **fields: Any) -> tuple[dict[str, Any], np.ndarray]:
        """Ask another manager, again and again while it is not so far or cannot be reached; Refused when time is up."""
        while True:
            try:
                if member not in self._clients:
                    self._clients[member] = Client(self.peers[member], self._secret)
                return self._clients[member].fetch(what, wait=min(max(until - time.monotonic(), 0.0), 1.0), **fields)
            except (OSError, EOFError) as error:
                self._clients.pop(member, None)
                trouble: Exception = error
                time.sleep(0.05)
            except Refused as error:
                if error.kind != "late":
                    raise
                trouble = error
            if self.over or time.monotonic() > until:
                raise Refused("late", f"member {member} did not get so far: {trouble}")

    def given(self, giver: int, stripe: int, stamp: Stamp, until: float) -> Given:
        """The block of `giver` for `stripe`. Call its `check` after the last look at it."""
        about = {"step": stamp.step, "incarnation": stamp.incarnation, "stripe": stripe}
        near = self.peers[giver]["host"] == socket.gethostname()
        said, block = self.ask(giver, "block", until, sent=not near, **about)
        if near:
            slot = Slot(said["slot"])
            try:
                slot.region = self._slots.get(said["slot"])
            except FileNotFoundError:  # a machine of the same name, whose memory is not ours
                said, block = self.ask(giver, "block", until, sent=True, **about)
            else:
                shard = slot.region.bytes[PAGE:PAGE + said["bytes"]]
                return Given(self.layout.block(shard, giver, stripe), said["bytes"], said["checksum"], slot)
        return Given(block, said["bytes"], said["checksum"])
