"""Stability studies: every cell once, the same data in all, an answer, a page that is complete in itself."""

import json
import re

import numpy as np
import pytest
import yaml

from tilth.recipe import BadInput, Interrupted
from tilth.recipe.errors import Diverged
from tilth.recipe.files import read_json, read_json_lines
from tilth.stages import Hardware
from tilth.trial import sweep
from tilth.trial.stability import run_study

WORDS = ["field", "seed", "rain", "plough", "harvest", "the", "a", "grows", "waits", "in", "under", "and"]


def write_recipe(folder, held_out=True):
    rng = np.random.default_rng(0)
    texts = [{"id": str(number), "text": " ".join(rng.choice(WORDS, 60))} for number in range(12)]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, texts)))
    model = {"kind": "transformer", "layers": 1, "width": 16, "heads": 2, "feed_forward": 32, "context": 64}
    stages = {
        "curate": {"kind": "curate", "inputs": [{"kind": "auto", "path": str(folder / "data.jsonl")}],
                   "held_out": {"minimum_bytes": 500, "share": 0.3} if held_out else None},
        "tokenize": {"kind": "tokenize", "tokenizer": {"kind": "bytes"}, "unit_tokens": 64},
        "train": {"kind": "pretrain", "model": model, "length": 64, "batch_tokens": 128, "budget": {"steps": 10},
                  "optimizer": {"kind": "adamw"}, "precision": "fp32"}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump({"name": "tiny", "stages": stages}))
    return str(folder / "tiny.yaml")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return write_recipe(tmp_path_factory.mktemp("recipe"))


def study(recipe, folder, formats="fp32,E8M7,E4M3fn/E5M2:scaled", rates="3e-3", seeds=2, changes=()):
    return run_study(recipe, list(changes), formats, rates, seeds, folder, 0.05, Hardware(device="cpu"), "again")


@pytest.fixture(scope="module")
def done(recipe, tmp_path_factory):
    """A study that was stopped after two runs and went on: its folder, its result, the folders that ran."""
    folder, ran, plain = tmp_path_factory.mktemp("study"), [], sweep.run_recipe

    def counted(full, where, *more, **named):
        if len(ran) == 2 and None not in ran:
            ran.append(None)
            raise Interrupted("stopped")
        if not (where / "train" / "model").exists():
            ran.append(where)
        return plain(full, where, *more, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "run_recipe", counted)
        with pytest.raises(Interrupted):
            study(recipe, folder)
        result = study(recipe, folder)
    return folder, result, [one for one in ran if one]


def test_a_study_stopped_goes_on_and_runs_every_cell_once(done):
    folder, result, ran = done
    assert len(ran) == len(set(ran)) == 6
    assert read_json(folder / "result.json") == json.loads(json.dumps(result))
    assert [row["format"] for row in result["formats"]] == ["fp32", "E8M7", "E4M3fn/E5M2:scaled"]
    assert all(len(cell["finals"]) == 2 for cell in result["cells"]) and result["seeds"] == [0, 1]


def test_cells_of_a_seed_start_equal_and_differ_by_rounding_only(done):
    _, _, ran = done
    first = {}
    for folder in ran:
        lines = read_json_lines(folder / "train" / "metrics.jsonl")
        seed, fields = folder.name[-1], read_json(folder / "train" / "manifest.json")["fields"]
        name = json.dumps(fields["simulated"] and fields["simulated"]["forward"])
        first[seed, name] = next(line["loss"] for line in lines if "loss" in line)
        assert any("sharpness" in line and line["sharpness"]["phi"] > 0 for line in lines)
    for seed in "01":
        one = [value for (own, _), value in first.items() if own == seed]
        assert len(set(one)) == 3 and np.ptp(one) < 0.01


def test_the_page_is_complete_in_itself(done):
    folder, result, _ = done
    page = (folder / "stability.html").read_text()
    assert "How many bits does" in page and page.count("<svg") >= 2 and "<script" not in page
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", page)
    for row in result["formats"]:
        assert row["format"] in page


def test_a_run_that_fails_is_counted_and_not_run_again(recipe, tmp_path, monkeypatch, capsys):
    calls = []

    def diverges(full, folder, *more, **named):
        calls.append(folder)
        if full.stages["train"].simulated is not None:
            raise Diverged("Step 3 diverged")
        return plain(full, folder, *more, **named)

    plain = sweep.run_recipe
    monkeypatch.setattr(sweep, "run_recipe", diverges)
    for _ in range(2):
        result = study(recipe, tmp_path, "fp32,E8M2", seeds=1)
    assert len([call for call in calls if "E8M2" in call.name]) == 1
    cell = result["cells"][1]
    assert cell["kinds"] == ["diverged"] and cell["median"] is None and cell["failed_interval"][0] > 0.2
    assert result["answer"]["format"] == "fp32" and "fail at 0.003" in capsys.readouterr().out
    assert "failed" in (tmp_path / "stability.html").read_text()


def test_a_study_of_another_recipe_is_refused(done, recipe):
    with pytest.raises(BadInput, match="another recipe"):
        study(recipe, done[0], changes=["train.clip=2.0"])


@pytest.mark.parametrize(("more", "message"), [
    ({"formats": "fp32,E9M3"}, "not a format"), ({"formats": "fp32,fp32"}, "twice"), ({"formats": "e8m3"}, "no number"),
    ({"rates": "1e-3,x"}, "--rates"), ({"rates": "0"}, "positive"), ({"rates": "inf"}, "positive"),
    ({"changes": ["train.simulated.forward=E8M3"]}, "the study chooses them"),
    ({"changes": ["train.precision=fp8"]}, "simulated formats go with"),
    ({"changes": ["train.simulated.layers=[nothing.*]"]}, "no such linear module")])
def test_bad_input_is_said_before_anything_is_trained(recipe, tmp_path, more, message):
    with pytest.raises(BadInput, match=message):
        study(recipe, tmp_path, **{"formats": "E8M7,E8M3", **more})
    assert not list(tmp_path.glob("runs/*/train/metrics.jsonl"))


def test_the_command_hands_its_options_on(monkeypatch, tmp_path):
    from typer.testing import CliRunner

    from tilth.cli import app
    seen = []
    monkeypatch.setattr("tilth.trial.stability.run_study", lambda *given: seen.append(given) or {"answer": 1})
    found = CliRunner().invoke(app, ["analyze", "stability", "tiny", "pretrain.clip=1", "--formats", "fp32,E8M3",
                                     "--rates", "1e-3", "--seeds", "7", "--tolerance", "0.02", "-o", str(tmp_path),
                                     "--json"])
    assert found.exit_code == 0, found.output
    assert seen[0][:7] == ("tiny", ["pretrain.clip=1"], "fp32,E8M3", "1e-3", 7, tmp_path, 0.02)
    assert json.loads(found.stdout.splitlines()[-1]) == {"answer": 1}


def test_without_held_out_text_sharpness_is_left_out_or_refused(tmp_path):
    recipe = write_recipe(tmp_path, held_out=False)
    assert study(recipe, tmp_path / "s", "fp32", seeds=1)["warning"] is None
    with pytest.raises(BadInput, match="holds none out"):
        study(recipe, tmp_path / "t", "fp32", seeds=1, changes=["train.sharpness={}"])
