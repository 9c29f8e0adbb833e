"""Simulated formats in a run: chosen steps only, exact resumption inside and across them, nothing left in the model."""

import pytest
import torch
from stage_toys import curve, stopped_after, tiny, write_corpus

from tilth.recipe import BadInput
from tilth.stages.model_folder import load_model
from tilth.stages.pretrain import PretrainStage
from tilth.stages.runner import run_recipe
from tilth.stages.simulating import SimulatedLearner

COARSE = {"forward": "E8M1", "backward": "E8M1"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def go(corpus, folder, **pretrain):
    run_recipe(tiny(corpus, **pretrain), folder)
    return curve(folder / "pretrain")


def losses(lines):
    return [line["loss"] for line in lines if "loss" in line]


def test_only_the_chosen_steps_round(corpus, tmp_path):
    plain = losses(go(corpus, tmp_path / "plain"))
    staged = losses(go(corpus, tmp_path / "staged", simulated={**COARSE, "first_step": 4, "end_step": 8}))
    whole = losses(go(corpus, tmp_path / "whole", simulated=COARSE))
    assert staged[:4] == plain[:4] and staged[4] != plain[4]
    assert whole[0] != plain[0]
    model, _ = load_model(tmp_path / "whole")
    assert not any("Simulated" in type(module).__name__ for module in model.modules()), "the saved model is a plain one"


@pytest.mark.parametrize("stop", [2, 5, 9])
def test_stopped_before_inside_and_after_the_range_it_goes_on_exactly(corpus, tmp_path, monkeypatch, stop):
    simulated = {"forward": "E8M2", "backward": "E8M2", "first_step": 4, "end_step": 8}
    expected = go(corpus, tmp_path / "whole", simulated=simulated)
    with stopped_after(stop, monkeypatch):
        go(corpus, tmp_path / "cut", simulated=simulated)
    assert go(corpus, tmp_path / "cut", simulated=simulated) == expected


def test_a_learner_that_is_restored_stands_where_it_stood(corpus, tmp_path):
    recipe = tiny(corpus, simulated={**COARSE, "first_step": 2, "end_step": 4})
    stage = recipe.stages["pretrain"]
    assert isinstance(stage, PretrainStage)
    learner, fresh = stage.learner(257, 0), stage.learner(257, 0)
    assert isinstance(learner, SimulatedLearner) and isinstance(fresh, SimulatedLearner)
    for step, active in ((0, False), (3, True), (5, False)):
        learner.before_update("main", step)
        fresh.load_state_dict(learner.state_dict())
        assert fresh.simulation.active is active
        tokens = torch.arange(8)[None]
        assert torch.equal(fresh.modules["model"](tokens), learner.modules["model"](tokens))


def test_sharpness_is_a_line_of_the_metrics(corpus, tmp_path):
    run_recipe(tiny(corpus, sharpness={"every": 6, "tokens": 200}), tmp_path / "run")
    from tilth.recipe.files import read_json_lines
    found = [line for line in read_json_lines(tmp_path / "run" / "pretrain" / "metrics.jsonl") if "sharpness" in line]
    assert [line["step"] for line in found] == [6, 12]
    assert all(line["sharpness"]["phi"] > 0 and line["sharpness"]["epsilon"] == 5e-4 for line in found)


def test_8_bit_hardware_modes_and_simulation_exclude_each_other(corpus):
    with pytest.raises(BadInput, match="simulated formats go with fp32 or bf16"):
        tiny(corpus, simulated=COARSE, precision="coat")
