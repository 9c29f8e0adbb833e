"""Chaos runs and the doctor: faults on real managers, hangs that are ended, what is counted; the whole, slow."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from tilth.recipe import BadInput
from tilth.recipe.files import read_json_lines
from tilth.stages.doctor import doctor
from tilth.train.survive import manager
from tilth.train.survive.group import ManagerSettings
from tilth.train.survive.wire import Client
from tilth.trial.chaos import Chaos
from tilth.trial.chaos_result import by_fault, differs, remade
from tilth.trial.faults import Target, faults, flipped_byte, node, nodes, small_file_system, worker

KEY = "00112233445566aa"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="managers need Linux's /dev/shm")


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """Sockets and shared memory of the test's own; nothing stays."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        monkeypatch.setenv("TILTH_SHARED_MEMORY", memory)
        yield
        for one in manager.leftovers():
            manager.clean(one)


class Worker:
    """A process that does nothing, with a manager that holds a shard of `size` bytes for it."""

    def __init__(self, place: int, **settings):
        self.process = subprocess.Popen(["sleep", "300"])
        self.address = manager.start(ManagerSettings(key=KEY, place=place, parity={"kind": "none"}, **settings))
        self.life = Client(self.address)
        self.life.ask("live", pid=self.process.pid)
        client = Client(self.address)
        client.ask("join", rank=0, member=0, peers=[self.address], identity=1, keep=None)
        client.ask("open", step=10, incarnation=1, size=500)
        client.ask("written", step=10, incarnation=1)
        client.ask("safe", step=10, incarnation=1, wait=20.0)

    def ended(self, seconds: float = 20.0) -> int:
        return self.process.wait(seconds)


@pytest.fixture
def three():
    found = [Worker(place) for place in range(3)]
    yield found
    for one in found:
        one.process.kill()
        one.process.wait()


def target(tmp_path, seed=0) -> Target:
    return Target(tmp_path, KEY, random.Random(seed))


def test_a_killed_worker_leaves_its_manager_and_a_lost_machine_leaves_nothing(three, tmp_path):
    assert [one.place for one in target(tmp_path).members()] == [0, 1, 2]
    place = int(worker(target(tmp_path)).split()[1])
    assert three[place].ended() == -signal.SIGKILL
    assert Client(three[place].address).ask("latest_clean")["held"]["step"] == 10
    lost = int(node(target(tmp_path, 5)).split()[1])
    assert three[lost].ended() == -signal.SIGKILL
    assert lost not in [one.place for one in manager.leftovers()]


def test_two_machines_at_once(three, tmp_path):
    lost = [int(place) for place in nodes(target(tmp_path)).removeprefix("nodes ").split(", ")]
    assert len(set(lost)) == 2 and all(three[place].ended() == -signal.SIGKILL for place in lost)
    assert len(manager.leftovers()) == 1


def test_a_flipped_byte_is_noticed_by_the_manager(three, tmp_path):
    said = flipped_byte(target(tmp_path))
    place = int(said.split("member ")[1].split(",")[0])
    answer = Client(three[place].address).ask("holdings")
    assert answer["held"] == [] and "changed in memory" in answer["damaged"][0]
    others = [one for at, one in enumerate(three) if at != place]
    assert all(Client(one.address).ask("holdings")["damaged"] == [] for one in others)


def test_doctor_shows_all_and_removes_only_what_nobody_uses(three, capsys):
    found = doctor(remove=False)
    assert [one["state"] for one in found["found"]] == ["in use"] * 3 and found["removed"] == 0
    three[1].life.close()
    time.sleep(0.1)
    assert [one["state"] for one in doctor(remove=False)["found"]] == ["in use", "waits for its run", "in use"]
    os.kill(Client(three[2].address).ask("hello")["pid"], signal.SIGKILL)
    time.sleep(0.1)
    found = doctor(remove=True)
    assert [one["state"] for one in found["found"]] == ["in use", "waits for its run", "left behind"]
    assert found["removed"] == 2 and [one.place for one in manager.leftovers()] == [0]
    assert "removed" in capsys.readouterr().err


def test_a_worker_that_stands_still_is_ended_by_its_manager():
    still = Worker(0, hang_seconds=0.1)
    still.process.send_signal(signal.SIGSTOP)
    assert still.ended() == -signal.SIGABRT
    assert Client(still.address).ask("hello")["worker"]["ended"] > 0, "and whoever recovers is told when"


@pytest.mark.parametrize("stopped", [True, False])
def test_a_worker_that_is_stopped_after_its_run_is_ended_too(stopped):
    last = Worker(0, hang_seconds=0.5)
    pid = Client(last.address).ask("hello")["pid"]
    manager.stop(last.address, watch=last.process.pid)
    assert manager.leftovers() == [], "it stays without a trace"
    if stopped:
        last.process.send_signal(signal.SIGSTOP)
        assert last.ended() == -signal.SIGABRT
    else:
        time.sleep(1.5)
        assert last.process.poll() is None, "slow is not stopped"
        last.process.kill()
        last.process.wait()
    until = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < until, "the manager goes with it"
        time.sleep(0.05)


def test_a_worker_that_hangs_writes_its_stacks_and_ends(tmp_path):
    script = ("import threading\nfrom pathlib import Path\nfrom tilth.train.survive.watchdog import Watchdog\n"
              f"dog = Watchdog(Path({str(tmp_path)!r}), 3, 0.5)\ndog.beat()\n"
              "def stuck_in_a_collective():\n    threading.Event().wait()\nstuck_in_a_collective()")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "stuck_in_a_collective" in (tmp_path / "rank-3.txt").read_text()


