"""The shared code of the benchmarks: claims, paired ratios, the results file, environments of peers."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from tilth.recipe.errors import RunFailed
from tilth.trial.bench import Claim, Paired, machine, measure, versions, write_results
from tilth.trial.peers import Peer, PeerMissing, environment, environments_folder, unmet

GOOD = Claim("speed", 1.02, "ratio", ">= 0.97", "a bare loop", "how")


def test_a_null_claim_needs_a_reason() -> None:
    with pytest.raises(ValueError, match="say why"):
        Claim("speed", None, "ratio", ">= 0.97")
    assert Claim("speed", None, "ratio", ">= 0.97", reason="no network").met is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_is_a_number(value: float) -> None:
    with pytest.raises(ValueError, match="no measurement"):
        Claim("speed", value, "ratio", "> 1")


@pytest.mark.parametrize("wanted", ["fast", "0.97", "=> 1", ">= fast"])
def test_what_is_wanted_is_a_comparison(wanted: str) -> None:
    with pytest.raises(ValueError):
        Claim("speed", 1.0, "ratio", wanted)


@pytest.mark.parametrize(("value", "wanted", "met"), [
    (0.97, ">= 0.97", True), (0.969, ">= 0.97", False), (1.0, "> 1", False), (-0.01, "< 0", True), (0, "== 0", True),
    (601.0, "<= 600", False)])
def test_claims_know_whether_they_hold(value: float, wanted: str, met: bool) -> None:
    assert Claim("figure", value, "", wanted).met is met


def test_paired_turns_recover_a_planted_ratio_under_a_drifting_machine() -> None:
    rng = np.random.default_rng(3)
    speed = 1000.0

    def side(factor: float) -> float:
        nonlocal speed
        speed *= rng.choice([0.8, 1.0, 1.25], p=[0.05, 0.9, 0.05])  # other work comes and goes
        return speed * factor * rng.normal(1, 0.01)

    paired = measure(lambda: side(0.9), lambda: side(1.0), rounds=60)
    low, high = paired.interval()
    assert len(paired.a) == 60
    assert abs(paired.ratio - 0.9) < 0.01
    assert low <= paired.ratio <= high
    assert high - low < 0.03
    assert paired.interval() == (low, high)


def test_warm_up_turns_are_not_counted() -> None:
    given = iter([1.0, 100.0, 3.0, 2.0, 3.0, 2.0])
    paired = measure(lambda: next(given), lambda: next(given), rounds=2, warmup=1)
    assert (paired.a, paired.b, paired.ratio) == ([3.0, 3.0], [2.0, 2.0], 1.5)
    assert "over 2 pairs" in paired.text("tokens")


def test_one_pair_has_an_interval() -> None:
    assert Paired([2.0], [1.0]).interval() == (2.0, 2.0)


def test_the_results_file_has_the_shape_of_the_design(tmp_path: Path) -> None:
    path = tmp_path / "results" / "example.json"
    write_results(path, [GOOD, Claim("other", None, "s", "<= 600", reason="no run was given")], versions())
    written = json.loads(path.read_text())
    assert set(written) == {"machine", "versions", "claims"}
    assert {"tilth", "python", "torch", "numpy"} <= set(written["versions"])
    assert written["machine"]["threads"] >= 1
    assert [set(claim) for claim in written["claims"]] == [{"name", "value", "unit", "wanted", "peer", "reason"}] * 2
    assert [claim["value"] for claim in written["claims"]] == [1.02, None]


def test_what_a_run_did_not_measure_stays_on_the_same_machine_only(tmp_path: Path) -> None:
    path = tmp_path / "example.json"
    write_results(path, [GOOD], {"torch": "1", "peer": "2"})
    null = Claim("speed", None, "ratio", ">= 0.97", reason="not asked for")
    write_results(path, [null, Claim("other", 2.0, "s", "<= 3")], {"torch": "3"})
    written = json.loads(path.read_text())
    assert {claim["name"]: claim["value"] for claim in written["claims"]} == {"speed": 1.02, "other": 2.0}
    assert written["versions"] == {"torch": "3", "peer": "2"}
    path.write_text(json.dumps({**written, "machine": {**machine(), "cpu": "another"}}))
    write_results(path, [null], {"torch": "3"})
    assert [claim["value"] for claim in json.loads(path.read_text())["claims"]] == [None]


def test_environments_are_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILTH_BENCH_ENVS", str(tmp_path / "by variable"))
    assert environments_folder() == tmp_path / "by variable"
    assert environments_folder(tmp_path / "given") == tmp_path / "given"
    monkeypatch.delenv("TILTH_BENCH_ENVS")
    assert environments_folder().parts[-3:] == (".cache", "tilth", "bench")


def test_requirements_are_compared_with_what_is_installed() -> None:
    version = np.__version__
    assert unmet(Path(sys.executable), [f"numpy=={version}", "pydantic"]) == []
    assert unmet(Path(sys.executable), ["numpy==0.0.1", "no-such-package"]) == ["numpy==0.0.1", "no-such-package"]


def test_a_peer_that_cannot_be_installed_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "peer" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho 'ERROR: No matching distribution found for peer' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", "/bin/true")  # stands for `python -m venv`
    with pytest.raises(PeerMissing, match=r"peer could not be installed.*No matching distribution"):
        environment("peer", ["peer==1"], tmp_path)


def test_a_peer_answers_line_by_line_and_its_death_is_told(tmp_path: Path) -> None:
    script = tmp_path / "echo.py"
    script.write_text("import json, sys\njob = json.loads(sys.argv[1])\n"
                      "for line in sys.stdin:\n"
                      "    value = json.loads(line)['value']\n"
                      "    if value == 0: sys.exit('it broke')\n"
                      "    print(json.dumps({'value': value * job['factor']}), flush=True)\n")
    with Peer(Path(sys.executable), script, {"factor": 3}) as peer:
        assert [peer.ask({"value": value})["value"] for value in (1, 2)] == [3, 6]
        with pytest.raises(RunFailed, match="it broke"):
            peer.ask({"value": 0})
