"""Parity over the shards of a sharding group: any `losses` of its members can be rebuilt from the others, exactly.

RAID-5 in memory (RAIM5 of Wang et al. 2023, arXiv 2310.12670), written for any number m of losses. A group of n members
has n stripes; stripe s keeps its parity on the members s, s+1, ..., s+m-1 (mod n) and takes one block of data from each
of the n-m others. So member i cuts its shard into k = n-m blocks, one for each stripe whose parity it does not hold,
and keeps m parity blocks: m/(n-m) of a shard. With m = 1, block j of member i goes to member j, which keeps
P_j = XOR over i != j of D_i^(j). Everything is bytes, so that it is exact for every dtype and every NaN.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from tilth.recipe.frame import Config


class TooFewShards(Exception):
    """More members are lost than the parity can rebuild."""


class Parity(Config):
    """An erasure code over the blocks of one stripe. losses: members of a group that may be lost at once."""

    kind: str = ""
    losses: int = Field(1, ge=0)

    def encode(self, data: Sequence[np.ndarray], which: int, into: np.ndarray) -> None:
        """Write parity block `which` (0 .. losses-1) of the data blocks to `into`, all uint8 (block,). Shorter data
        blocks are taken as padded with zeros."""
        raise TypeError(f"{type(self).__name__} does not define encode.")

    def decode(self, known: Mapping[int, np.ndarray], data_blocks: int) -> list[np.ndarray]:
        """All data blocks from any `data_blocks` blocks of a stripe: data are 0 .. k-1, parity k .. k+losses-1."""
        raise TypeError(f"{type(self).__name__} does not define decode.")


class NoParity(Parity):
    """Shards without protection: a lost node means the newest disk checkpoint; a lost worker does not."""

    kind: str = "none"
    losses: int = Field(0, ge=0, le=0)


class Xor(Parity):
    """Exclusive or: one lost member can be rebuilt (RAID-5 in memory)."""

    kind: str = "xor"
    losses: int = Field(1, ge=1, le=1)

    def encode(self, data: Sequence[np.ndarray], which: int, into: np.ndarray) -> None:
        xor(data, into)

    def decode(self, known: Mapping[int, np.ndarray], data_blocks: int) -> list[np.ndarray]:
        missing = [at for at in range(data_blocks) if at not in known]
        if len(missing) > 1 or len(known) < data_blocks:
            raise TooFewShards(f"{len(missing)} blocks of a stripe are lost; exclusive or can rebuild one.")
        blocks = dict(known)
        for at in missing:
            blocks[at] = xor(list(known.values()), np.empty_like(next(iter(known.values()))))
        return [blocks[at] for at in range(data_blocks)]


PARITIES: dict[str, type[Parity] | str] = {
    "none": NoParity, "xor": Xor, "reed_solomon": "tilth.stages.reed_solomon:ReedSolomon"}


def xor(blocks: Sequence[np.ndarray], into: np.ndarray) -> np.ndarray:
    """Exclusive or of uint8 arrays, the shorter ones padded with zeros, written to `into` and returned."""
    into[:len(blocks[0])] = blocks[0]
    into[len(blocks[0]):] = 0
    for block in blocks[1:]:
        part = into[:len(block)]
        np.bitwise_xor(part, block, out=part)
    return into


@dataclass(frozen=True)
class Layout:
    """Which block goes where, in a group of `members` that may lose `losses` of them."""

    members: int
    losses: int

    def __post_init__(self) -> None:
        if not 0 <= self.losses < self.members:
            raise ValueError(f"{self.members} members cannot survive the loss of {self.losses} of them")

    @property
    def blocks(self) -> int:
        """k: blocks of each member's shard, and data blocks of each stripe."""
        return self.members - self.losses

    def holders(self, stripe: int) -> list[int]:
        """The members that keep the parity of `stripe`, in the order of its parity blocks."""
        return [(stripe + at) % self.members for at in range(self.losses)]

    def givers(self, stripe: int) -> list[int]:
        """The members that give `stripe` a data block, in the order of its data blocks."""
        return [member for member in range(self.members) if member not in self.holders(stripe)]

    def given(self, member: int) -> list[int]:
        """The stripes of `member`'s blocks, in their order in its shard."""
        return [stripe for stripe in range(self.members) if member not in self.holders(stripe)]

    def held(self, member: int) -> list[tuple[int, int]]:
        """(stripe, which of its parity blocks) that `member` keeps."""
        return [((member - at) % self.members, at) for at in range(self.losses)]

    def block_size(self, shard_bytes: int) -> int:
        """Bytes of a block of a shard (the last one is padded with zeros)."""
        return -(-shard_bytes // self.blocks)

    def overhead(self) -> float:
        """Bytes of parity a member keeps, as a share of its shard."""
        return self.losses / self.blocks

    def block(self, shard: np.ndarray, member: int, stripe: int) -> np.ndarray:
        """What `member` gives to `stripe`, not padded, without a copy."""
        own = self.block_size(len(shard))
        at = self.given(member).index(stripe) * own
        return shard[at:at + own]


def write_parity(layout: Layout, code: Parity, member: int, blocks: Mapping[tuple[int, int], np.ndarray],
                 into: np.ndarray) -> None:
    """Write the parity blocks that `member` keeps one after another to `into`, uint8 (losses * block,).

    blocks: uint8 arrays by (giver, stripe), those of the stripes that `member` keeps.
    """
    size = len(into) // max(layout.losses, 1)
    for number, (stripe, which) in enumerate(layout.held(member)):
        code.encode([blocks[giver, stripe] for giver in layout.givers(stripe)], which,
                    into[number * size:(number + 1) * size])


def _padded(block: np.ndarray, size: int) -> np.ndarray:
    return block if len(block) == size else np.concatenate([block, np.zeros(size - len(block), np.uint8)])


def rebuild(layout: Layout, code: Parity, shards: Mapping[int, np.ndarray], parities: Mapping[int, np.ndarray],
            sizes: Sequence[int]) -> dict[int, np.ndarray]:
    """The shards of the members that are not in `shards`, byte for byte.

    shards, parities: of the members that are left; sizes: bytes of every member's shard. Raises TooFewShards, and never
    returns wrong data, where more are lost than `layout.losses`.
    """
    lost = [member for member in range(layout.members) if member not in shards]
    if len(lost) > layout.losses:
        raise TooFewShards(f"Members {', '.join(map(str, lost))} of {layout.members} are lost; the parity can rebuild "
                           f"{layout.losses}.")
    size = max(layout.block_size(one) for one in sizes)
    pieces: dict[int, list[np.ndarray]] = {member: [] for member in lost}
    for stripe in range(layout.members):
        wanted = [member for member in layout.givers(stripe) if member in lost]
        if not wanted:
            continue
        blocks = code.decode(_known(layout, stripe, shards, parities, size), layout.blocks)
        for member in wanted:
            own = layout.block_size(sizes[member])
            pieces[member].append(blocks[layout.givers(stripe).index(member)][:own])
    return {member: np.concatenate(parts)[:sizes[member]] for member, parts in pieces.items()}


def _known(layout: Layout, stripe: int, shards: Mapping[int, np.ndarray], parities: Mapping[int, np.ndarray],
           size: int) -> dict[int, np.ndarray]:
    """The first k blocks of the stripe that are left, by their number in it: data, then parity."""
    known = {at: _padded(layout.block(shards[member], member, stripe), size)
             for at, member in enumerate(layout.givers(stripe)) if member in shards}
    for which, holder in enumerate(layout.holders(stripe)):
        if holder in parities and len(known) < layout.blocks:
            at = [held for held, _ in layout.held(holder)].index(stripe) * size
            known[layout.blocks + which] = parities[holder][at:at + size]
    if len(known) < layout.blocks:
        raise TooFewShards(f"Stripe {stripe} has {len(known)} blocks left and needs {layout.blocks}.")
    return known
