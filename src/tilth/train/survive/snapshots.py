"""Snapshots of a run: taken while it trains, each costing training a fence, a copy of what does not stay, and a
request."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from tilth.recipe.console import say
from tilth.recipe.errors import BadInput
from tilth.recipe.files import append_json_line, write_json
from tilth.train.survive.account import LOG, account
from tilth.train.survive.copier import Copier
from tilth.train.survive.exchange import Exchange
from tilth.train.survive.flat import flatten
from tilth.train.survive.members import Members, Survive
from tilth.train.survive.restoring import Layout, PathOf, Restart, Restoring
from tilth.train.survive.watchdog import Watchdog
from tilth.train.survive.wire import Refused


class Snapshots:
    """What a worker does with its manager; all calls from its training thread.

    folder: of the stage: the mark of a run that is not over, the log of recoveries, the stacks of hangs, shards on
    disk; identity: JSON of what makes two runs the same; stays: whether a tensor keeps its values from `begin` to
    `fence`; shared: whether it is the same on every rank.
    """

    def __init__(self, settings: Survive, exchange: Exchange, folder: Path, identity: Any,
                 stays: Callable[[Tensor], bool], shared: Callable[[Tensor], bool]):
        self.settings, self.folder, self.stays, self.shared = settings, folder, stays, shared
        # The watchdog first: from here on, waiting for others can last for ever.
        self.watchdog = Watchdog(folder / "stacks", exchange.rank, settings.hang_seconds) if (
            settings.hang_seconds) else None
        self.members = Members(settings, exchange, folder, identity)
        self.copier = Copier(int(settings.bucket_mib * 2**20))
        self.taken = self.missed = self.step = 0
        self.seconds = 0.0  # of training that snapshots took
        self._begun: dict[str, float] = {}
        self._restart: Restart | None = None

    def restore(self, checkpoint_step: int | None, checkpoint: Callable[[], Any], layout: Layout,
                path_of: PathOf) -> Any:
        """The newest state there is, in memory or on disk, or None; the same step on every rank. Once, before the
        first step. See `Restoring`."""
        state, restart = Restoring(self.members, layout, path_of).newest(checkpoint_step, checkpoint)
        if self.members.resumed:
            self._restart = restart
        return state

    def begin(self, step: int, state: Any) -> None:
        """Take a snapshot of the state after `step`. What does not stay is copied here and now, this worker's share of
        the rest until the next fence."""
        self.fence()
        start = time.perf_counter()
        exchange = self.members.exchange
        flat = flatten(state, exchange.rank, exchange.world, self.stays, self.shared)
        self.copier.submit(self.members.client, flat, step, self.members.incarnation)
        self.taken, self.step = self.taken + 1, step
        self.seconds += time.perf_counter() - start
        self._begun = {"snapshot_step": float(step), "snapshot_bytes": float(flat.size)}

    def fence(self) -> None:
        """Wait until what is being copied may change: before an optimizer's step, and before anything else that
        writes to parameters or moments."""
        start = time.perf_counter()
        error = self.copier.fence()
        self.seconds += time.perf_counter() - start
        if error is not None:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        """One snapshot less, said aloud; the one before it is still whole. Without room for the first of a run there
        will never be one: that is an error of the recipe."""
        self.missed += 1
        first = self.missed == self.taken and not self.members.resumed
        if isinstance(error, Refused) and error.kind == "room" and first:
            raise BadInput(str(error)) from error
        say(f"  a snapshot was not taken: {error}")
        if isinstance(error, OSError | EOFError):
            self.members.revive()

    def beat(self, step: int) -> None:
        """A step is done: everything moves."""
        if self.watchdog is not None:
            self.watchdog.beat()
        self.members.beat(step)
        if self._restart is not None:
            self._restart.first_step = time.time() - self._restart.loaded_at
            if self.members.exchange.rank == 0:
                with open(self.folder / LOG, "ab") as log:
                    append_json_line(log, self._restart.line())
            self._restart = None
        every = (self.settings.persist_every or 0) * self.settings.snapshot_steps
        if every and step % every == self.settings.snapshot_steps // 2:
            self.members.client().ask("persist", path=str((self.folder / "shards").resolve()))

    def figures(self) -> dict[str, float]:
        """For the metrics, after a snapshot was begun: its step and bytes; the seconds that all of them so far took
        from training, and how many were missed."""
        found, self._begun = self._begun, {}
        return {**found, "snapshot_seconds": self.seconds, "snapshots_missed": float(self.missed)} if found else {}

    def close(self, over: bool) -> None:
        """over: the run has come to its end, or stopped after a checkpoint: the managers go, and all that they hold.
        Otherwise they stay, for the run that goes on from them."""
        self.copier.stop()
        if over:
            self.members.end()
            if self.members.exchange.rank == 0:
                write_json(self.folder / "survived.json", account(self.folder, self.settings.snapshot_steps))
        if self.watchdog is not None:
            self.watchdog.stop()
