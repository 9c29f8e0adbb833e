"""The part of the page about failures: a row a restart, the account when the run is over, nothing without either."""

import json

from synthetic import make_run

from tilth.report.page import render
from tilth.report.reading import read_run
from tilth.report.survival import MOST_ROWS, survival

RESTART = {"path": "parity", "step": 30, "lost": [1], "steps_again": 7, "detect": None, "restart": 12.5, "load": 0.25,
           "first_step": 0.1}


def test_a_run_that_never_failed_has_no_such_part(tmp_path):
    run = read_run(make_run(tmp_path / "run"))
    assert survival(run) is None and "Failures survived" not in render(run)


def test_each_restart_has_a_row_with_its_parts(tmp_path):
    folder = make_run(tmp_path / "run")
    odd = {**RESTART, "path": "<script>", "step": "<q>", "lost": None}
    (folder / "pretrain" / "recoveries.jsonl").write_text(f"{json.dumps(RESTART)}\n{json.dumps(odd)}\n")
    found = survival(read_run(folder))
    assert found["rows"][0] == {"step": "30", "path": "memory, rebuilt from parity", "lost": "1", "again": "7",
                                "detect": "", "restart": "12 s", "load": "0.2 s", "first_step": "0.1 s"}
    page = render(read_run(folder))
    assert "Failures survived" in page and "<script>" not in page and "<q>" not in page


def test_account_is_one_sentence_and_long_logs_are_cut(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "pretrain" / "recoveries.jsonl").write_text(f"{json.dumps(RESTART)}\n" * (MOST_ROWS + 3))
    (folder / "pretrain" / "survived.json").write_text(json.dumps(
        {"share": 0.031, "forecast": 0.028, "snapshot_steps": 10, "advised_steps": 24, "forecast_there": 0.021}))
    found = survival(read_run(folder))
    assert found["more"] == 3 and len(found["rows"]) == MOST_ROWS
    assert found["account"] == ("Snapshots and failures took 3.1 % of the time; for these failures the formula expects "
                                "2.8 % with a snapshot every 10 steps, and advises one every 24 steps (2.1 %).")
