"""Going back: the newest state that memory, shards on disk or checkpoints have, and how long it took to be there."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tilth.recipe.console import duration, say
from tilth.recipe.errors import BadInput
from tilth.train.survive import persisted
from tilth.train.survive.flat import stands_alone, unflatten
from tilth.train.survive.members import Members
from tilth.train.survive.parity import TooFewShards
from tilth.train.survive.recovery import Choice, choose, fetch, holdings_of
from tilth.train.survive.region import PAGE, Region
from tilth.train.survive.slots import Damaged
from tilth.train.survive.wire import Refused

Layout = dict[str, Tensor]
PathOf = Callable[[str], str]


@dataclass
class Restart:
    """One line of the log of recoveries. path: memory, parity (memory, and some ranks rebuilt), shards (written to
    disk by managers), checkpoint, beginning; seconds: detect, from the end of the first worker to the start of the
    new ones; restart, until they could look for a state; load; first_step, until the first step was done."""

    path: str
    step: int
    lost: list[int]
    steps_again: int
    detect: float | None
    restart: float
    load: float
    loaded_at: float
    first_step: float = 0.0

    def line(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "loaded_at"}


class Restoring:
    """Finds the state to go on from, the same on every rank; after it, the managers hold what the group goes on from.

    checkpoint_step: of the newest checkpoint on disk, or None; checkpoint: reads it (it may be older: damaged ones are
    passed over). layout, path_of: how tensors are spread, as for checkpoints.
    """

    def __init__(self, members: Members, layout: Layout, path_of: PathOf):
        self.members, self.layout, self.path_of = members, layout, path_of
        self.exchange = members.exchange
        self._own: Any = None

    def newest(self, checkpoint_step: int | None, checkpoint: Callable[[], Any]) -> tuple[Any, Restart]:
        begun = time.time()
        least = -1 if checkpoint_step is None else checkpoint_step
        path, step, lost = "memory", 0, []
        state, choice = self._from_memory(least)
        if choice is not None:
            step, lost = choice.stamp.step, choice.lost
            path = "parity" if lost else "memory"
        else:
            state, step = self._from_shards(least)
            path = "shards"
        if state is None:
            state = checkpoint()
            path, step = ("beginning", 0) if state is None else ("checkpoint", state["at"]["step"])
        self._settle(choice)
        restart = self._restart(path, step, lost, begun)
        if self.members.resumed:
            self.members.tell(f"  restarted from {path} at step {step}, {restart.steps_again} steps to train again"
                              + (f"; rebuilt: rank {', '.join(map(str, lost))}" if lost else "")
                              + f" (loaded in {duration(restart.load)})")
        return state, restart

    def _from_memory(self, least: int) -> tuple[Any, Choice | None]:
        """The newest snapshot of at least step `least`; (None, None) on every rank where one rank could not load it."""
        members = self.members
        choice, passed = choose(holdings_of(members.said), members.groups, members.code.losses, members.identity)
        for text in passed:
            members.tell(f"  snapshot passed over: {text}")
        if choice is None or choice.stamp.step < least:
            return None, None
        state, trouble = None, ""
        try:
            state = self.load(choice)
        except (OSError, EOFError, Refused, Damaged, TooFewShards, ValueError) as error:
            trouble = f"rank {self.exchange.rank}: {error}"
        troubles = [text for text in self.exchange.everyone(trouble) if text]
        if troubles:
            members.tell(f"  the snapshot of step {choice.stamp.step} could not be loaded: {troubles[0]}")
            return None, None
        return state, choice

    def load(self, choice: Choice) -> Any:
        """This rank's state from the shards in memory. OSError, EOFError, Refused, Damaged: one could not be had."""
        members, rank = self.members, self.exchange.rank
        self._own = fetch(choice, members.groups, members.code, [rank], members.client)[rank]
        if stands_alone(self._own):
            return unflatten([self._own], 0, self.layout, self.path_of)
        others = [one for one in range(self.exchange.world) if one != rank]
        shards = fetch(choice, members.groups, members.code, others, members.client) | {rank: self._own}
        return unflatten([shards[one] for one in sorted(shards)], rank, self.layout, self.path_of)

    def _from_shards(self, least: int) -> tuple[Any, int]:
        """The newest whole set of shards on disk later than step `least`."""
        folder, world, rank = self.members.folder / "shards", self.exchange.world, self.exchange.rank
        step = self.exchange.everyone(
            persisted.newest(folder, world, self.members.identity) if rank == 0 else None)[0]
        if step is None or step <= least:
            return None, 0
        try:
            own = persisted.read(folder / persisted.name_of(step, rank))[1]
            if stands_alone(own):
                return unflatten([own], 0, self.layout, self.path_of), step
            shards = [persisted.read(folder / persisted.name_of(step, one))[1] for one in range(world)]
        except OSError as error:
            raise BadInput(f"The shards of step {step} in {folder} can be read by the first process and not by rank "
                           f"{rank} ({error}); the folder must be shared.") from error
        return unflatten(shards, rank, self.layout, self.path_of), step

    def _settle(self, choice: Choice | None) -> None:
        """All managers forget what the group does not go on from; a new one gets back the shard that was lost."""
        members = self.members
        stamp = None if choice is None else {"step": choice.stamp.step, "incarnation": choice.stamp.incarnation}
        members.join(None if choice is None else [choice.stamp.step, choice.stamp.incarnation])
        self.exchange.everyone("joined")
        if stamp is not None and choice is not None and self.exchange.rank in choice.lost:
            try:
                self._give_back(stamp)
            except (Refused, OSError, EOFError) as error:  # full memory: the run goes on, protected again when it can
                say(f"  rank {self.exchange.rank}: the rebuilt shard has no place, and is not protected: {error}")
        self._own = None

    def _give_back(self, stamp: dict[str, int]) -> None:
        size, client = len(self._own), self.members.client()
        region = Region.attach(client.ask("open", size=size, **stamp)["region"])
        region.bytes[PAGE:PAGE + size] = self._own
        client.ask("written", **stamp)

    def _restart(self, path: str, step: int, lost: list[int], begun: float) -> Restart:
        said = self.members.said
        ends = [one["worker"]["ended"] for one in said if one["worker"]["ended"]]
        started = min(one["started"] for one in said)
        reached = max([one["worker"]["step"] for one in said] + [step])
        now = time.time()
        return Restart(path, step, lost, reached - step, max(started - min(ends), 0.0) if ends else None,
                       begun - started, now - begun, now)
