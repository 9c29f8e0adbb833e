"""The precision of a stage: one field; combinations that cannot be; runs in FP8 that stop and go on exactly."""

import pytest
import torch
from stage_toys import curve, stopped_after, tiny, write_corpus
from torch import nn

from tilth.objectives import Causal
from tilth.optim import AdamW
from tilth.optim.coat import CoatAdamW
from tilth.recipe import BadInput, parse
from tilth.recipe.files import read_json_lines
from tilth.stages.model_folder import load_model
from tilth.stages.plan import plan_recipe
from tilth.stages.pretrain import PretrainStage
from tilth.stages.runner import run_recipe
from tilth.stages.stage import Hardware
from tilth.train import Learner, micro
from tilth.train.parallel import ParallelSettings

COAT = {"precision": "coat", "optimizer": {"kind": "coat_adamw", "lr": 1e-2, "expansion": True}}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def go(corpus, folder, hardware=None, **pretrain):
    run_recipe(tiny(corpus, **pretrain), folder, hardware or Hardware())
    return curve(folder / "pretrain")


def test_coat_learns_as_float32_does_and_says_what_its_updates_were(corpus, tmp_path):
    plain = go(corpus, tmp_path / "plain", optimizer={"kind": "adamw", "lr": 1e-2})
    ours = go(corpus, tmp_path / "coat", **COAT)
    assert ours[-1]["held_out"]["loss"] == pytest.approx(plain[-1]["held_out"]["loss"], rel=0.02)
    lines = [line for line in read_json_lines(tmp_path / "coat" / "pretrain" / "metrics.jsonl") if "loss" in line]
    assert all(0 < line["largest_update"] < 20 for line in lines)
    model, _ = load_model(tmp_path / "coat")
    assert {getattr(module, "mode", "plain") for module in model.modules()} == {"plain"}


@pytest.mark.parametrize("stop", [3, 8])
def test_stopped_anywhere_it_goes_on_exactly(corpus, tmp_path, monkeypatch, stop):
    expected = go(corpus, tmp_path / "whole", **COAT)
    with stopped_after(stop, monkeypatch):
        go(corpus, tmp_path / "cut", **COAT)
    assert go(corpus, tmp_path / "cut", **COAT) == expected


def test_what_does_not_go_together_is_refused(corpus, tmp_path):
    with pytest.raises(BadInput, match=r"multiples of 16.*feed_forward"):
        go(corpus, tmp_path / "a", precision="fp8", model={"kind": "transformer", "layers": 1, "width": 16, "heads": 2,
                                                           "feed_forward": 40, "context": 64})
    with pytest.raises(BadInput, match="--compile"):
        go(corpus, tmp_path / "b", Hardware(parallel=ParallelSettings(compile=True)), **COAT)
    with pytest.raises(BadInput, match="precision"):
        parse(PretrainStage, {"precision": "fp4", "budget": {"steps": 1}})


def test_a_plan_measures_the_states_and_what_waits(corpus, tmp_path):
    """Before anything is spent: moments a quarter of float32's and fewer bytes of activations."""
    model = {"kind": "transformer", "layers": 2, "width": 128, "heads": 2, "feed_forward": 256, "context": 64}
    plans = [plan_recipe(tiny(corpus, model=model, **more), tmp_path, Hardware())[0] for more in
             ({"optimizer": {"kind": "adamw", "lr": 1e-2}}, COAT)]
    plain, ours = (one["memory"] for one in plans)
    parameters = plans[0]["parameters"]
    assert plain["moments"] == pytest.approx(8 * parameters, rel=1e-3)  # and a step count for each tensor
    assert ours["moments"] == pytest.approx(2.125 * parameters, rel=0.01)
    assert ours["weights"] == plain["weights"] and ours["activations"] < 0.6 * plain["activations"]
    assert plans[1]["precision"] == "coat"


def test_smaller_states_leave_room_for_activations(monkeypatch):
    learner = Learner(nn.Linear(1000, 1000, bias=False), Causal())
    monkeypatch.setattr(micro, "memory_total", lambda device: 32 * 10**6)
    float32, fp8 = (micro.activation_budget(learner, torch.device("cpu"), config.state_bytes)
                    for config in (AdamW(), CoatAdamW()))
    assert float32 == int(0.85 * 32 * 10**6) - 16 * 10**6 and fp8 - float32 == 5.875 * 10**6
