"""Tracking a real run: every checkpoint once, the same scores as the evaluation of the finished model."""

import subprocess
import sys
import time

import numpy as np
import pytest
import yaml

from tilth.recipe import parse
from tilth.recipe.files import read_json
from tilth.stages import Recipe
from tilth.stages.building import Budget
from tilth.stages.load import load_recipe
from tilth.stages.runner import run_recipe
from tilth.stages.track import Tracker, track_run

WORDS = ["sun", "rain", "wind", "leaf", "root", "seed", "stone", "river"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tracked")
    rng = np.random.default_rng(0)
    (folder / "text").mkdir()
    for number in range(16):
        lines = [" ".join(rng.choice(WORDS, 6)) for _ in range(40)]
        (folder / "text" / f"{number:02d}.txt").write_text("\n".join(lines))
    recipe = parse(Recipe, {"name": "tracked", "stages": {
        "curate": {"kind": "curate", "inputs": [{"kind": "auto", "path": str(folder / "text")}], "rules": [],
                   "held_out": {"share": 0.2, "minimum_bytes": 1000}},
        "tokenize": {"kind": "tokenize", "tokenizer": {"kind": "bpe", "vocab_size": 280}, "unit_tokens": 64},
        "pretrain": {"kind": "pretrain", "model": {"layers": 1, "width": 32, "heads": 2, "feed_forward": 64},
                     "length": 64, "batch_tokens": 256, "budget": {"steps": 12}, "held_out_tokens": 500,
                     "checkpoint": {"steps": 2, "keep": 9}},
        "evaluate": {"kind": "evaluate", "sample_tokens": 0, "rivals": False, "length": 64,
                     "tasks": [{"kind": "held_out_cloze", "n": 20}]}}})
    run_recipe(recipe, folder / "run")
    return folder / "run"


def test_every_checkpoint_is_measured_once_and_the_last_as_the_finished_model(run):
    tracking = track_run(run, [], [], False, 1.0, None, "cpu")
    assert [point["step"] for point in tracking["points"]] == [2, 4, 6, 8, 10, 12]
    results = read_json(run / "evaluate" / "results.json")
    last = tracking["points"][-1]["results"]
    assert last["held_out"]["bits_per_byte"]["value"] == pytest.approx(
        results["held_out"]["bits_per_byte"]["value"], rel=1e-6)
    assert last["held_out_cloze"]["accuracy"]["value"] == results["held_out_cloze"]["accuracy"]["value"]
    assert tracking["points"][0]["flops"] < tracking["points"][-1]["flops"]
    assert Tracker(run).pass_over() == 0
    assert [one["made_at"] for one in tracking["forecasts"]] == [
        point["tokens"] for point in tracking["points"][3:5]]
    assert tracking["forecasts"][-1]["tasks"]["held_out"]["happened"] == last["held_out"]["bits_per_byte"]["value"]
    assert 'id="abilities"' in (run / "report.html").read_text()


def test_watching_a_finished_run_ends_and_a_limit_holds(run):
    (run / "tracking.json").unlink()
    tracker = Tracker(run, limit=5)
    tracker.watch(0.01)
    points = tracker.read()["points"]
    assert len(points) == 6 and points[0]["results"]["held_out_cloze"]["accuracy"]["n"] == 5


def test_a_second_process_watches_while_the_run_goes_on(run, tmp_path):
    recipe = load_recipe(str(run / "recipe.yaml"))
    pretrain = recipe.stages["pretrain"].model_copy(update={"budget": Budget(steps=20)})
    recipe = recipe.model_copy(update={"stages": {**recipe.stages, "pretrain": pretrain}})
    (tmp_path / "longer.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    training = subprocess.Popen([sys.executable, "-m", "tilth", "run", str(tmp_path / "longer.yaml"), "--folder",
                                 str(tmp_path / "run")], stderr=subprocess.DEVNULL)
    while not (tmp_path / "run" / "recipe.yaml").exists():  # a folder that holds no run yet is an error
        assert training.poll() is None
        time.sleep(0.05)
    subprocess.run([sys.executable, "-m", "tilth", "track", str(tmp_path / "run"), "--watch", "--every", "1",
                    "--limit", "5"], stderr=subprocess.DEVNULL, check=True, timeout=120)
    assert training.wait(timeout=60) == 0
    points = read_json(tmp_path / "run" / "tracking.json")["points"]
    assert points[-1]["step"] == 20 and len(points) >= 9  # those still there, and any that were caught before
    assert all(point["results"]["held_out_cloze"]["accuracy"]["n"] == 5 for point in points)
