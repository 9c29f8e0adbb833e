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
          "selector": {"kind": "mates", "share": 0.9, "probes": 20, "held_back": 0.2, "anchors": 10, "keep": 0.5,
                       "scorer": {"kind": "ngrams", "bits": 8}, "reference": {"share": 0.1, "tokens": 100}},
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


@pytest.mark.parametrize("scorer", [
    {"kind": "ngrams", "bits": 8},
    {"kind": "encoder", "width": 8, "heads": 1, "length": 20, "epochs": 2, "share": 1.0}], ids=["ngrams", "encoder"])
def test_a_stop_changes_nothing(run_folder, scorer):
    policy = {**POLICY, "selector": {**POLICY["selector"], "scorer": scorer}}
    straight = pretraining(run_folder, "straight", policy=policy)
    straight.loop().run()
    for step in (9,):
        loop = pretraining(run_folder, "stopped", policy=policy).loop()
        loop.hooks.append(stop_at(step))
        with pytest.raises(Interrupted):
            loop.run()
    resumed = pretraining(run_folder, "stopped", policy=policy)
    resumed.loop().run()
    lines = [[{key: line[key] for key in EXACT if key in line} for line in read_json_lines(run_folder / name /
              "metrics.jsonl")] for name in ("straight", "stopped")]
    assert lines[0] == lines[1] and len(lines[0]) == 14
    assert all(torch.equal(a, b) for a, b in zip(straight.model.parameters(), resumed.model.parameters(), strict=True))
    first, report = json.loads(json.dumps(straight.policy.report())), resumed.policy.report()
    assert first == report and len(report["selector"]["stages"]) >= 2
    assert "effective_units" not in lines[0][2] and lines[0][3]["effective_units"] >= 1
    assert lines[0][-1]["share/a"] != lines[0][0]["share/a"]


@pytest.mark.parametrize("stretch_units", [24, 60, 110])
def test_a_budget_in_flops_pays_for_choosing_and_is_used_up(run_folder, stretch_units):
    """Few or many stretches, each of which costs as much as some steps: the run ends within a step of its budget."""
    plain = pretraining(run_folder, "plain", policy={}, budget={"steps": 60})
    budget = 60 * plain.stage.rows * plain.learner.flops_per_row
    assert pretraining(run_folder, "same", policy={}, budget={"flops": budget}).decided["steps"] == 60
    policy = {**POLICY, "stretch_units": stretch_units}
    chooser = pretraining(run_folder, "chooser", budget={"flops": budget}, policy=policy)
    assert chooser.decided["steps"] < 55 and chooser.decided["stretches"] > 1
    at = chooser.loop().run()
    step = 4 / 3 * budget / 60  # with the first pass of a weigher that looks at losses
    assert budget - 1.1 * step < at.flops < budget + 0.02 * budget
    assert chooser.policy.report()["selector"]["stages"]


def test_a_run_that_is_held_to_its_share_uses_up_its_budget(run_folder):
    """Fewer probes than asked for, by what the whole run may spend: a plan of its rest must not count them anew."""
    plain = pretraining(run_folder, "plain", policy={}, budget={"steps": 400})
    budget = 400 * plain.stage.rows * plain.learner.flops_per_row
    selector = {**POLICY["selector"], "share": 0.15, "probes": 100, "held_back": 0.5, "start": 15, "reference": {
        "share": 0.1, "tokens": 64}}
    run = pretraining(run_folder, "held", policy={"selector": selector, "stretch_units": 180}, budget={"flops": budget})
    at = run.loop().run()
    report = run.policy.report()["selector"]
    assert 20 <= report["stages"][0]["probed"] < 80 and sum(report["flops"].values()) <= 0.15 * at.flops
    assert budget - 1.1 * budget / 400 < at.flops < 1.01 * budget


def test_a_stop_does_not_move_the_end_that_was_planned_anew(run_folder):
    plain = pretraining(run_folder, "plain", policy={}, budget={"steps": 40})
    budget = {"flops": 40 * plain.stage.rows * plain.learner.flops_per_row}
    straight = pretraining(run_folder, "straight", budget=budget).loop().run()
    for step in (4, 15):
        loop = pretraining(run_folder, "stopped", budget=budget).loop()
        loop.hooks.append(stop_at(step))
        with pytest.raises(Interrupted):
            loop.run()
    at = pretraining(run_folder, "stopped", budget=budget).loop().run()
    assert (at.step, at.flops) == (straight.step, straight.flops)
    lines = [[line["lr"] for line in read_json_lines(run_folder / name / "metrics.jsonl")]
             for name in ("straight", "stopped")]
    assert lines[0] == lines[1]


def test_a_branch_goes_on_choosing_with_what_the_source_has_learned(run_folder):
    """A decay branch at step 9 of a run within FLOPs is the run that decayed from there, and may measure anew."""
    schedule = {"kind": "constant", "warmup": 0}
    plain = pretraining(run_folder, "plain", policy={}, budget={"steps": 60})
    flops = 60 * plain.stage.rows * plain.learner.flops_per_row
    source = pretraining(run_folder, "source", schedule=schedule, checkpoint={"keep_every": 9}, budget={"flops": flops})
    source.loop().run()
    fields = source.stage.model_dump(mode="json")
    (run_folder / "source" / "manifest.json").write_text(json.dumps({"fields": fields}))
    decay = {"kind": "wsd", "warmup": 0, "decay": 1, "shape": "exponential", "floor": 0.0625}
    branch = pretraining(run_folder, "branch", schedule=decay, branch_from={"stage": "source", "step": 9},
                         budget={"steps": 8})
    branch.loop().run()
    assert branch.policy.last_stretch is None and source.policy.last_stretch is not None
    lines = {name: read_json_lines(run_folder / name / "metrics.jsonl") for name in ("source", "branch")}
    assert lines["branch"][0]["loss"] == lines["source"][9]["loss"]  # the same step, but for its rate
    assert [line["lr"] / lines["source"][0]["lr"] for line in lines["branch"]] == pytest.approx(
        [0.0625 ** (step / 8) for step in range(1, 9)])
    stretches = [stage["stretch"] for stage in branch.policy.report()["selector"]["stages"]]
    assert len(stretches) == len(set(stretches)) > 1
