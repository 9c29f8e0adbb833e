"""The part of the page about selection by the model: drift, predictions, costs; nothing where nothing was measured."""

import json

import numpy as np
import pytest
from synthetic import make_run

from tilth.report.choosing import choosing
from tilth.report.page import render
from tilth.report.reading import read_run


def measured(stretch, anchors, **figures):
    return {"stretch": stretch, "spearman": 0.5, "selectivity": 0.8, "anchors": anchors, "probed": 150, **figures}


def with_selector(folder, selector):
    path = folder / "pretrain" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["summary"] = {**manifest["summary"], "flops": 1e12, "policy": {"selector": selector}}
    path.write_text(json.dumps(manifest))
    return folder


def test_a_run_that_asked_nobody_has_no_such_part(tmp_path):
    run = read_run(make_run(tmp_path / "run"))
    assert choosing(run) is None and "Selection by the model" not in render(run)
    with_selector(tmp_path / "run", {"stages": "<script>", "flops": 3})
    assert choosing(read_run(tmp_path / "run")) is None


def test_drift_predictions_and_costs_are_shown(tmp_path):
    rng = np.random.default_rng(0)
    stages = [measured(1, rng.normal(size=9).tolist(), agreement_with_steps=0.91),
              measured(2, rng.normal(size=9).tolist(), spearman_of_model_before=0.31,
                       anchors_spearman_with_last=-0.42),
              measured(3, None, spearman=None, anchors_spearman_with_last="<b>")]
    folder = with_selector(make_run(tmp_path / "run"), {
        "stages": stages, "flops": {"probing": 8e10, "learning": 1e10, "<i>": 2e10}})
    found = choosing(read_run(folder))
    assert found["costs"][0] == ("probing", "8.00 %") and found["costs"][-1] == ("all choosing", "11.00 %")
    assert found["note"] == ("150 units were measured each time. First order agrees with true steps to a rank "
                             "correlation of 0.91.")
    page = render(read_run(folder))
    assert "Influence of the same units" in page and "Selectivity of the draw" in page
    assert "<i>" not in page and "&lt;i&gt;" in page


@pytest.mark.parametrize("stages", [[measured(0, [])], [measured(1, [1.0, 2.0]), measured(2, [1.0])]])
def test_few_or_changed_anchors_are_gaps(tmp_path, stages):
    folder = with_selector(make_run(tmp_path / "run"), {"stages": stages})
    assert choosing(read_run(folder))["costs"] == [] and "Selection by the model" in render(read_run(folder))
