"""A whole policy in a real run: mixture, selector and weigher learn together, costs count, a stop changes nothing."""

import json
import signal

import numpy as np
import pytest
import torch

from tilth.data.pool import PoolWriter, token_field
from tilth.recipe import Interrupted, parse
from tilth.recipe.files import read_json_lines
from tilth.stages.pretrain import PretrainStage
from tilth.stages.pretraining import Pretraining
from tilth.stages.stage import Context, Hardware
from tilth.train import Every

POLICY = {"mixture": {"kind": "doremi", "reference": {"a": 3.0, "b": 3.5}}, "stretch_units": 24,
          "selector": {"kind": "mates", "probes": 20, "held_back": 0.2, "anchors": 10, "bits": 8, "keep": 0.5,
                       "reference": {"share": 0.1, "tokens": 100}},
          "weigher": {"kind": "linupper", "warmup": 3}}
EXACT = ("step", "tokens", "flops", "loss", "gradient_norm", "effective_units", "weight_max", "share/a",
         "influence_spearman", "selectivity")


@pytest.fixture
def run_folder(tmp_path):
    rng = np.random.default_rng(0)
    with PoolWriter(tmp_path / "tokenize", {"tokens": token_field(40)}, vocab_size=40, end_of_text=0) as writer:
        for source in ("a", "b"):
            names = [f"{source}{number}" for number in range(90)]
            tokens = [(rng.integers(0, 39) + np.arange(20)) % 39 + 1 if source == "a" else rng.integers(1, 40, 20)
                      for _ in names]
            writer.append({"tokens": tokens}, {"unit_id": names, "record_id": names, "source": [source] * 90})
    return tmp_path


def pretraining(run_folder, name, **changes):
    model = {"kind": "transformer", "layers": 1, "width": 16, "heads": 2, "feed_forward": 32, "context": 40}
    stage = parse(PretrainStage, {"model": model, "length": 40, "batch_tokens": 160, "budget": {"steps": 14},
                                  "precision": "fp32", "policy": POLICY, **changes})
    (run_folder / name).mkdir(exist_ok=True)
    return Pretraining(stage, Context(run_folder, run_folder / name, 1, Hardware(device="cpu", micro_rows=2)))


def stop_at(step):
    return Every(1, lambda loop: signal.raise_signal(signal.SIGTERM) if loop.at.step == step else None)


def test_a_stop_changes_nothing(run_folder):
    straight = pretraining(run_folder, "straight")
    straight.loop().run()
    for step in (5,):
        loop = pretraining(run_folder, "stopped").loop()
        loop.hooks.append(stop_at(step))
        with pytest.raises(Interrupted):
            loop.run()
    resumed = pretraining(run_folder, "stopped")
    resumed.loop().run()
    lines = [[{key: line[key] for key in EXACT if key in line} for line in read_json_lines(run_folder / name /
              "metrics.jsonl")] for name in ("straight", "stopped")]
    assert lines[0] == lines[1] and len(lines[0]) == 14
    assert all(torch.equal(a, b) for a, b in zip(straight.model.parameters(), resumed.model.parameters(), strict=True))
    first, report = json.loads(json.dumps(straight.policy.report())), resumed.policy.report()
    assert first == report and len(report["selector"]["stages"]) >= 2
    assert "effective_units" not in lines[0][2] and lines[0][3]["effective_units"] >= 1
    assert lines[0][-1]["share/a"] != lines[0][0]["share/a"]


def test_a_budget_in_flops_pays_for_choosing(run_folder):
    plain = pretraining(run_folder, "plain", policy={}, budget={"steps": 60})
    budget = 60 * plain.stage.rows * plain.learner.flops_per_row
    assert pretraining(run_folder, "same", policy={}, budget={"flops": budget}).decided["steps"] == 60
    chooser = pretraining(run_folder, "chooser", budget={"flops": budget})
    assert chooser.decided["steps"] < 45
    assert chooser.loop().run().flops == pytest.approx(budget, rel=0.1)
