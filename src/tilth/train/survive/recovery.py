"""Which snapshot a group can go on from, and its shards, rebuilt where members are lost."""

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilth.train.survive.parity import Layout, Parity, TooFewShards, rebuild
from tilth.train.survive.region import PAGE, Region, checksum
from tilth.train.survive.slots import Damaged, Held, Stamp, Status
from tilth.train.survive.wire import Address, Client


@dataclass(frozen=True)
class Holding:
    """A shard that some manager holds whole. region: where it lies in memory, if every byte was checked just now."""

    held: Held
    address: Address
    region: str | None = None


@dataclass(frozen=True)
class Choice:
    """The newest step that can be had: for each rank its holding, or None where it must be rebuilt."""

    stamp: Stamp
    holdings: list[Holding | None]

    @property
    def lost(self) -> list[int]:
        return [rank for rank, holding in enumerate(self.holdings) if holding is None]


def choose(found: Sequence[Holding], groups: Sequence[Sequence[int]], losses: int,
           identity: int) -> tuple[Choice | None, list[str]]:
    """The newest step of which every group has all its shards, or parity enough; and, for each newer step that was
    passed over, why. Steps of different incarnations never mix."""
    world = sum(map(len, groups))
    steps: dict[Stamp, list[Holding | None]] = {}
    for holding in found:
        if holding.held.identity == identity and holding.held.rank < world:
            steps.setdefault(holding.held.stamp, [None] * world)[holding.held.rank] = holding
    passed: list[str] = []
    for stamp in sorted(steps, reverse=True):
        why = next((text for group in groups if (text := _missing(group, steps[stamp], losses))), None)
        if why is None:
            return Choice(stamp, steps[stamp]), passed
        passed.append(f"step {stamp.step}: {why}")
    return None, passed


def _missing(group: Sequence[int], holdings: Sequence[Holding | None], losses: int) -> str | None:
    """Why a group cannot go on from these shards; None if it can."""
    lost = [rank for rank in group if holdings[rank] is None]
    if not lost:
        return None
    if len(lost) > losses:
        return f"the shards of ranks {', '.join(map(str, lost))} are lost, and parity can rebuild {losses}"
    bare = [rank for rank in group if (one := holdings[rank]) is not None and one.held.status < Status.PROTECTED]
    return f"the shard of rank {lost[0]} is lost, and rank {bare[0]} has no parity yet" if bare else None


def fetch(choice: Choice, groups: Sequence[Sequence[int]], code: Parity, wanted: Sequence[int],
          client: Callable[[Address], Client]) -> dict[int, np.ndarray]:
    """The shards of the ranks `wanted`, checked; those of lost ranks rebuilt from their group.

    Raises TooFewShards or Damaged, never returns anything else than what was written.
    """
    shards = {rank: _get(choice, rank, "get", client) for rank in wanted if choice.holdings[rank] is not None}
    for group in groups:
        lost = [rank for rank in group if rank in choice.lost and rank in wanted]
        if lost:
            shards |= _rebuilt(choice, group, code, shards, client)
    return {rank: shards[rank] for rank in wanted}


def _rebuilt(choice: Choice, group: Sequence[int], code: Parity, shards: dict[int, np.ndarray],
             client: Callable[[Address], Client]) -> dict[int, np.ndarray]:
    """The lost shards of one group, held against the checksums that the others kept."""
    left = [rank for rank in group if choice.holdings[rank] is not None]
    layout = Layout(len(group), code.losses)
    have = {group.index(rank): shards[rank] if rank in shards else _get(choice, rank, "get", client) for rank in left}
    parities = {group.index(rank): _get(choice, rank, "get_parity", client) for rank in left}
    known = choice.holdings[left[0]]
    assert known is not None
    made = rebuild(layout, code, have, parities, known.held.sizes)
    for member, shard in made.items():
        if checksum(shard) != known.held.checksums[member]:
            raise Damaged(f"the rebuilt shard of rank {group[member]} is not what it was")
    return {group[member]: shard for member, shard in made.items()}


def _get(choice: Choice, rank: int, what: str, client: Callable[[Address], Client]) -> np.ndarray:
    holding = choice.holdings[rank]
    if holding is None:
        raise TooFewShards(f"the shard of rank {rank} is lost")
    if what == "get" and holding.region is not None and holding.address["host"] == socket.gethostname():
        return Region.attach(holding.region).bytes[PAGE:PAGE + holding.held.bytes]  # it need not be sent
    return client(holding.address).fetch(what, step=choice.stamp.step, incarnation=choice.stamp.incarnation)[1]


def holdings_of(said: Sequence[dict[str, Any]]) -> list[Holding]:
    """From what every rank says of its manager: {"address", "held": [...]}."""
    return [Holding(Held(**{name: value for name, value in held.items() if name != "region"}), one["address"],
                    held["region"]) for one in said for held in one["held"]]
