"""How managers take blocks from each other, sent or read where they lie; what is damaged, and what is rebuilt."""

import socket

import numpy as np
import pytest

from tilth.train.survive.group import Group, ManagerSettings
from tilth.train.survive.parity import Layout, Xor, write_parity
from tilth.train.survive.recovery import Choice, Holding, fetch
from tilth.train.survive.region import Attached, Region, checksum
from tilth.train.survive.slots import Damaged, Held, Slot, Stamp, Status
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


def test_damaged_parity_is_noticed_and_taken_back(slot):
    slot.parity_room(51)[:] = 7
    slot.protect(slot.parity_room(51), 51, [101] * 3, [slot.held().checksum] * 3)
    assert slot.checked_parity().tolist() == [7] * 51
    slot.parity.bytes[50] ^= 1
    with pytest.raises(Damaged, match="the parity of member 1 at step 4"):
        slot.checked_parity()
    slot.distrust()
    assert slot.status == Status.CLEAN and len(slot.checked_parity()) == 0, "the shard is whole, and is kept"


@pytest.mark.parametrize("right", [True, False])
def test_a_rebuilt_shard_is_held_against_what_the_others_know_of_it(right):
    shards = [np.arange(start, start + 40, dtype=np.uint8) for start in (0, 50, 100)]
    layout, parities = Layout(3, 1), {}
    for member in range(3):
        parities[member] = np.empty(20, np.uint8)
        write_parity(layout, Xor(), member, {(giver, stripe): layout.block(shards[giver], giver, stripe)
                                             for stripe, _ in layout.held(member) for giver in layout.givers(stripe)},
                     parities[member])
    sums = [checksum(shard) for shard in shards]
    sums[2] += not right
    held = [Held(int(Status.PROTECTED), 4, 7, member, 3, 40, sums[member], 20, 0.0, 0, member, [40] * 3, sums)
            for member in range(2)]

    class Manager:
        def __init__(self, address):
            self.member = address["member"]

        def fetch(self, what, **stamp):
            return {}, shards[self.member] if what == "get" else parities[self.member]

    choice = Choice(STAMP, [*(Holding(one, {"host": "elsewhere", "member": one.member}) for one in held), None])
    if right:
        assert fetch(choice, [[0, 1, 2]], Xor(), [2], Manager)[2].tolist() == shards[2].tolist()
    else:
        with pytest.raises(Damaged, match="rebuilt shard of rank 2"):
            fetch(choice, [[0, 1, 2]], Xor(), [2], Manager)
