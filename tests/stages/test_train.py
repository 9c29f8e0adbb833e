"""The stage that trains on streams of units: it learns, goes on exactly, and splits a batch without a difference."""

import json

import pytest
import torch

from tilth.objectives.in_context import InContextRegression
from tilth.recipe import BadInput, Interrupted
from tilth.stages.load import load_recipe
from tilth.stages.runner import run_recipe
from tilth.stages.stage import Hardware
from tilth.train.loop import Loop

SMALL = ["train.steps=40", "train.stream.points=5", "train.rows=32",
         "train.model.body={layers: 1, width: 16, heads: 2, vocab_size: 0}", "train.measures.families.functions=512"]


def losses(folder):
    return [line["loss"] for line in map(json.loads, (folder / "train" / "metrics.jsonl").read_text().splitlines())]


def test_a_recipe_of_functions_runs_and_is_measured(tmp_path):
    lines = ["train.stream.shares={linear: 1, sinusoid: 0}", "train.optimizer.lr=0.01", "train.steps=300"]
    summary = run_recipe(load_recipe("in_context", [*SMALL, *lines]), tmp_path)["train"]
    assert losses(tmp_path)[-1] < 0.6 < 0.8 < losses(tmp_path)[0]
    families = summary["results"]["families"]["families"]
    assert set(families) == {"linear", "sinusoid", "halfway", "beyond"} and len(families["linear"]["error"]) == 5
    assert families["linear"]["late"] < 0.8 * families["linear"]["variance"] < families["beyond"]["late"]
    page = (tmp_path / "report.html").read_text()
    assert "Error by number of examples" in page and "halfway" in page and "Nothing trained yet" not in page
    assert summary["flops"] > 0 and (tmp_path / "train" / "model" / "model.safetensors").is_file()


def test_stopped_and_resumed_is_the_same_to_the_bit(tmp_path, monkeypatch):
    recipe = load_recipe("in_context", SMALL)
    run_recipe(recipe, tmp_path / "whole")
    step = Loop.step

    def stop_at_23(self):
        if self.at.step == 23:
            self.save()
            raise Interrupted("stopped")
        return step(self)

    monkeypatch.setattr(Loop, "step", stop_at_23)
    with pytest.raises(Interrupted):
        run_recipe(recipe, tmp_path / "cut")
    monkeypatch.setattr(Loop, "step", step)
    run_recipe(recipe, tmp_path / "cut")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    results = [(tmp_path / name / "train" / "results.json").read_bytes() for name in ("whole", "cut")]
    assert results[0] == results[1]


def test_a_split_batch_gives_the_same_losses(tmp_path):
    recipe = load_recipe("in_context", [*SMALL, "train.steps=5"])
    for rows in (32, 8):
        run_recipe(recipe, tmp_path / str(rows), Hardware(micro_rows=rows))
    assert losses(tmp_path / "32") == pytest.approx(losses(tmp_path / "8"), rel=1e-5)


def test_a_model_of_packed_text_is_sent_to_pretrain(tmp_path):
    recipe = load_recipe("in_context", [*SMALL, "train.model={kind: transformer, vocab_size: 8}"])
    with pytest.raises(BadInput, match="stage of kind pretrain"):
        run_recipe(recipe, tmp_path)


def test_the_loss_of_a_sequence_is_the_sum_of_its_squared_errors():
    batch = {"x": torch.zeros(2, 3, 1), "y": torch.tensor([[1.0, 2, 3], [0, 1, 0]]), "unit_id": torch.arange(2)}
    loss = InContextRegression()(lambda x, y: torch.zeros_like(y), batch, torch.Generator(), {})
    assert loss.total.tolist() == [14, 1] and loss.count.tolist() == [3, 3] and loss.couples == "none"
