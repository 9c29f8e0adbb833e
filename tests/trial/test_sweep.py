"""Sweeps: cells run once, shared data, divergence as a result, optima and laws."""

import json

import numpy as np
import pytest
import yaml

from tilth.recipe import BadInput, Interrupted
from tilth.recipe.files import read_json
from tilth.trial import sweep as module
from tilth.trial.sweep import law, optima, result_text, run_sweep, split_values

WORDS = ["field", "seed", "rain", "plough", "harvest", "the", "a", "grows", "waits", "in", "under", "and"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    rng = np.random.default_rng(0)
    texts = [{"id": str(number), "text": " ".join(rng.choice(WORDS, 60))} for number in range(12)]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, texts)))
    model = {"kind": "transformer", "layers": 1, "width": 16, "heads": 2, "feed_forward": 32, "context": 64}
    stages = {
        "curate": {"kind": "curate", "inputs": [{"kind": "auto", "path": str(folder / "data.jsonl")}],
                   "held_out": {"minimum_bytes": 500, "share": 0.3}},
        "tokenize": {"kind": "tokenize", "tokenizer": {"kind": "bytes"}, "unit_tokens": 64},
        "pretrain": {"kind": "pretrain", "model": model, "length": 64, "batch_tokens": 128, "budget": {"steps": 4},
                     "optimizer": {"kind": "adamw"}, "precision": "fp32"}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump({"name": "tiny", "stages": stages}))
    return str(folder / "tiny.yaml")


def sweep(recipe, folder, *changes, seeds=1):
    from tilth.stages import Hardware
    return run_sweep(recipe, list(changes), seeds, folder, Hardware(device="cpu"), "tilth sweep again")


def test_a_sweep_stopped_goes_on_grows_and_makes_shared_stages_once(recipe, tmp_path, monkeypatch, capsys):
    ran = []
    plain = module.run_recipe

    def counted(full, folder, *more, **named):
        if len(ran) == 1:
            ran.append(None)
            raise Interrupted("stopped")
        if not (folder / "pretrain" / "model").exists():
            ran.append(folder)
        return plain(full, folder, *more, **named)

    monkeypatch.setattr(module, "run_recipe", counted)
    lr = "pretrain.optimizer.lr=0.001,0.01"
    with pytest.raises(Interrupted):
        sweep(recipe, tmp_path / "s", lr)
    result = sweep(recipe, tmp_path / "s", lr)
    assert [one for one in ran if one] == sorted({one for one in ran if one}, key=ran.index) and len(ran) == 3
    result = sweep(recipe, tmp_path / "s", lr + ",0.1", seeds=1)
    assert len(ran) == 4, "only the new value ran"
    first, second = (folder / "tokenize" / "units.parquet" for folder in ran if folder and folder != ran[-1])
    assert first.stat().st_ino == second.stat().st_ino, "made once, linked"
    means = {cell["values"]["pretrain.optimizer.lr"]: cell["mean"] for cell in result["cells"]}
    assert result["best"]["pretrain.optimizer.lr"] == min(means, key=means.get)
    assert result["measure"] == "held-out bits per byte" and read_json(tmp_path / "s" / "result.json") == result
    assert "optimizer.lr" in capsys.readouterr().out
    with pytest.raises(BadInput, match="another recipe"):
        sweep(recipe, tmp_path / "s", lr, "pretrain.clip=2.0")


def test_a_cell_that_diverges_is_a_result_and_is_not_run_again(recipe, tmp_path, monkeypatch):
    from tilth.recipe.errors import Diverged
    calls = []

    def diverges(*_, **__):
        calls.append(1)
        raise Diverged("Step 3 diverged")

    monkeypatch.setattr(module, "run_recipe", diverges)
    for _ in range(2):
        result = sweep(recipe, tmp_path, "pretrain.optimizer.lr=1,2")
    assert len(calls) == 2 and result["best"] is None
    assert [cell["losses"] for cell in result["cells"]] == [[None], [None]]
    assert "diverged" in result_text(result)


def test_bad_values_stop_the_sweep_before_anything_runs(recipe, tmp_path):
    with pytest.raises(BadInput, match=r"optimizer\.lr"):
        sweep(recipe, tmp_path, "pretrain.optimizer.lr=0.1,-1")
    assert not (tmp_path / "runs").exists()
    with pytest.raises(BadInput, match="Nothing to sweep"):
        sweep(recipe, tmp_path, "pretrain.optimizer.lr=0.1")


def test_commas_in_brackets_belong_to_the_value():
    assert split_values("a=[1,2],[3,4]") == ["a=[1,2]", "[3,4]"]
    assert split_values("a={x: 1, y: 2}") == ["a={x: 1, y: 2}"]


def grid(sizes=(1e4, 4e4), tokens=(1e6, 4e6)):
    rows = []
    for n in sizes:
        for d in tokens:
            for i in range(-3, 4):
                for j in range(-2, 3):
                    lr, batch = 0.05 * n**-0.3 * d**0.1 * 2.0**i, 2 * d**0.5 * 2.0**j
                    loss = 2 + 0.02 * (i * i + j * j)
                    rows.append({"values": {"lr": str(lr)}, "losses": [loss] * 2, "mean": loss, "parameters": n,
                                 "tokens": d + j, "lr": lr, "batch_tokens": batch})
    return rows


def test_law_over_sizes_and_tokens_is_recovered_and_is_none_without_them():
    found = law(grid())
    assert (found["alpha"], found["beta"], found["gamma"]) == pytest.approx((-0.3, 0.1, 0.5), abs=0.02)
    assert found["cells"] == 4
    assert law(grid(sizes=(1e4,), tokens=(1e6,))) is None


def test_optimum_of_a_key_is_taken_at_the_best_of_the_others():
    axes = {"lr": ["1", "2", "4", "8"], "kind": ["a", "b"]}
    rows = [{"values": {"lr": lr, "kind": kind}, "losses": [loss], "mean": loss} for kind, shift in (("a", 0), ("b", 1))
            for lr in axes["lr"] for loss in [shift + (np.log(float(lr)) - np.log(3)) ** 2]]
    found = optima(axes, rows, min(rows, key=lambda row: row["mean"]))
    assert list(found) == ["lr"]
    assert found["lr"]["at"] == pytest.approx(3) and found["lr"]["inside"]