def test_kinds_and_what_they_can_do(tmp_path):
    plain = faults(["storage"], target(tmp_path))["storage"]
    small = faults(["storage"], Target(tmp_path, KEY, random.Random(0), True, True))["storage"]
    assert {one.__name__ for one in small} - {one.__name__ for one in plain} == {"full_disk", "full_memory"}
    with pytest.raises(BadInput, match="not 'meteor'"):
        Chaos("quickstart", [], ["worker", "meteor"], 2, tmp_path)


def test_a_small_file_system_fills_and_goes(tmp_path):
    with small_file_system(tmp_path / "small", 1) as mounted:
        if not mounted:
            pytest.skip("this user may not mount")
        with pytest.raises(OSError, match="No space"):
            (tmp_path / "small" / "file").write_bytes(bytes(2 << 20))
    assert list((tmp_path / "small").iterdir()) == []


def test_what_differs_is_named(tmp_path):
    for name in ("one", "other"):
        for path in ("model", "checkpoints/step-00000004"):
            (tmp_path / name / path).mkdir(parents=True)
        (tmp_path / name / "model" / "model.safetensors").write_bytes(b"weights")
        (tmp_path / name / "checkpoints" / "step-00000004" / "tensors.safetensors").write_bytes(b"moments")
        (tmp_path / name / "metrics.jsonl").write_text(f'{{"step": 1, "loss": 2.5, "seconds": {len(name)}}}\n')
    one, other = tmp_path / "one", tmp_path / "other"
    assert differs(one, other) is None, "the clock may differ"
    (other / "checkpoints" / "step-00000004" / "tensors.safetensors").write_bytes(b"memento")
    assert differs(one, other) == "checkpoints/step-00000004/tensors.safetensors differs"
    (other / "metrics.jsonl").write_text('{"step": 1, "loss": 2.25}\n')
    assert differs(one, other) == "metrics differ from step 1"


def test_a_stage_that_was_made_anew_is_named(tmp_path):
    """A file that is edited in the middle is another text, not a wrong recovery."""
    for name in ("one", "other"):
        for stage in ("curate", "tokenize"):
            (tmp_path / name / stage).mkdir(parents=True)
            (tmp_path / name / stage / "manifest.json").write_text('{"started": "12:00"}')
    one, other = tmp_path / "one", tmp_path / "other"
    assert remade(one, other, ["curate", "tokenize"]) is None
    (other / "tokenize" / "manifest.json").write_text('{"started": "12:01"}')
    assert remade(one, other, ["curate", "tokenize"]) == "tokenize"
    (other / "curate" / "manifest.json").unlink()  # it was just being made again
    assert remade(one, other, ["curate", "tokenize"]) == "curate"


def test_faults_are_summed_up_by_what_they_were():
    recovered = {"path": "memory", "steps_again": 4, "detect": None, "restart": 2.0, "load": 0.5, "first_step": 0.1}
    lines = [{"round": 1, "fault": "worker", "seconds": 3.0, "recovered": recovered},
             {"round": 1, "fault": "worker", "seconds": 5.0,
              "recovered": {**recovered, "path": "parity", "detect": 1.0}},
             {"round": 1, "fault": "hang", "seconds": 9.0, "recovered": None}, {"round": 1, "equal": True}]
    found = by_fault(lines)
    assert found["worker"] == {"times": 2, "paths": {"memory": 1, "parity": 1}, "most_steps_again": 4,
                               "median_seconds": 4.0,
                               "seconds": {"detect": 1.0, "restart": 2.0, "load": 0.5, "first_step": 0.1}}
    assert found["hang"]["times"] == 1 and found["hang"]["seconds"]["load"] is None


def tiny_recipe(folder: Path) -> Path:
    """A recipe of some seconds over a folder of words."""
    words, rng = ["field", "seed", "rain", "plough", "harvest", "grows", "waits"], np.random.default_rng(0)
    (folder / "text").mkdir()
    for number in range(24):
        lines = [" ".join(rng.choice(words, 8)) for _ in range(8)]
        (folder / "text" / f"{number}.txt").write_text(".\n".join(lines))
    stages = {"curate": {"kind": "curate", "inputs": [{"kind": "files", "path": str(folder / "text")}]},
              "tokenize": {"kind": "tokenize", "tokenizer": {"kind": "bytes"}, "unit_tokens": 40},
              "pretrain": {"kind": "pretrain", "length": 32, "batch_tokens": 128, "budget": {"steps": 150},
                           "precision": "fp32", "checkpoint": {"steps": 40}, "survive": {"hang_seconds": 20},
                           "model": {"kind": "transformer", "layers": 1, "width": 16, "heads": 2, "context": 64}}}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({"name": "tiny", "stages": stages}))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "processes", "shard"), [
    ("worker", 2, False), ("node", 2, False), ("nodes", 4, False), ("hang", 2, False), ("storage", 2, False),
    ("node", 2, True)])
def test_a_run_that_was_broken_is_the_run_that_was_not(tmp_path, kind, processes, shard):
    chaos = Chaos(str(tiny_recipe(tmp_path)), [], [kind], processes, tmp_path / "chaos", shard=shard)
    result = chaos.run(2)
    assert result["faults"] >= 2 and result["unequal"] == [] and result["hangs"] == result["left_behind"] == 0
    lines = [line for line in read_json_lines(tmp_path / "chaos" / "kills.jsonl") if "fault" in line]
    assert all(line["recovered"]["steps_again"] <= 60 for line in lines if line["recovered"])
