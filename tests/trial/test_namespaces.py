"""Machines made of network namespaces: what is their own, what they reach, how they are lost; a chaos run on them."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tilth.recipe import BadInput
from tilth.trial import agents
from tilth.trial.chaos import Chaos
from tilth.trial.namespaces import Nodes, possible

needs_nodes = pytest.mark.skipif(sys.platform != "linux" or not possible(),
                                 reason="network namespaces need Linux, root and iproute2")
LISTEN = ("import os, pathlib, socket, sys, time; one = socket.create_server(('', 4321)); "
          "pathlib.Path(sys.argv[1]).write_text(socket.gethostname()); pathlib.Path(os.environ['TILTH_SHARED_MEMORY'], "
          "'held').write_text(''); time.sleep(60)")
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], 4321), timeout=float(sys.argv[2]))"


def run(nodes: Nodes, node: int, log: Path, script: str, *arguments: str) -> subprocess.Popen[bytes]:
    return nodes.start(node, [sys.executable, "-c", script, *arguments], dict(os.environ), log)


@needs_nodes
def test_nodes_reach_each_other_by_network_until_it_is_cut_and_end_when_lost(tmp_path):
    def reached(seconds: str) -> bool:
        return run(nodes, 1, tmp_path / "log", CONNECT, nodes.addresses[0], seconds).wait(20) == 0

    with Nodes(2) as nodes:
        listening = run(nodes, 0, tmp_path / "log", LISTEN, str(tmp_path / "name"))
        until = time.monotonic() + 20
        while not (nodes.shared[0] / "held").exists() and time.monotonic() < until:
            time.sleep(0.02)
        assert (tmp_path / "name").read_text() == nodes.addresses[0] != nodes.addresses[1]
        assert reached("5")
        nodes.cut(0)
        assert not reached("0.5")
        nodes.mend(0)
        assert reached("5"), "the server was there all the time"
        nodes.lose(0)
        assert listening.wait(20) < 0 and not list(nodes.shared[0].iterdir())
        assert not reached("0.5")
        folders = [*nodes.shared, *nodes.runtime]
    assert not any(folder.exists() for folder in folders)
    assert nodes.name not in subprocess.run(["ip", "link"], capture_output=True, text=True).stdout


@needs_nodes
def test_inside_is_left_as_it_was(monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/before")
    monkeypatch.delenv("TILTH_SHARED_MEMORY", raising=False)
    with Nodes(1) as nodes, nodes.inside(0):
        assert os.environ["XDG_RUNTIME_DIR"] == str(nodes.runtime[0])
        assert os.environ["TILTH_SHARED_MEMORY"] == str(nodes.shared[0])
    assert os.environ["XDG_RUNTIME_DIR"] == "/before" and "TILTH_SHARED_MEMORY" not in os.environ


def test_an_agent_that_fails_alone_is_started_again(tmp_path):
    starts = []

    def start(number: int) -> subprocess.Popen[bytes]:
        starts.append(number)
        fails = number == 1 and starts.count(1) == 1
        return subprocess.Popen(["sh", "-c", "exit 3" if fails else "sleep 0.5"])

    two = agents.Agents(start)
    two.all = [start(0), start(1)]
    assert two.wait(20) == 0 and starts == [0, 0, 1, 1]
    alone = agents.Agents(lambda number: subprocess.Popen(["sh", "-c", "exit 4"]))
    assert alone.wait(20) == 4, "nobody is left for whom it could go on"


def test_what_nodes_cannot_be_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("tilth.trial.chaos.possible", lambda: True)
    with pytest.raises(BadInput, match="3 processes cannot be spread evenly over 2 nodes"):
        Chaos("quickstart", [], ["worker"], 3, tmp_path, nodes=2)
    with pytest.raises(BadInput, match="give --nodes too"):
        Chaos("quickstart", [], ["network"], 2, tmp_path)
    monkeypatch.setattr("tilth.trial.chaos.possible", lambda: False)
    with pytest.raises(BadInput, match="takes Linux, root and iproute2"):
        Chaos("quickstart", [], ["worker"], 2, tmp_path, nodes=2)


@pytest.mark.slow
@needs_nodes
def test_a_run_goes_on_when_machines_and_links_are_lost(tmp_path):
    recipe = Path(__file__).parents[2] / "benchmarks" / "survival_chaos.yaml"
    docs = tmp_path / "text"
    docs.mkdir()
    for number in range(12):
        (docs / f"{number}.md").write_text("".join(f"Line {number * at} of {at}.\n\n" for at in range(400)))
    found = Chaos(str(recipe), [f"curate.inputs.0.path={docs}", "curate.held_out.share=0.2"], ["node", "network"], 3,
                  tmp_path / "chaos", nodes=3).run(3)
    assert found["faults"] == 3 and not found["unequal"] and not found["hangs"] and not found["left_behind"]
