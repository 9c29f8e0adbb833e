"""Tracking from trackings: curves, onset, forecasts from other runs and from the past, and the page that shows them."""

import json

import numpy as np
import pytest

from tilth.evaluate.tracking.runs import forecasts, run_curves, started, thinned
from tilth.recipe import BadInput
from tilth.report import write_report
from tilth.stages.track import Tracker, forecast_lines


def tracking(parameters, checkpoints=12, total=12e6, tasks=("copy", "recall"), seed=0):
    rng = np.random.default_rng(seed)
    points = []
    for number in range(1, checkpoints + 1):
        tokens = number / 12 * total
        results = {task: {"accuracy": {"value": 0.25 + 0.05 * at * np.log(number) + 0.002 * rng.standard_normal(),
                                       "stderr": 0.01, "n": 400, "chance": 0.25}} for at, task in enumerate(tasks)}
        results["held_out"] = {"bits_per_byte": {"value": 3 - 0.3 * np.log(number), "stderr": 0.01, "n": 9}}
        points.append({"step": number * 10, "tokens": tokens, "flops": tokens * 6e6, "results": results})
    return {"parameters": parameters, "total_tokens": total, "points": points, "forecasts": [], "started": []}


def test_forecasts_come_from_finished_runs_of_other_sizes():
    history = [tracking(size, total=total, seed=size) for size, total in ((1000, 6e6), (2000, 8e6), (4000, 12e6))]
    made = forecasts("new", tracking(8000), history)
    assert [one["made_at"] for one in made] == [4e6, 5e6, 6e6, 7e6, 8e6, 9e6, 10e6, 11e6]
    assert made[0]["from"] == "3 finished runs"
    copy, recall = made[0]["tasks"]["copy"], made[0]["tasks"]["recall"]
    assert recall["low"] < recall["value"] < recall["high"]
    assert recall["value"] == pytest.approx(recall["happened"], abs=0.02)
    assert copy["value"] == pytest.approx(0.25, abs=0.02)


def test_a_run_alone_forecasts_from_its_own_past_and_widens_with_the_horizon():
    made = forecasts("alone", tracking(8000, checkpoints=6))
    assert [one["from"] for one in made] == ["this run's own past"] * 3
    assert all(one["tasks"]["recall"]["happened"] is None for one in made)
    assert forecasts("alone", tracking(8000, checkpoints=3)) == []


def test_what_started_when():
    found = tracking(8000)
    assert [one["task"] for one in started(run_curves("run", found))] == ["recall", "copy"]
    assert started(run_curves("run", found))[1]["tokens"] is None


def test_the_report_shows_abilities_and_the_forecast(tmp_path):
    found = tracking(8000, tasks=("<script>alert(1)</script>", "recall"))
    found["forecasts"] = forecasts("run", found)
    found["started"] = started(run_curves("run", found))
    (tmp_path / "recipe.yaml").write_text("name: run\nstages: {}\n")
    (tmp_path / "tracking.json").write_text(json.dumps(found))
    page = write_report(tmp_path).read_text()
    assert 'id="abilities"' in page
    assert "<script>" not in page
    assert "this run" in forecast_lines(found)[0]


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(BadInput, match="holds no run"):
        Tracker(tmp_path)


def test_a_size_beyond_the_history_is_said():
    history = [tracking(size, total=total, seed=size) for size, total in ((1000, 6e6), (2000, 8e6))]
    inside, outside = tracking(1500), tracking(8000)
    assert forecasts("in", inside, history)[-1]["beyond"] is None
    assert forecasts("out", outside, history)[-1]["beyond"] == 4.0
    assert forecasts("alone", outside)[-1]["beyond"] is None
    outside["forecasts"] = forecasts("out", outside, history)
    assert "4.0 times beyond" in forecast_lines(outside)[-1]


def test_long_runs_are_thinned_and_the_newest_stays():
    assert thinned([1.0, 2.0]) == [1.0, 2.0]
    found = thinned([float(at) for at in range(500)])
    assert len(found) == 20 and found[0] == 0 and found[-1] == 499
