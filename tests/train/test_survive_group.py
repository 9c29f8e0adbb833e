"""How managers take blocks from each other: sent, or read where they lie."""

import socket

import numpy as np
import pytest

from tilth.train.survive.group import Group, ManagerSettings
from tilth.train.survive.region import Attached, Region
from tilth.train.survive.slots import Slot, Stamp
from tilth.train.survive.wire import Refused

KEY, STAMP = "0123456789abcdef", Stamp(4, 7)


@pytest.fixture
def slot(tmp_path, monkeypatch) -> Slot:
    """That of member 1, with the shard of a step."""
    monkeypatch.setenv("TILTH_SHARED_MEMORY", str(tmp_path))
    slot = Slot(f"tilth-{KEY}-1-a")
    write(slot, STAMP, np.arange(101, dtype=np.uint8))
    return slot


def write(slot: Slot, stamp: Stamp, shard: np.ndarray) -> None:
    slot.open(stamp, len(shard), len(shard), member=1, members=3, identity=0, rank=1)
    slot.shard()[:] = shard
    slot.close()


def group_beside(slot: Slot, host: str) -> tuple[Group, list[bool]]:
    """Member 0 of a group of three, whose members are on `host`; and whether each block it asked for was sent."""
    group = Group(ManagerSettings(key=KEY, place=0), 0, 0, [{"host": host, "socket": "", "tcp": None}] * 3, 0)
    asked = []

    def ask(giver, what, until, sent, stripe, **stamp):
        asked.append(sent)
        held = slot.held()
        said = {"bytes": held.bytes, "checksum": held.checksum, "slot": slot.base}
        return said, group.layout.block(slot.shard(), giver, stripe) if sent else np.empty(0, np.uint8)

    group.ask = ask
    return group, asked


def test_a_block_is_the_same_sent_or_read_in_place(slot):
    found = []
    for host in (socket.gethostname(), "elsewhere"):
        group, asked = group_beside(slot, host)
        given = group.given(1, 0, STAMP, until=0.0)
        assert asked == [host == "elsewhere"]
        found.append((given.block.tolist(), given.bytes, given.checksum))
        given.check(STAMP)
    assert found[0] == found[1] == (list(range(51)), 101, slot.held().checksum)


def test_memory_that_is_not_there_is_asked_for(slot):
    group, asked = group_beside(slot, socket.gethostname())
    slot.region.path.unlink()
    assert group.given(1, 2, STAMP, until=0.0).block.tolist() == list(range(51, 101)) and asked == [False, True]


@pytest.mark.parametrize("closed", [False, True])
def test_a_giver_that_goes_on_while_it_is_read_is_noticed(slot, closed):
    given = group_beside(slot, socket.gethostname())[0].given(1, 0, STAMP, until=0.0)
    if closed:
        write(slot, Stamp(6, 7), np.zeros(101, np.uint8))
    else:
        slot.open(Stamp(6, 7), 101, 101)
    with pytest.raises(Refused, match="gone on from step 4"):
        given.check(STAMP)


def test_a_slot_made_anew_does_not_change_what_is_being_read(slot):
    given = group_beside(slot, socket.gethostname())[0].given(1, 0, STAMP, until=0.0)
    write(slot, Stamp(6, 7), np.zeros(9000, np.uint8))  # too large for the region
    assert given.block.tolist() == list(range(51))
    given.check(STAMP)


def test_a_region_is_mapped_once_as_long_as_it_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("TILTH_SHARED_MEMORY", str(tmp_path))
    attached = Attached()
    names = [f"tilth-{KEY}-0-{slot}" for slot in "ab"]
    for name in names:
        Region.create(name, 4096)
    first = [attached.get(name) for name in names]
    assert [attached.get(name) for name in names] == first
    made = Region.create(names[0], 8192)
    assert attached.get(names[0]).inode == made.inode != first[0].inode and attached.get(names[1]) is first[1]
