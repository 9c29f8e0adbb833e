"""Trials: equal FLOPs with choosing paid for, equal seeds, shared stages, resumption run by run, intervals."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from tilth.cli import app
from tilth.recipe import BadInput
from tilth.recipe.files import read_json
from tilth.stages.load import load_recipe
from tilth.trial import trial as module
from tilth.trial.result import _verdict
from tilth.trial.statistics import paired, student, verdict
from tilth.trial.trial import Trial

WORDS = ["field", "seed", "rain", "plough", "harvest", "the", "a", "grows", "waits", "in", "under", "and"]


@pytest.fixture(scope="module")
def recipes(tmp_path_factory) -> list[Path]:
    """plain, and by_loss with a third more a step, as YAML files."""
    folder = tmp_path_factory.mktemp("recipes")
    rng = np.random.default_rng(0)
    for number in range(24):
        lines = [" ".join(rng.choice(WORDS, 8)) for _ in range(int(rng.integers(3, 12)))]
        (folder / f"{number:03d}.txt").write_text(".\n".join(lines))
    model = {"kind": "transformer", "layers": 1, "width": 16, "heads": 2, "feed_forward": 32, "context": 64}
    told = {"kind": "answer_bits", "name": "told", "rows": [{"query": "the field", "answer": "waits in the rain"},
                                                            {"query": "a seed", "answer": "grows"}]}
    stages = {
        "curate": {"kind": "curate", "inputs": [{"kind": "files", "path": str(folder / "*.txt")}],
                   "held_out": {"minimum_bytes": 600, "share": 0.3}},
        "tokenize": {"kind": "tokenize", "tokenizer": {"kind": "bytes"}, "unit_tokens": 40},
        "pretrain": {"kind": "pretrain", "model": model, "length": 32, "batch_tokens": 128, "budget": {"steps": 24},
                     "schedule": {"kind": "cosine", "warmup": 2}, "precision": "fp32", "held_out_every": 8},
        "evaluate": {"kind": "evaluate", "tasks": [told]}}
    weigher = {"pretrain": {"policy": {"weigher": {"kind": "linupper", "warmup": 4}}}}
    written = {"plain": {"stages": stages}, "by_loss": {"base": "plain.yaml", **weigher}}
    for name, content in written.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"name": name, **content}))
    return [folder / f"{name}.yaml" for name in written]


@pytest.fixture(scope="module")
def finished(recipes, tmp_path_factory):
    """A trial of two seeds, killed after its third run and gone on with by the command."""
    folder = tmp_path_factory.mktemp("trial")
    ran: list[str] = []
    real = module.run_recipe

    def killed(recipe, where, *rest, **more):
        if len(ran) == 3:
            raise KeyboardInterrupt
        ran.append(where.name)
        return real(recipe, where, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "run_recipe", killed)
        with pytest.raises(KeyboardInterrupt):
            Trial([load_recipe(str(path)) for path in recipes], 2, folder).run()
    before = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/pretrain/model/*.safetensors")}
    result = CliRunner().invoke(app, ["trial", *map(str, recipes), "--seeds", "2", "--folder", str(folder), "--json"])
    assert result.exit_code == 0, result.output
    assert ran == ["plain-seed-0", "by_loss-seed-0", "plain-seed-1"] and len(before) == 3
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    return folder, result


def test_budgets_are_equal_and_choosing_is_paid_for(finished):
    result = read_json(finished[0] / "result.json")
    runs = result["runs"]
    budget = runs["plain"][0]["flops"]
    for several in runs.values():
        assert [run["seed"] for run in several] == [0, 1]
        assert all(0.95 * budget < run["flops"] <= budget * 1.0001 for run in several)
    assert [run["steps"] for run in runs["plain"]] == [24, 24]
    assert {run["steps"] for run in runs["by_loss"]} == {19}  # 4 + 15 * 4/3 = 24 steps' worth


def test_the_result_has_the_form_of_evidence(finished):
    result = read_json(finished[0] / "result.json")
    assert {"method", "claim", "published", "baseline", "metric", "value", "baseline_value", "difference", "interval",
            "seeds", "budget", "verdict"} <= result.keys()
    assert result["method"] == "by_loss" and result["baseline"] == "plain" and set(result["comparisons"]) == {"by_loss"}
    assert result["difference"] == pytest.approx(result["value"] - result["baseline_value"], abs=1e-9)
    assert result["interval"][0] <= result["difference"] <= result["interval"][1]


def test_seeds_differ_and_are_the_same_pairs(finished):
    models = {}
    for path in finished[0].glob("runs/*/pretrain/drawn"):
        models[path.parent.parent.name] = read_json(path.parents[1] / "pretrain" / "manifest.json")["identity"]["seed"]
    assert models == {f"{name}-seed-{seed}": seed for name in ("plain", "by_loss") for seed in (0, 1)}


def test_equal_stages_are_made_once(finished):
    for file in ("curate/documents-00000.parquet", "tokenize/fields/tokens.bin"):
        inodes = {os.stat(path / file).st_ino for path in finished[0].glob("runs/*-seed-*")}
        assert len(inodes) == 1


def test_table_and_page(finished):
    folder, result = finished
    last = json.loads(result.stdout.strip().splitlines()[-1])
    assert last["comparisons"].keys() == {"by_loss"}
    assert "by_loss" in result.stdout and "95 % interval" in result.stdout
    page = (folder / "trial.html").read_text()
    assert "<svg" in page and "<script" not in page and page.count("<tr>") == 3


def test_a_finished_trial_changes_nothing(finished, recipes):
    folder, _ = finished
    before = read_json(folder / "result.json")
    Trial([load_recipe(str(path)) for path in recipes], 2, folder).run()
    assert read_json(folder / "result.json") == before
    with pytest.raises(BadInput, match="other recipes or another budget"):
        Trial([load_recipe(str(path), ["pretrain.length=16"]) for path in recipes], 2, folder).run()


@pytest.fixture(scope="module")
def three(finished, recipes):
    """The recipes of the trial, and one that has spent a quarter of its budget before it begins."""
    trained = read_json(finished[0] / "result.json")["runs"]["plain"][0]
    written = yaml.safe_load(recipes[0].read_text())
    written["name"], written["stages"]["pretrain"]["budget"] = "laddered", {"steps": 24, "before": trained["flops"] / 4}
    (recipes[0].parent / "laddered.yaml").write_text(yaml.safe_dump(written))
    return [load_recipe(str(path)) for path in [*recipes, recipes[0].parent / "laddered.yaml"]]


def test_more_recipes_may_follow_and_what_was_spent_before_is_paid_for(finished, three):
    folder, _ = finished
    trained = read_json(folder / "result.json")["runs"]["plain"][0]
    run = Trial(three, 1, folder).run()["runs"]["laddered"][0]
    assert run["steps"] == 18 and run["flops"] == pytest.approx(trained["flops"])
    further = Trial(three, 3, folder)
    assert [len(further.leading(recipe)) for recipe in three] == [2, 2, 1]
    assert [one.seed for one in further.leading(three[0])] == [three[0].seed, three[0].seed + 1]
    with pytest.raises(BadInput, match="more may follow"):
        Trial(three[:2], 2, folder).run()


def test_a_task_of_code_lengths_can_be_what_is_compared(finished, three):
    folder, _ = finished
    beside = Trial(three, 2, folder).run()["comparisons"]["by_loss"]["tasks"]["told/bits_per_byte"]
    found = Trial(three, 2, folder, measure="told").run()["comparisons"]["by_loss"]
    assert found["metric"] == "bits per byte of told, less is better" and found["documents"] == 2
    for key in ("value", "difference", "interval"):
        assert found[key] == pytest.approx(beside[key])
    assert "held_out/bits_per_byte" in found["tasks"]
    with pytest.raises(BadInput, match="does not measure 'tolled'; did you mean 'told'"):
        Trial(three, 2, folder, measure="tolled").run()


def test_recipes_that_cannot_be_compared(recipes, tmp_path):
    plain = load_recipe(str(recipes[0]))
    with pytest.raises(BadInput, match="different names, not plain, plain"):
        Trial([plain, plain], 1, tmp_path)
    twice = load_recipe(str(recipes[1]))
    twice = twice.model_copy(update={"stages": {**twice.stages, "more": twice.stages["pretrain"]}})
    with pytest.raises(BadInput, match="one pretrain stage; 'by_loss' has"):
        Trial([plain, twice.model_copy(update={"stages": {**twice.stages, "again": twice.stages["evaluate"].model_copy(
            update={"model": "more"})}})], 1, tmp_path)


def test_paired_difference_is_exact_and_its_interval_covers():
    rng = np.random.default_rng(0)
    weights = rng.integers(50, 200, 40).astype(float)
    inside = 0
    for trial in range(100):
        documents = rng.normal(0, 20, 40)
        noise, seeds = rng.normal(0, 5, (2, 5, 40)), rng.normal(0, 0.05, (2, 5, 1)) * weights
        a, b = 3 * weights + documents + noise + seeds
        found = paired(a, b, weights, resamples=200, seed=trial)
        assert found["difference"] == pytest.approx((a - b).sum() / 5 / weights.sum())
        inside += found["interval"][0] <= 0 <= found["interval"][1]
    assert inside >= 86


def test_unequal_budgets_have_no_verdict_unless_less_was_enough():
    better = {"interval": [-2, -1], "interval_seeds": [-3, -1]}
    worse = {"interval": [1, 2], "interval_seeds": [0.5, 3]}
    assert _verdict(better, [0.9, 1.0], [1.0, 1.0], 0.02) == "shows"
    assert _verdict(worse, [1.0, 0.99], [1.0, 1.0], 0.02) == "reversed"
    for found, spent, baseline in ((worse, 0.9, 1.0), (better, 1.1, 1.0), (better, 1.0, 0.9)):
        assert _verdict(found, [spent, 1.0], [baseline, 1.0], 0.02) == "unequal budgets"


def test_verdicts():
    assert student([1.0, 2, 3]) == pytest.approx([2 - 4.303 / np.sqrt(3), 2 + 4.303 / np.sqrt(3)])
    assert student([1.0]) is None
    assert verdict([-2, -1], [-3, -1]) == "shows" and verdict([1, 2], [0.5, 3]) == "reversed"
    assert verdict([-2, -1], [-3, 1]) == verdict([-2, -1], None) == "unclear"
