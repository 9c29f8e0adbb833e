"""Scores inside a run: those of `tilth track`, within their budget, and training does not notice them."""

from importlib.util import find_spec

import numpy as np
import pytest

from tilth.recipe import BadInput, parse
from tilth.recipe.files import read_json, read_json_lines
from tilth.stages import Recipe
from tilth.stages.in_run import InRunEvaluation
from tilth.stages.runner import run_recipe
from tilth.stages.track import Tracker
from tilth.train.loop import Loop

WORDS = ["sun", "rain", "wind", "leaf", "root", "seed", "stone", "river"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("in_run")
    rng = np.random.default_rng(0)
    (folder / "text").mkdir()
    for number in range(16):
        (folder / "text" / f"{number:02d}.txt").write_text("\n".join(
            " ".join(rng.choice(WORDS, 6)) for _ in range(40)))
    return folder


def recipe(place, evaluation):
    return parse(Recipe, {"name": "inside", "stages": {
        "curate": {"kind": "curate", "inputs": [{"kind": "auto", "path": str(place / "text")}], "rules": [],
                   "held_out": {"share": 0.2, "minimum_bytes": 1000}},
        "tokenize": {"kind": "tokenize", "tokenizer": {"kind": "bpe", "vocab_size": 280}, "unit_tokens": 64},
        "pretrain": {"kind": "pretrain", "model": {"layers": 1, "width": 32, "heads": 2, "feed_forward": 64},
                     "length": 64, "batch_tokens": 256, "budget": {"steps": 12}, "held_out_tokens": 500,
                     "checkpoint": {"steps": 2, "keep": 9}, "evaluation": evaluation},
        "evaluate": {"kind": "evaluate", "sample_tokens": 0, "rivals": False, "length": 64,
                     "tasks": [{"kind": "held_out_cloze", "n": 10}]}}})


def losses(folder):
    return [line["loss"] for line in read_json_lines(folder / "pretrain" / "metrics.jsonl") if "loss" in line]


def spent(folder):
    return [line["evaluation"] for line in read_json_lines(folder / "pretrain" / "metrics.jsonl")
            if "evaluation" in line]


EVERYTHING = {"every": 2, "budget": 1.0, "length": 64, "tasks": [{"kind": "held_out_cloze", "n": 10}]}


@pytest.fixture(scope="module")
def inside(place):
    run_recipe(recipe(place, {**EVERYTHING, "budget": 1}), place / "inside")
    return place / "inside"


def test_the_points_are_those_of_tracking_and_training_is_the_same(place, inside):
    points = read_json(inside / "tracking.json")["points"]
    run_recipe(recipe(place, None), place / "without")
    assert losses(inside) == losses(place / "without")
    tracker = Tracker(place / "without")
    tracker.pass_over()
    tracked = {point["step"]: point for point in tracker.read()["points"]}
    assert points[0]["step"] == 2 and points[-1]["step"] == 12
    for point in points:
        other = tracked[point["step"]]
        assert point["tokens"] == other["tokens"] and point["flops"] == other["flops"]
        assert point["results"]["held_out"]["bits_per_byte"]["value"] == pytest.approx(
            other["results"]["held_out"]["bits_per_byte"]["value"], rel=1e-6)
        assert point["results"]["held_out_cloze"]["accuracy"] == other["results"]["held_out_cloze"]["accuracy"]


def test_what_it_cost_stands_in_the_metrics_and_the_report(inside):
    last = spent(inside)[-1]
    points = read_json(inside / "tracking.json")["points"]
    assert last["evaluations"] == len(points)
    assert last["flops"] == pytest.approx(sum(point["in_run"]["flops"] for point in points))
    assert last["share_of_flops"] == pytest.approx(last["flops"] / points[-1]["flops"])
    assert 0 < last["share_of_time"] < 1
    assert "Scores inside the run" in (inside / "report.html").read_text()


def test_a_small_budget_leaves_the_first_and_the_last_and_a_larger_one_is_kept(place, inside):
    run_recipe(recipe(place, {**EVERYTHING, "budget": 1e-6}), place / "tight")
    assert [point["step"] for point in read_json(place / "tight" / "tracking.json")["points"]] == [2, 12]
    one = spent(inside)[0]["flops"]
    training = read_json(inside / "tracking.json")["points"][-1]["flops"]
    share = 3.3 * one / training
    run_recipe(recipe(place, {**EVERYTHING, "budget": min(share, 1.0)}), place / "three")
    measured = spent(place / "three")
    assert len(measured) <= 5 and measured[-1]["flops"] <= share * training + 2 * one


def test_an_interrupted_run_measures_the_same_steps(place, inside, monkeypatch):
    plain = Loop.step

    def breaks(self):
        if self.at.step == 7:
            raise KeyboardInterrupt
        return plain(self)

    made = recipe(place, {**EVERYTHING, "budget": 1})
    monkeypatch.setattr(Loop, "step", breaks)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(made, place / "broken")
    monkeypatch.setattr(Loop, "step", plain)
    run_recipe(made, place / "broken")
    ours, theirs = (read_json(folder / "tracking.json")["points"] for folder in (place / "broken", inside))
    assert [point["step"] for point in ours] == [point["step"] for point in theirs]
    assert [point["results"] for point in ours] == [point["results"] for point in theirs]
    assert spent(place / "broken")[-1]["flops"] == spent(inside)[-1]["flops"]


def test_several_processes_and_missing_extras_are_refused_before_training(place, inside):
    config = InRunEvaluation(**EVERYTHING)
    with pytest.raises(BadInput, match="tilth track RUN --watch"):
        config.hook(inside, inside / "pretrain", inside / "tokenize", 64, {"steps": 12}, processes=2)
    if find_spec("lm_eval") is None:
        harness = InRunEvaluation(tasks=[{"kind": "lm_eval", "name": "piqa"}])
        with pytest.raises(BadInput, match="pip install"):
            harness.hook(inside, inside / "pretrain", inside / "tokenize", 64, {"steps": 12})
