"""`tilth bench train`: parts of a step that add up, and limits that are what they say."""

import sys
import time
from pathlib import Path

import pytest
import torch

from tilth.recipe import BadInput, parse
from tilth.recipe.files import read_json
from tilth.stages import Hardware, Recipe
from tilth.trial.bench_training import Timers, bench_text, bench_training, first_pretrain

sys.path.append(str(Path(__file__).parents[1] / "stages"))
from stage_toys import tiny, write_corpus


class Parts:
    def outer(self):
        time.sleep(0.02)
        self.inner()
        time.sleep(0.01)

    def inner(self):
        time.sleep(0.04)


def test_parts_within_parts_are_counted_once():
    parts, timers = Parts(), Timers(torch.device("cpu"))
    timers.wrap(parts, "inner", "inner")
    timers.wrap(parts, "outer", "outer")
    start = time.perf_counter()
    parts.outer()
    whole = time.perf_counter() - start
    assert timers.seconds["inner"] >= 0.04 and timers.seconds["outer"] >= 0.03
    assert sum(timers.seconds.values()) == pytest.approx(whole, rel=0.05)


def test_an_error_within_a_part_closes_it():
    timers = Timers(torch.device("cpu"))
    with timers.part("whole"):
        with pytest.raises(ZeroDivisionError), timers.part("broken"):
            1 / 0  # noqa: B018
        time.sleep(0.01)
    assert timers.seconds["whole"] >= 0.01


def test_report_of_a_tiny_recipe(tmp_path):
    recipe = tiny(write_corpus(tmp_path / "corpus"))
    found = bench_training(recipe, tmp_path / "run", Hardware(micro_rows=2), steps=2)
    assert sum(found["share_by_part"].values()) == pytest.approx(1)
    parts = {"data", "forward", "backward", "optimizer", "logging", "rest", "checkpoint"}
    assert parts <= set(found["seconds_by_part"])
    assert found["batch_tokens"] == 128 and found["tokens_per_second"] > 0 and 0 < found["utilisation"] < 1
    floor = found["memory_floor_bytes"]
    assert floor["weights"] == floor["gradients"] == 4 * found["parameters"]
    assert floor["moments"] >= floor["weights"], "Muon keeps one number a weight, AdamW two"
    assert "tokens/s" in bench_text(found)
    assert not (tmp_path / "run" / "pretrain").exists(), "the run itself is not touched"
    assert read_json(tmp_path / "run" / "tokenize" / "manifest.json")["summary"] is not None


def test_a_recipe_that_trains_nothing_is_refused():
    recipe = parse(Recipe, {"name": "none", "stages": {"tokenize": {"kind": "tokenize"}}})
    with pytest.raises(BadInput, match="trains nothing"):
        first_pretrain(recipe)
