"""The two slots of a manager: a header, one member's shard of a snapshot, and its parity of the others' shards.

Only the manager writes headers. A slot is DIRTY before its first byte changes and CLEAN when its checksum is in the
header, so that whenever the writer dies, the other slot is whole. PROTECTED: the parity of all members is in place.
"""

import time
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from tilth.train.survive.region import PAGE, Region, check_room, checksum

MAGIC, FORMAT = 0x544C5448, 1
FIELDS = ("magic", "format", "status", "step", "bytes", "checksum", "incarnation", "member", "members", "parity_bytes",
          "parity_checksum", "block", "identity", "rank", "written")
SIZES, MOST_MEMBERS = 32, 160  # where sizes, then checksums, of all members' shards stand in the header
SLACK = 1.125  # the JSON of a state grows a little as a run goes on


class Status(IntEnum):
    EMPTY, DIRTY, CLEAN, PROTECTED = range(4)


class Damaged(Exception):
    """A shard or a parity whose checksum is not that of its header."""


@dataclass(frozen=True, order=True)
class Stamp:
    """What makes shards of different members fit together: the same step of the same incarnation of the group."""

    step: int
    incarnation: int


@dataclass(frozen=True)
class Held:
    """What a slot says of itself; `sizes` and `checksums` of all members' shards only once PROTECTED."""

    status: int
    step: int
    incarnation: int
    member: int
    members: int
    bytes: int
    checksum: int
    block: int
    written: float
    identity: int
    rank: int
    sizes: list[int]
    checksums: list[int]

    @property
    def stamp(self) -> Stamp:
        return Stamp(self.step, self.incarnation)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Slot:
    """One slot in shared memory, named `BASE` (header and shard) and `BASEp` (parity). Made anew where too small."""

    def __init__(self, base: str):
        self.base = base
        self.region: Region | None = None
        self.parity: Region | None = None

    @classmethod
    def found(cls, base: str) -> "Slot":
        """The slot as a manager that died left it; empty where it left none, or something else."""
        slot = cls(base)
        try:
            slot.region = Region.attach(base)
            header = slot._header()
            if slot.region.size < PAGE or header[0] != MAGIC or header[1] != FORMAT:
                slot.region = None
                return slot
            slot.parity = Region.attach(base + "p")
        except (FileNotFoundError, ValueError):
            pass
        if slot.status == Status.PROTECTED and slot.parity is None:
            slot._set("status", Status.CLEAN)
        return slot

    @property
    def status(self) -> Status:
        return Status(self._get("status")) if self.region is not None else Status.EMPTY

    @property
    def stamp(self) -> Stamp:
        return Stamp(self._get("step"), self._get("incarnation"))

    def held(self) -> Held:
        get, header = self._get, self._header()
        members = get("members")
        known = self.status == Status.PROTECTED
        sizes = header[SIZES:SIZES + members].tolist() if known else []
        sums = header[SIZES + MOST_MEMBERS:SIZES + MOST_MEMBERS + members].tolist() if known else []
        return Held(int(self.status), get("step"), get("incarnation"), get("member"), members, get("bytes"),
                    get("checksum"), get("block"), get("written") / 1e9, get("identity"), get("rank"), sizes, sums)

    def open(self, stamp: Stamp, size: int, parity_size: int, **about: int) -> None:
        """DIRTY, with room for `size` bytes; BadInput where shared memory has no room for them and `parity_size` more.
        about: the other fields of the header."""
        if self.region is None or self.region.size < PAGE + size:
            self.region = None
            check_room(int((size + parity_size) * SLACK) + 2 * PAGE)
            self.region = Region.create(self.base, PAGE + int(size * SLACK))
            self._set("magic", MAGIC)
            self._set("format", FORMAT)
        self._set("status", Status.DIRTY)
        for name, value in {"step": stamp.step, "incarnation": stamp.incarnation, "bytes": size, **about}.items():
            self._set(name, value)

    def close(self) -> None:
        """CLEAN, with the checksum of what was written."""
        self._set("checksum", checksum(self.shard()))
        self._set("written", time.time_ns())
        self._set("status", Status.CLEAN)

    def shard(self) -> np.ndarray:
        """The slot's shard, uint8 (bytes,), without a copy."""
        assert self.region is not None
        return self.region.bytes[PAGE:PAGE + self._get("bytes")]

    def checked_shard(self) -> np.ndarray:
        """The shard; Damaged if it is not what was written."""
        if checksum(self.shard()) != self._get("checksum"):
            raise Damaged(f"the shard of member {self._get('member')} at step {self._get('step')} changed in memory")
        return self.shard()

    def parity_room(self, size: int) -> np.ndarray:
        """Where `size` bytes of parity go, before `protect`."""
        if self.parity is None or self.parity.size < size:
            self.parity = Region.create(self.base + "p", int(max(size, 1) * SLACK))
        return self.parity.bytes[:size]

    def protect(self, parity: np.ndarray, block: int, sizes: list[int], checksums: list[int]) -> None:
        """PROTECTED, with `parity`, which stands in its room, over blocks of `block` bytes."""
        header = self._header()
        header[SIZES:SIZES + len(sizes)] = sizes
        header[SIZES + MOST_MEMBERS:SIZES + MOST_MEMBERS + len(checksums)] = checksums
        for name, value in (("parity_bytes", len(parity)), ("parity_checksum", checksum(parity)), ("block", block)):
            self._set(name, value)
        self._set("status", Status.PROTECTED)

    def checked_parity(self) -> np.ndarray:
        """The parity (nothing where there is none yet); Damaged if it is not what was written."""
        if self.status != Status.PROTECTED or self.parity is None:
            return np.empty(0, np.uint8)
        found = self.parity.bytes[:self._get("parity_bytes")]
        if checksum(found) != self._get("parity_checksum"):
            raise Damaged(f"the parity of member {self._get('member')} at step {self._get('step')} changed in memory")
        return found

    def distrust(self) -> None:
        """Take back what the status promises and the bytes do not keep."""
        whole = checksum(self.shard()) == self._get("checksum")
        self._set("status", Status.CLEAN if whole else Status.EMPTY)

    def forget(self) -> None:
        if self.region is not None:
            self._set("status", Status.EMPTY)

    def remove(self) -> None:
        for region in (self.region, self.parity):
            if region is not None:
                region.remove()
        self.region = self.parity = None

    def _header(self) -> np.ndarray:
        assert self.region is not None
        return self.region.bytes[:PAGE].view(np.int64)

    def _get(self, name: str) -> int:
        return int(self._header()[FIELDS.index(name)])

    def _set(self, name: str, value: int) -> None:
        self._header()[FIELDS.index(name)] = value  # one aligned store of 8 bytes: never half a value
