"""Image-text pairs on the one road: read, trained on by a contrastive objective, measured by concept."""

import io
import json
import shutil

import numpy as np
import polars as pl
import pytest
import torch

from tilth.analyze.pair_retrieval import first_right
from tilth.data.pairs import PairsInput
from tilth.data.pool import Pool
from tilth.data.records import Quarantine
from tilth.recipe import BadInput, Interrupted
from tilth.stages.load import load_recipe
from tilth.stages.runner import run_recipe
from tilth.stages.stage import Hardware
from tilth.train.loop import Loop

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")

COLOURS = {"red": (230, 20, 20), "green": (20, 230, 20), "blue": (20, 20, 230), "white": (230, 230, 230)}
COUNTS = {"red": 60, "green": 24, "blue": 8, "white": 4}


def png(colour, rng):
    held = io.BytesIO()
    noise = rng.integers(-20, 20, (8, 8, 3))
    Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(held, "PNG")
    return held.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with an index to train on, a Parquet file to test on."""
    folder, rng = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    lines = []
    for name, count in COUNTS.items():
        for at in range(count):
            (folder / f"{name}{at}.png").write_bytes(png(COLOURS[name], rng))
            lines.append({"image": f"{name}{at}.png", "caption": f"a {name} square", "id": f"{name}{at}"})
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pl.DataFrame([{"image": {"bytes": png(COLOURS[name], rng), "path": "x"}, "caption": f"a {name} square",
                   "concept": name}
                  for name in COLOURS for _ in range(5)]).write_parquet(folder / "test.parquet")
    (folder / "names.txt").write_text("\n".join(COLOURS))
    return folder


def recipe(data, *more, steps=60):
    given = [f"pairs.input={{path: {data}, size: [8, 8]}}", f"pairs.test={{path: {data}/test.parquet, size: [8, 8]}}",
             "pairs.tokenizer.vocab_size=270", f"train.steps={steps}", "train.rows=32", "train.optimizer.lr=0.005",
             "train.measures.zero_shot.templates=['a {} square']", "train.measures.zero_shot.rarest=2",
             "train.measures.zero_shot.fit.resamples=100",
             *[f"train.model.{tower}={{layers: 1, width: 16, heads: 2, attention: bidirectional, positions: learned}}"
               for tower in ("image", "text")]]
    return load_recipe("image_text", [*given, *more])


def test_from_a_folder_to_accuracy_by_concept(data, tmp_path):
    summary = run_recipe(recipe(data), tmp_path)["train"]
    found = summary["results"]["zero_shot"]
    assert found["balanced_accuracy"] == found["accuracy"] > 60, "chance is 25"
    assert {row["concept"]: row["count"] for row in found["concepts"]} == COUNTS
    assert all(row["tested"] == 5 for row in found["concepts"])
    assert found["long_tail"]["concepts"] == ["white", "blue"] and found["long_tail"]["most_frequent"] == 8
    assert found["fit"]["concepts"] == 4 and len(found["fit"]["points_per_decade"]["interval"]) == 2
    lines = [json.loads(line) for line in (tmp_path / "train" / "metrics.jsonl").read_text().splitlines()]
    assert {"matched", "scale", "loss"} <= lines[0].keys() and summary["micro_rows"] == 32
    retrieval = summary["results"]["retrieval"]
    assert retrieval["text_to_image"]["recall@1"] >= 50 and retrieval["image_to_text"]["recall@10"] > 80
    assert {row["concept"]: row["queries"] for row in retrieval["by_concept"]} == dict.fromkeys(COUNTS, 5)
    page = (tmp_path / "report.html").read_text()
    assert "text_to_image recall@1" in page
    assert "Accuracy by count" in page and "the 2 rarest (at most 8 captions)" in page and "r of bin means" in page
    pool = Pool.open(tmp_path / "pairs")
    assert pool.get("pixels", 0).shape == (8, 8, 3) and pool.get("tokens", 0)[-1] == pool.end_of_text


def test_a_batch_of_a_coupled_objective_is_never_split(data, tmp_path):
    run_recipe(recipe(data, steps=2), tmp_path, Hardware(micro_rows=8))
    assert json.loads((tmp_path / "train" / "budget.json").read_text())["micro_rows"] == 32


def test_stopped_and_resumed_is_the_same_to_the_bit(data, tmp_path, monkeypatch):
    """In the middle of the fourth pass over 96 pairs."""
    run_recipe(recipe(data, steps=14), tmp_path / "whole")
    step = Loop.step

    def stop_at_10(self):
        if self.at.step == 10:
            self.save()
            raise Interrupted("stopped")
        return step(self)

    monkeypatch.setattr(Loop, "step", stop_at_10)
    with pytest.raises(Interrupted):
        run_recipe(recipe(data, steps=14), tmp_path / "cut")
    monkeypatch.setattr(Loop, "step", step)
    run_recipe(recipe(data, steps=14), tmp_path / "cut")
    weights = [(tmp_path / name / "train" / "model" / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]


def test_concepts_are_balanced_by_the_policy(data, tmp_path):
    """A cap of 8 leaves about 8 of each; the counts that are reported stay those of the pool."""
    policy = f"train.stream.policy={{selector: {{kind: concepts, names: {data}/names.txt, cap: 8}}}}"
    summary = run_recipe(recipe(data, policy, steps=3), tmp_path)["train"]
    selector = summary["served"]["policy"]["selector"]
    assert selector["selected"] < 40 and selector["effective_concepts_after"] > 3 > selector["effective_concepts"]
    assert {row["concept"]: row["count"] for row in summary["results"]["zero_shot"]["concepts"]} == COUNTS


def test_a_changed_image_runs_the_stage_again(data, tmp_path, capsys):
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    run_recipe(recipe(copy, steps=1), tmp_path / "run")
    run_recipe(recipe(copy, steps=1), tmp_path / "run")
    assert "pairs: finished before" in capsys.readouterr().err
    (copy / "blue3.png").write_bytes((copy / "red3.png").read_bytes())
    run_recipe(recipe(copy, steps=1), tmp_path / "run")
    said = capsys.readouterr().err
    assert "(images) changed" in said and "train: run again" in said


def read(**fields):
    with Quarantine() as quarantine:
        pairs = list(PairsInput(size=(8, 8), **fields).read(quarantine))
    return pairs, dict(quarantine.counts)


def test_what_cannot_be_used_is_quarantined(data, tmp_path):
    (tmp_path / "captions.jsonl").write_text("\n".join(json.dumps(row) for row in (
        {"image": "ok.png", "caption": "one"}, {"image": "bad.png", "caption": "two"}, {"image": "ok.png"},
        {"image": "../secret.png", "caption": "three"}, {"caption": "four"}, {"image": "none.png", "caption": "five"})))
    (tmp_path / "ok.png").write_bytes((data / "red0.png").read_bytes())
    (tmp_path / "bad.png").write_bytes(b"no image")
    (tmp_path.parent / "secret.png").write_bytes((data / "red0.png").read_bytes())
    pairs, counts = read(path=tmp_path)
    assert [pair.caption for pair in pairs] == ["one"] and counts == {"unusable pair": 5}
    with pytest.raises(BadInput, match="pair 1"):
        read(path=tmp_path, on_bad="error")
    with pytest.raises(BadInput, match=r"captions\.jsonl"):
        read(path=tmp_path / "nowhere")


def test_an_image_too_large_to_decode_is_quarantined(data):
    pairs, counts = read(path=data / "test.parquet", max_pixels=10)
    assert pairs == [] and counts == {"unusable pair": 20}


def test_images_are_brought_to_size_and_colour(data):
    pairs, _ = read(path=data / "test.parquet", colours="grey")
    assert pairs[0].pixels.shape == (8, 8, 1) and pairs[0].concept == "red"


def test_a_measure_without_a_test_is_refused(data, tmp_path):
    with pytest.raises(BadInput, match="a test of their own"):
        run_recipe(recipe(data, "pairs.test=null", steps=1), tmp_path)
    assert not (tmp_path / "train" / "metrics.jsonl").exists(), "before anything is trained"


def test_a_pair_with_the_same_caption_is_as_right_as_the_own():
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.9, 0.1, 0.5], [0.3, 0.2, 0.1]])
    assert first_right(scores, np.array([0, 0, 1])).tolist() == [0, 0, 2]
    assert first_right(scores, np.arange(3)).tolist() == [2, 2, 2]
