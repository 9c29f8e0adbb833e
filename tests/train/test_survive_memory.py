"""Managers and their memory: what outlives a worker, what a crash leaves, and that nothing stays behind."""

import contextlib
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
import pytest
import torch
from survive_toys import (
    alive,
    ask,
    crash,
    equal,
    flip_byte,
    is_shared,
    lose_machine,
    restore,
    snapshots_of,
    state_at,
    take,
    together,
)

from tilth.recipe import BadInput, parse
from tilth.train.survive import manager, region, wire
from tilth.train.survive.copier import Copier
from tilth.train.survive.flat import flatten
from tilth.train.survive.group import ManagerSettings
from tilth.train.survive.members import Members, Survive
from tilth.train.survive.region import PAGE, Region
from tilth.train.survive.slots import Status
from tilth.train.survive.wire import Client, Refused

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="regions are files of Linux's /dev/shm")


@pytest.fixture(autouse=True)
def nothing_left(request, tmp_path, monkeypatch):
    """Every test has sockets and shared memory of its own, and leaves nothing there (unless it ends like a crash)."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        monkeypatch.setenv("TILTH_SHARED_MEMORY", memory)
        yield
        monkeypatch.setenv("TILTH_SHARED_MEMORY", memory)
        left = manager.leftovers()
        for one in left:
            manager.clean(one)
        assert manager.leftovers() == []
        assert left == [] or request.node.name.startswith("test_manager_has_its_own")


def slots_of(snapshots) -> dict[str, Region]:
    members = snapshots.members
    names = [f"tilth-{members.key}-{members.exchange.place}-{part}" for part in "ab"]
    return {name: Region.attach(name) for name in names if (region.shared_folder() / name).exists()}


def region_of(snapshots, step: int) -> Region:
    """The region of the slot that holds `step`."""
    steps = {held["step"]: held for held in ask(snapshots, "hello")["slots"]}
    for one in slots_of(snapshots).values():
        if int(one.bytes[:PAGE].view(np.int64)[3]) == step and step in steps:
            return one
    raise AssertionError(f"no slot holds step {step}")


def test_region_is_private_and_outlives_its_creator(tmp_path):
    name = f"tilth-{os.getpid():016x}-0-a"
    script = (f"import os\nfrom tilth.train.survive.region import Region\none = Region.create({name!r}, 5000)\n"
              "one.bytes[:3] = [1, 2, 3]\nos.kill(os.getpid(), 9)")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    found = Region.attach(name)
    try:
        assert stat.S_IMODE(found.path.stat().st_mode) == 0o600
        assert found.bytes[:3].tolist() == [1, 2, 3] and found.size == 2 * PAGE
    finally:
        found.remove()


def test_a_region_that_goes_while_it_is_looked_at_counts_as_gone():
    region.shared_folder().joinpath("tilth-00000000000000aa-3-b").symlink_to("gone")
    found, = manager.leftovers()
    assert (found.place, found.bytes, found.pid) == (3, 0, None)
    manager.clean(found)


def test_too_little_shared_memory_is_bad_input_before_anything_is_written(tmp_path):
    with pytest.raises(BadInput, match=r"MiB free.*--shm-size"):
        Region.create("tilth-0000000000000000-0-a", 1 << 50)
    assert not (region.shared_folder() / "tilth-0000000000000000-0-a").exists()


def test_no_shared_memory_at_all(monkeypatch):
    monkeypatch.setenv("TILTH_SHARED_MEMORY", "/nowhere/shm")
    with pytest.raises(BadInput, match="no /nowhere/shm"):
        region.shared_folder()


def test_manager_has_its_own_session_and_outlives_the_group_of_its_worker(tmp_path):
    script = ("import sys, time\nfrom tilth.train.survive import manager\n"
              "from tilth.train.survive.group import ManagerSettings\n"
              "address = manager.start(ManagerSettings(key='0123456789abcdef', place=0))\n"
              "print(address['socket'], flush=True)\ntime.sleep(60)")
    worker = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True,
                              start_new_session=True)
    path = worker.stdout.readline().strip()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700
    pid = Client(manager.running("0123456789abcdef", 0)).ask("hello")["pid"]
    assert os.getsid(pid) == pid
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGHUP)
    time.sleep(0.1)
    assert alive(pid) and Client(manager.running("0123456789abcdef", 0)).ask("latest_clean") == {"held": None}
    with open(f"/proc/{pid}/maps", encoding="utf-8") as maps:
        assert "torch" not in maps.read(), "a manager loads no torch"


def test_manager_stops_by_itself_when_nobody_comes(tmp_path):
    address = manager.start(ManagerSettings(key="0123456789abcdef", place=0, linger_seconds=0.5))
    pid = Client(address).ask("hello")["pid"]
    until = time.monotonic() + 10
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(pid) and not os.path.exists(address["socket"])


def test_a_run_that_ends_well_leaves_nothing(tmp_path):
    def work(seat):
        snapshots = snapshots_of(seat, tmp_path)
        assert restore(snapshots) is None
        take(snapshots, 10)
        take(snapshots, 20)
        take(snapshots, 30)
        assert snapshots.figures()["snapshot_step"] == 30
        found = {held["step"]: held["status"] for held in ask(snapshots, "hello")["slots"]}
        assert found == {20: Status.PROTECTED, 30: Status.PROTECTED}
        assert all(stat.S_IMODE(one.path.stat().st_mode) == 0o600 for one in slots_of(snapshots).values())
        snapshots.close(over=True)
        return snapshots.members.key

    keys = together(3, work)
    assert not [path for path in region.shared_folder().iterdir() if keys[0] in path.name]
    assert not (tmp_path / "survive.json").exists()


@pytest.mark.parametrize("lost", [[], [0], [2]])
def test_after_a_crash_the_group_goes_on_from_memory(tmp_path, lost):
    def before(seat):
        snapshots = snapshots_of(seat, tmp_path)
        restore(snapshots)
        take(snapshots, 10)
        take(snapshots, 20)
        snapshots.beat(23)
        return snapshots

    crashed = together(4, before)
    for rank, snapshots in enumerate(crashed):
        (lose_machine if rank in lost else crash)(snapshots)

    def after(seat):
        snapshots = snapshots_of(seat, tmp_path)
        state = restore(snapshots, checkpoint=state_at(8))
        snapshots.beat(21)
        return snapshots, state

    found = together(4, after)
    assert all(equal(state, state_at(20, rank)) for rank, (_, state) in enumerate(found))
    line = (tmp_path / "recoveries.jsonl").read_text()
    assert f'"path": "{"parity" if lost else "memory"}", "step": 20, "lost": {lost}, "steps_again": 3' in line

    def on(seat):  # the rebuilt shard is with its new manager, protected again, and the next snapshot is taken
        snapshots = found[seat.rank][0]
        stamp = max((held["step"], held["incarnation"]) for held in ask(snapshots, "hello")["slots"])
        assert stamp[0] == 20
        snapshots.members.client().ask("safe", step=stamp[0], incarnation=stamp[1], wait=30.0)
        take(snapshots, 30)
        snapshots.close(over=True)

    together(4, on)


def test_two_lost_machines_fall_back_to_the_checkpoint(tmp_path, capfd):
    def before(seat):
        snapshots = snapshots_of(seat, tmp_path)
        restore(snapshots)
        take(snapshots, 10)
        return snapshots

    for rank, snapshots in enumerate(together(4, before)):
        (lose_machine if rank in (1, 3) else crash)(snapshots)

    def after(seat):
        snapshots = snapshots_of(seat, tmp_path)
        state = restore(snapshots, checkpoint=state_at(8))
        take(snapshots, 10)
        snapshots.close(over=True)
        return state

    assert all(equal(state, state_at(8)) for state in together(4, after))
    said = capfd.readouterr().err
    assert "step 10: the shards of ranks 1, 3 are lost, and parity can rebuild 1" in said
    assert "restarted from checkpoint at step 8" in said


@pytest.mark.slow
def test_reed_solomon_survives_two_lost_machines(tmp_path):
    pytest.importorskip("zfec", reason="Reed-Solomon needs zfec")
    fields = {"parity": parse(Survive, {"parity": {"kind": "reed_solomon", "losses": 2}}).parity}

    def before(seat):
        snapshots = snapshots_of(seat, tmp_path, **fields)
        restore(snapshots)
        take(snapshots, 10)
        return snapshots

    for rank, snapshots in enumerate(together(4, before)):
        (lose_machine if rank in (0, 3) else crash)(snapshots)

    def after(seat):
        snapshots = snapshots_of(seat, tmp_path, **fields)
        state = restore(snapshots)
        snapshots.close(over=True)
        return state

    assert all(equal(state, state_at(10, rank)) for rank, state in enumerate(together(4, after)))


def test_a_flipped_byte_is_found_and_rebuilt(tmp_path, capfd):
    def before(seat):
        snapshots = snapshots_of(seat, tmp_path)
        restore(snapshots)
        take(snapshots, 10)
        return snapshots

    crashed = together(3, before)
    flip_byte(region_of(crashed[1], 10).bytes, PAGE + 900)
    for snapshots in crashed:
        crash(snapshots)

    def after(seat):
        snapshots = snapshots_of(seat, tmp_path)
        state = restore(snapshots)
        snapshots.close(over=True)
        return state

    assert all(equal(state, state_at(10, rank)) for rank, state in enumerate(together(3, after)))
    assert "member 1 at step 10 changed in memory" in capfd.readouterr().err


class Killed(BaseException):
    """The writer is gone."""


def write_until(snapshots, step: int, bucket: int) -> int:
    """Write a snapshot as the copier does, and die before `bucket`; the number of buckets that were begun."""
    begun = []

    def before(number: int) -> None:
        begun.append(number)
        if number == bucket:
            raise Killed

    rank, world = snapshots.members.exchange.rank, snapshots.members.exchange.world
    snapshots.copier.before_bucket = before
    with contextlib.suppress(Killed):
        flat = flatten(state_at(step, rank), rank, world, shared=is_shared)
        snapshots.copier._copy(threading.Event(), snapshots.members.client, flat, step,
                               snapshots.members.incarnation, None)
    return len(begun)


@pytest.mark.parametrize("victim", [0, 1])
def test_killing_the_writer_at_any_bucket_leaves_the_snapshot_before(tmp_path, victim):
    """Again and again the victim dies before bucket 0, 1, 2 ... of step 20, until it lives to write them all."""
    def before(seat):
        snapshots = snapshots_of(seat, tmp_path, bucket_mib=512 / 2**20)
        restore(snapshots)
        take(snapshots, 10)
        return snapshots

    snapshots, bucket, killed = together(2, before), 0, True
    while killed:
        killed = write_until(snapshots[victim], 20, bucket) == bucket + 1
        if killed:
            for rank in (0, 1):
                assert ask(snapshots[rank], "latest_clean")["held"]["step"] == 10
                assert [held["step"] for held in ask(snapshots[rank], "holdings")["held"]] == [10]
        bucket += killed
    assert bucket > 4, "there must be buckets to die at"
    write_until(snapshots[1 - victim], 20, 10**6)
    for one in snapshots:
        one.members.client().ask("safe", step=20, incarnation=one.members.incarnation, wait=30.0)
    write_until(snapshots[victim], 30, 2)
    for one in snapshots:
        crash(one)

    def after(seat):
        again = snapshots_of(seat, tmp_path, bucket_mib=512 / 2**20)
        state = restore(again)
        again.close(over=True)
        return state

    assert all(equal(state, state_at(20, rank)) for rank, state in enumerate(together(2, after)))


def test_weights_changed_during_the_copy_cannot_mix_two_steps(tmp_path):
    """With the fence, the snapshot is of one step, however slow the copy; without it, the buckets tell two steps."""
    for fenced in (True, False):
        def work(seat, fenced=fenced):
            weights = torch.zeros(4096)
            snapshots = snapshots_of(seat, tmp_path / str(fenced), bucket_mib=2048 / 2**20,
                                     stays=lambda tensor: tensor.data_ptr() == weights.data_ptr())
            restore(snapshots)
            half, moved = threading.Event(), threading.Event()

            def slow(number: int, fenced=fenced) -> None:
                if fenced:
                    time.sleep(0.02)
                elif number == 2:
                    half.set()
                    moved.wait(20)

            snapshots.copier.before_bucket = slow
            snapshots.begin(1, {"at": {"step": 1}, "weights": weights})
            snapshots.fence() if fenced else half.wait(20)
            weights += 1  # the optimizer's step
            moved.set()
            snapshots.fence()
            snapshots.members.client().ask("safe", step=1, incarnation=snapshots.members.incarnation, wait=30.0)
            crash(snapshots)
            again = snapshots_of(seat, tmp_path / str(fenced))
            found = restore(again)["weights"]
            again.close(over=True)
            return found.unique().tolist()

        expected = [0.0] if fenced else [0.0, 1.0]
        assert together(1, work) == [expected], "the test must be able to fail"


class SlowToHear:
    """A manager that takes its time to hear that a shard is written."""

    def __init__(self, name: str):
        self.name, self.asked, self.heard = name, threading.Event(), threading.Event()

    def ask(self, what: str, **fields):
        if what == "written":
            self.asked.set()
            self.heard.wait(20)
        return {"region": self.name}


def test_a_fence_is_of_the_snapshot_begun_last():
    """The one before has passed its fence and is still being told of when the next begins."""
    name = "tilth-0000000000000000-0-a"
    Region.create(name, 1 << 16)
    slow, gate, copier = SlowToHear(name), threading.Event(), Copier(1 << 20)
    flat = flatten({"weights": torch.zeros(500)}, 0, 1)
    copier.submit(lambda: slow, flat, 1, 1)
    copier.fence()
    assert slow.asked.wait(20)
    copier.before_bucket = lambda number: gate.wait(20)
    copier.submit(lambda: slow, flat, 2, 1)
    slow.heard.set()
    waiting = threading.Thread(target=copier.fence)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive(), "not one bucket of the second is copied"
    gate.set()
    waiting.join(20)
    assert not waiting.is_alive()
    copier.stop()
    (region.shared_folder() / name).unlink()


def test_shards_of_two_incarnations_never_mix(tmp_path):
    """A group dies when rank 0 alone has its shard of step 20, and its next life when all but rank 0 have theirs."""
    def before(seat):
        snapshots = snapshots_of(seat, tmp_path)
        restore(snapshots)
        take(snapshots, 10)
        if seat.rank == 0:
            snapshots.begin(20, state_at(20, 0))
            snapshots.fence()
        return snapshots

    for snapshots in together(3, before):
        crash(snapshots)

    def again(seat):
        snapshots = snapshots_of(seat, tmp_path)
        assert restore(snapshots)["at"]["step"] == 10
        if seat.rank:
            snapshots.begin(20, state_at(20, seat.rank))
            snapshots.fence()
        return snapshots

    for snapshots in together(3, again):
        crash(snapshots)

    def after(seat):
        snapshots = snapshots_of(seat, tmp_path)
        state = restore(snapshots)
        snapshots.close(over=True)
        return state["at"]["step"]

    assert together(3, after) == [10, 10, 10]


def test_a_snapshot_that_one_member_missed_costs_that_one_alone(tmp_path, monkeypatch):
    """The others give up its step, keep the one that all have, and the next is taken by all."""
    settings = Members._manager_settings
    monkeypatch.setattr(Members, "_manager_settings", lambda self: settings(self).model_copy(
        update={"patience_seconds": 1.0}))

    def work(seat):
        snapshots = snapshots_of(seat, tmp_path)
        restore(snapshots)
        take(snapshots, 10)
        take(snapshots, 20)
        seat.everyone("both slots are full")
        if seat.rank:
            snapshots.begin(30, state_at(30, seat.rank))
            snapshots.fence()
        time.sleep(2)
        seat.everyone("the others have given up")
        take(snapshots, 40)
        found = sorted(held["step"] for held in ask(snapshots, "hello")["slots"])
        snapshots.close(over=True)
        return found

    assert together(3, work) == [[20, 40]] * 3


def test_snapshots_of_another_recipe_are_not_used(tmp_path):
    def work(seat):
        snapshots = snapshots_of(seat, tmp_path)
        restore(snapshots)
        take(snapshots, 10)
        crash(snapshots)
        other = snapshots_of(seat, tmp_path, recipe=2)
        assert restore(other) is None
        other.close(over=True)

    together(2, work)


def test_a_manager_that_ends_alone_is_replaced_and_its_slots_taken_over(tmp_path, capfd):
    def work(seat):
        snapshots = snapshots_of(seat, tmp_path)
        restore(snapshots)
        take(snapshots, 10)
        seat.everyone("taken")
        if seat.rank == 1:
            pid = ask(snapshots, "hello")["pid"]
            os.kill(pid, signal.SIGKILL)
            # Its sockets close when the last of its threads is gone: one of the next beats notices.
            found = {"pid": pid}
            for step in range(11, 500):
                snapshots.beat(step)
                with contextlib.suppress(OSError, EOFError):
                    found = ask(snapshots, "hello")
                if found["pid"] != pid:
                    break
                time.sleep(0.02)
            assert found["pid"] != pid and [held["step"] for held in found["slots"]] == [10]
        seat.everyone("revived")
        take(snapshots, 20)
        take(snapshots, 30)
        snapshots.close(over=True)

    together(3, work)
    assert "another has taken its place" in capfd.readouterr().err


def test_a_snapshot_without_room_is_bad_input_at_the_first_and_a_word_later(tmp_path, capfd):
    def work(seat):
        snapshots = snapshots_of(seat, tmp_path)
        restore(snapshots)
        with pytest.raises(Refused, match="MiB free") as caught:
            snapshots.members.client().ask("open", step=1, incarnation=1, size=1 << 50)
        assert caught.value.kind == "room"
        snapshots.taken = 1
        with pytest.raises(BadInput, match="MiB free"):
            snapshots._failed(caught.value)
        snapshots.taken = 5
        snapshots._failed(caught.value)
        take(snapshots, 2)
        snapshots.close(over=True)

    together(1, work)
    assert "a snapshot was not taken" in capfd.readouterr().err


def test_shards_on_disk_are_read_when_memory_is_lost(tmp_path):
    def before(seat):
        snapshots = snapshots_of(seat, tmp_path, persist_every=1)
        restore(snapshots)
        for step in (10, 20):
            take(snapshots, step)
            snapshots.beat(step + 5)
            path = tmp_path / "shards" / f"step-{step:08d}" / f"rank-{seat.rank:04d}.shard"
            until = time.monotonic() + 20
            while not path.exists() and time.monotonic() < until:
                time.sleep(0.01)
        return snapshots

    for snapshots in together(2, before):
        lose_machine(snapshots)
    with open(tmp_path / "shards" / "step-00000020" / "rank-0001.shard", "r+b") as file:
        file.truncate(300)  # a file cut short: the set before it is whole

    def after(seat):
        snapshots = snapshots_of(seat, tmp_path, persist_every=1)
        state = restore(snapshots, checkpoint=state_at(3))
        snapshots.beat(11)
        snapshots.close(over=True)
        return state

    assert all(equal(state, state_at(10, rank)) for rank, state in enumerate(together(2, after)))
    assert '"path": "shards", "step": 10' in (tmp_path / "recoveries.jsonl").read_text()


def test_managers_of_other_machines_are_asked_over_tcp_with_the_key():
    secret = "ab" * 32
    address = manager.start(ManagerSettings(key="0123456789abcdef", place=0, secret=secret))
    elsewhere = {"host": "another machine", "socket": "/nowhere", "tcp": ["127.0.0.1", address["tcp"][1]]}
    assert Client(elsewhere, bytes.fromhex(secret)).ask("latest_clean") == {"held": None}
    with pytest.raises(Exception, match=r"digest|closed|reset|EOF"):
        Client(elsewhere, bytes.fromhex("cd" * 32)).ask("latest_clean")
    assert Client(address).ask("latest_clean") == {"held": None}, "a stranger does not stop it"
    manager.stop(address)


def test_a_folder_that_others_may_enter_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "open"))
    (tmp_path / "open" / f"tilth-{os.getuid()}").mkdir(parents=True, mode=0o755)
    with pytest.raises(PermissionError, match="others may enter"):
        wire.runtime_folder()
    (tmp_path / "open" / f"tilth-{os.getuid()}").chmod(0o700)
