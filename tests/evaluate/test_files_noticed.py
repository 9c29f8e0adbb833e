"""What a task reads is part of what an evaluation is of: a changed file runs the stage again, and says why."""

import json

import pytest

from tilth.recipe import parse
from tilth.stages import Recipe
from tilth.stages.evaluate import EvaluateStage
from tilth.stages.runner import run_recipe


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(
        {"query": f"q{at}", "choices": ["a", "b"], "gold": at % 2}) + "\n" for at in range(8)))
    (tmp_path / "shots.jsonl").write_text(json.dumps({"query": "s", "choices": ["a", "b"], "gold": 0}) + "\n")
    (tmp_path / "mine.yaml").write_text(json.dumps({
        "kind": "multiple_choice", "name": "mine", "data": "rows.jsonl",
        "few_shot": {"count": 1, "source": "shots.jsonl"}}))
    (tmp_path / "text").mkdir()
    for number in range(8):
        (tmp_path / "text" / f"{number}.txt").write_text(f"line {number} of text\n" * 40)
    return parse(Recipe, {"name": "noticed", "stages": {
        "curate": {"kind": "curate", "inputs": [{"kind": "auto", "path": str(tmp_path / "text")}], "rules": [],
                   "exact_duplicates": False, "held_out": {"share": 0.2, "minimum_bytes": 500}},
        "tokenize": {"kind": "tokenize", "tokenizer": {"kind": "bytes"}, "unit_tokens": 64},
        "pretrain": {"kind": "pretrain", "model": {"layers": 1, "width": 16, "heads": 2, "feed_forward": 32},
                     "length": 64, "batch_tokens": 128, "budget": {"steps": 2}},
        "evaluate": {"kind": "evaluate", "sample_tokens": 0, "rivals": False,
                     "tasks": [{"kind": "file", "path": str(tmp_path / "mine.yaml")}]}}})


def test_a_changed_task_runs_the_stage_again_and_says_why(recipe, tmp_path, capsys):
    stage = recipe.stages["evaluate"]
    assert {one["path"].rpartition("/")[2] for one in stage.files()} == {"mine.yaml", "rows.jsonl", "shots.jsonl"}
    run_recipe(recipe, tmp_path / "run")
    run_recipe(recipe, tmp_path / "run")
    assert "evaluate: finished before" in capsys.readouterr().err
    with open(tmp_path / "rows.jsonl", "a") as file:
        file.write(json.dumps({"query": "new", "choices": ["a", "b"], "gold": 1}) + "\n")
    run_recipe(recipe, tmp_path / "run")
    said = capsys.readouterr().err
    assert f"evaluate: run again, because {tmp_path / 'rows.jsonl'} changed" in said
    assert "pretrain: finished before" in said
    results = json.loads((tmp_path / "run" / "evaluate" / "results.json").read_text())
    assert results["mine"]["accuracy"]["n"] == 9


def test_shipped_tasks_are_known_by_their_rows(tmp_path, monkeypatch):
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "arc_easy.jsonl.zst").write_bytes(b"")
    monkeypatch.setenv("TILTH_DATA", str(tmp_path))
    stage = parse(EvaluateStage, {"tasks": [{"kind": "file", "path": "arc_easy"}]}, "evaluate")
    assert [one["path"] for one in stage.files()] == [str(tmp_path / "eval" / "arc_easy.jsonl.zst")]


def test_task_files_of_the_harness_are_noticed(tmp_path):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "a.yaml").write_text("task: a")
    stage = parse(EvaluateStage, {"tasks": [{"kind": "lm_eval", "name": "a", "folder": str(tmp_path / "tasks")}]},
                  "evaluate")
    assert [one["path"] for one in stage.files()] == [str(tmp_path / "tasks" / "a.yaml")]
