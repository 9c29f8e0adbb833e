"""The snapshot manager: one process beside each worker, in a session of its own, that outlives it.

It owns the two slots in shared memory, works out checksums and parity off the training path, hands shards to whoever
recovers, ends a worker that has stopped moving, and ends itself when told to or when nobody has come for a while.
Started by `tilth.train.survive.manager.start`, which writes its settings to its standard input. Touches no GPU.
"""

import json
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any

import numpy as np

from tilth.recipe.errors import BadInput, RunFailed
from tilth.train.survive import persisted, wire
from tilth.train.survive.group import Group, ManagerSettings
from tilth.train.survive.parity import write_parity
from tilth.train.survive.serving import serve
from tilth.train.survive.slots import Damaged, Slot, Stamp, Status
from tilth.train.survive.watchdog import end_worker, see_out
from tilth.train.survive.wire import Address, Refused


class Manager:
    """The state of one manager. Every connection has a thread of its own (see `serving`); one more does the work behind
    them."""

    def __init__(self, settings: ManagerSettings):
        self.settings = settings
        base = f"tilth-{settings.key}-{settings.place}-"
        self.slots = [Slot.found(base + "a"), Slot.found(base + "b")]
        self.group: Group | None = None
        self.settled: Stamp | None = None  # the newest step that every member has whole, with its parity
        self.checked: set[Stamp] = set()  # of which every byte was checked and nothing written since
        self.changed = threading.Condition()
        self.work: queue.Queue[Callable[[], None]] = queue.Queue()
        self.worker: dict[str, Any] = {"pid": 0, "beat": 0.0, "ended": 0.0, "step": -1}
        self.contact = time.monotonic()
        self.trouble = ""
        self.tcp: list[Any] | None = None  # [host, port] for managers of other machines

    # What can be asked.

    def on_hello(self) -> dict[str, Any]:
        return {"pid": os.getpid(), "worker": self.worker, "trouble": self.trouble, "tcp": self.tcp,
                "slots": [slot.held().to_json() for slot in self.slots if slot.status != Status.EMPTY]}

    def on_holdings(self) -> dict[str, Any]:
        """Headers of the shards that are whole: the newest with every byte checked, and if that is damaged the other
        too. What is damaged is taken back, and said. region: of a checked one, for those on this machine to map."""
        damaged = []
        whole = [slot for slot in self.slots if slot.status >= Status.CLEAN]
        self.checked.clear()
        for slot in sorted(whole, key=lambda one: one.stamp, reverse=True):
            try:
                slot.checked_shard()
                slot.checked_parity()
            except Damaged as error:
                damaged.append(str(error))
                slot.distrust()
            else:
                self.checked.add(slot.stamp)
                break
        held = [{**slot.held().to_json(), "region": slot.base if slot.stamp in self.checked else None}
                for slot in self.slots if slot.status >= Status.CLEAN]
        return {"held": held, "damaged": damaged, "worker": self.worker}

    def on_latest_clean(self) -> dict[str, Any]:
        """The newest shard that is whole: its header, or null."""
        whole = [slot.held() for slot in self.slots if slot.status >= Status.CLEAN]
        newest = max(whole, key=lambda held: held.stamp, default=None)
        return {"held": newest.to_json() if newest else None}

    def on_live(self, pid: int) -> dict[str, Any]:
        """The worker, which keeps this connection open as long as it lives."""
        self.worker = {"pid": pid, "beat": time.time(), "ended": 0.0, "step": -1}
        return {}

    def on_beat(self, step: int) -> None:
        self.worker["beat"], self.worker["step"] = time.time(), step

    def on_join(self, rank: int, member: int, peers: list[Address], identity: int,
                keep: list[int] | None) -> dict[str, Any]:
        """A new incarnation of the group, which goes on from the stamp `keep`; every other slot is forgotten."""
        kept = Stamp(*keep) if keep else None
        try:
            group = Group(self.settings, rank, member, peers, identity)
        except ValueError as error:
            raise Refused("failed", str(error)) from error
        with self.changed:
            if self.group is not None:
                self.group.over = True
            self.group, self.settled, self.trouble = group, None, ""
            for slot in self.slots:
                if slot.status != Status.EMPTY and (slot.status < Status.CLEAN or slot.stamp != kept):
                    slot.forget()
                elif slot.status >= Status.CLEAN:
                    self.work.put(lambda slot=slot: self._protect(slot.stamp))  # type: ignore[misc]
            self.changed.notify_all()
        return {}

    def on_open(self, step: int, incarnation: int, size: int) -> dict[str, Any]:
        """A slot to write `size` bytes into, now DIRTY: an empty one, or the older, once the newer is safe with all."""
        group = self._joined()
        with self.changed:
            slot = next((one for one in self.slots if one.status < Status.CLEAN), None)
            if slot is None:
                slot, newer = sorted(self.slots, key=lambda one: one.stamp)
                self.changed.wait_for(lambda: self.settled == newer.stamp or bool(self.trouble),
                                      self.settings.patience_seconds)
                if self.settled == slot.stamp and self.trouble:
                    slot, newer, self.trouble = newer, slot, ""  # a member missed the newer: the older is what all have
                if self.settled != newer.stamp or self.group is not group:
                    raise Refused("late", f"the snapshot of step {newer.stamp.step} is not yet safe with every member"
                                          + (f": {self.trouble}" if self.trouble else ""))
            self.checked.discard(slot.stamp if slot.region is not None else Stamp(step, incarnation))
            spare = 2 if all(one.region is None for one in self.slots) else 1  # the first must leave room for a second
            try:
                slot.open(Stamp(step, incarnation), size,
                          int((spare - 1) * size + spare * group.layout.overhead() * size), member=group.member,
                          members=len(group.peers), identity=group.identity, rank=group.rank)
            except (BadInput, OSError) as error:
                slot.remove()
                raise Refused("room", str(error)) from error
            assert slot.region is not None
            return {"region": slot.region.path.name}

    def on_written(self, step: int, incarnation: int) -> dict[str, Any]:
        """All bytes are in the slot. Checksum and parity follow on their own."""
        self._slot(Stamp(step, incarnation), Status.DIRTY)
        self.work.put(lambda: self._protect(Stamp(step, incarnation)))
        return {}

    def on_block(self, step: int, incarnation: int, stripe: int, wait: float,
                 sent: bool) -> tuple[dict[str, Any], np.ndarray | None]:
        """What this member gives to `stripe`, with the size and checksum of its whole shard. sent: the bytes; else
        the slot that they lie in, for those on this machine to map."""
        slot, group = self._reached(Stamp(step, incarnation), Status.CLEAN, wait), self._joined()
        held = slot.held()
        said = {"bytes": held.bytes, "checksum": held.checksum, "slot": slot.base}
        return said, group.layout.block(slot.shard(), group.member, stripe) if sent else None

    def on_reached(self, step: int, incarnation: int, status: int, wait: float) -> dict[str, Any]:
        """Answers when this member's shard has come to `status`."""
        self._reached(Stamp(step, incarnation), Status(status), wait)
        return {}

    def on_safe(self, step: int, incarnation: int, wait: float) -> dict[str, Any]:
        """Answers when every member has the step whole, with its parity."""
        with self.changed:
            if not self.changed.wait_for(lambda: self.settled == Stamp(step, incarnation), wait):
                raise Refused("late", f"step {step} is not safe with every member: {self.trouble or 'still waiting'}")
        return {}

    def on_get(self, step: int, incarnation: int) -> tuple[dict[str, Any], np.ndarray]:
        """The shard of a step, checked."""
        return {}, self._slot(Stamp(step, incarnation), Status.CLEAN).checked_shard()

    def on_get_parity(self, step: int, incarnation: int) -> tuple[dict[str, Any], np.ndarray]:
        """The parity that this member keeps for a step, checked."""
        return {}, self._slot(Stamp(step, incarnation), Status.CLEAN).checked_parity()

    def on_persist(self, path: str) -> dict[str, Any]:
        """Write the shard of the newest step that all members have to the folder `path`, behind the worker's back."""
        self.work.put(lambda: self._persist(Path(path)))
        return {}

    def on_stop(self, watch: int | None) -> dict[str, Any]:
        """Clear everything; and end, or stay without a trace until the process `watch` has ended."""
        self.clear()
        if watch is None or not self.settings.hang_seconds:
            os._exit(0)
        threading.Thread(target=see_out, args=(watch, self.settings.hang_seconds), daemon=True).start()
        return {}

    # What happens behind.

    def _protect(self, stamp: Stamp) -> None:
        """Checksum, then parity of the other members' blocks, then wait until all have theirs."""
        group, until = self._joined(), time.monotonic() + self.settings.patience_seconds
        slot = self._slot(stamp, Status.DIRTY)
        if slot.status < Status.CLEAN:
            self._change(slot.close)
        layout, member = group.layout, group.member
        held = slot.held()
        if layout.losses and slot.status < Status.PROTECTED:
            sizes, sums = [held.bytes] * layout.members, [held.checksum] * layout.members
            given = {(giver, stripe): group.given(giver, stripe, stamp, until)
                     for stripe, _ in layout.held(member) for giver in layout.givers(stripe)}
            for (giver, _), one in given.items():
                sizes[giver], sums[giver] = one.bytes, one.checksum
            block = layout.block_size(max(sizes))
            parity = slot.parity_room(layout.losses * block)
            write_parity(layout, group.code, member, {at: one.block for at, one in given.items()}, parity)
            for one in given.values():
                one.check(stamp)
            self._change(lambda: slot.protect(parity, block, sizes, sums))
        wanted = Status.PROTECTED if layout.losses else Status.CLEAN
        for peer in range(layout.members):
            if peer != member:
                group.ask(peer, "reached", until, step=stamp.step, incarnation=stamp.incarnation, status=int(wanted))
        with self.changed:
            self.settled = stamp
            self.changed.notify_all()

    def _persist(self, folder: Path) -> None:
        """Write the shard of the step that every member has."""
        if self.settled is not None:
            slot = self._slot(self.settled, Status.CLEAN)
            persisted.write(folder, slot.held().to_json(), slot.checked_shard())

    def _change(self, change: Callable[[], Any]) -> None:
        with self.changed:
            change()
            self.changed.notify_all()

    def _joined(self) -> Group:
        if self.group is None:
            raise Refused("missing", "no group was joined yet")
        return self.group

    def _slot(self, stamp: Stamp, least: Status) -> Slot:
        for slot in self.slots:
            if slot.status >= max(least, Status.DIRTY) and slot.stamp == stamp:
                return slot
        raise Refused("missing", f"step {stamp.step} of incarnation {stamp.incarnation} is not here")

    def _reached(self, stamp: Stamp, status: Status, wait: float) -> Slot:
        def found() -> Slot | None:
            return next((one for one in self.slots if one.status >= status and one.stamp == stamp), None)
        with self.changed:
            slot = self.changed.wait_for(found, wait)
        if slot is None:
            raise Refused("late", f"step {stamp.step} has not come to {status.name} here")
        return slot

    def do_work(self) -> None:
        while True:
            work = self.work.get()
            try:
                work()
            except (Refused, Damaged, BadInput, RunFailed, OSError) as error:
                with self.changed:
                    self.trouble = str(error)
                    self.changed.notify_all()
                print(f"trouble: {error}", file=sys.stderr, flush=True)

    def watch(self) -> None:
        """Once a second: is the worker still moving, and is anybody still coming?"""
        while True:
            time.sleep(1)
            alive = self.worker["pid"] and not self.worker["ended"]
            if alive:
                self.contact = time.monotonic()
                limit = self.settings.hang_seconds
                if limit and time.time() - self.worker["beat"] > limit + 3:  # 3 s: the worker's own watchdog goes first
                    self.worker["ended"] = time.time()
                    end_worker(int(self.worker["pid"]))
            elif time.monotonic() - self.contact > self.settings.linger_seconds:
                self.end()

    def end(self, *signal: Any) -> None:
        """Leave nothing behind, and end."""
        self.clear()
        os._exit(0)

    def clear(self) -> None:
        """Take away what lies in memory, and what leads to this manager."""
        for slot in self.slots:
            slot.remove()
        wire.socket_path(self.settings.key, self.settings.place).unlink(missing_ok=True)
        wire.log_path(self.settings.key, self.settings.place).unlink(missing_ok=True)


def main() -> None:
    settings = ManagerSettings.model_validate(json.loads(sys.stdin.read()))
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    manager = Manager(settings)
    signal.signal(signal.SIGTERM, manager.end)
    path = wire.socket_path(settings.key, settings.place)
    path.unlink(missing_ok=True)
    os.umask(0o177)
    listeners = [Listener(str(path), "AF_UNIX", backlog=64)]
    os.umask(0o077)
    address: Address = {"host": socket.gethostname(), "socket": str(path), "tcp": None}
    if settings.secret:
        listeners.append(Listener(("", 0), "AF_INET", backlog=64, authkey=bytes.fromhex(settings.secret)))
        manager.tcp = address["tcp"] = [socket.gethostname(), listeners[1].address[1]]
    threads: list[Callable[[], None]] = [manager.do_work, manager.watch,
                                         *[partial(serve, manager, listener) for listener in listeners]]
    for target in threads:
        threading.Thread(target=target, daemon=True).start()
    print(json.dumps(address), flush=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
