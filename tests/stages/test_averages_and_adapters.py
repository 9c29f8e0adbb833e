"""Averages, adapters and mixtures of experts as fields of a recipe: what a run leaves, stopped and resumed, planned."""

import json
import signal

import pytest
import torch
from safetensors.torch import load_file

from tilth.models import TransformerConfig, export_llama
from tilth.recipe import BadInput, Interrupted, parse
from tilth.recipe.files import read_json, read_json_lines, write_json
from tilth.stages import Context, Hardware
from tilth.stages.export import export
from tilth.stages.model_folder import load_model
from tilth.stages.plan import plan_recipe, plan_text
from tilth.stages.pretrain import PretrainStage
from tilth.stages.pretraining import Pretraining
from tilth.stages.runner import run_recipe
from tilth.stages.stage import Recipe
from tilth.train import Every
from tilth.train.checkpoint import load_state

MODEL = {"kind": "transformer", "layers": 1, "width": 16, "heads": 2, "feed_forward": 32, "context": 32}
BASE = {"model": MODEL, "length": 32, "batch_tokens": 128, "held_out_every": 4, "budget": {"steps": 10},
        "optimizer": {"kind": "adamw", "lr": 1e-2}, "schedule": {"kind": "constant", "warmup": 0},
        "precision": "fp32"}
EXPERTS = {"count": 4, "active": 2, "hidden": 16, "capacity": 1.0}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with a pool and held-out text, and a Llama folder to adapt."""
    folder = tmp_path_factory.mktemp("run")
    lines = [{"id": str(n), "text": f"Fields say {n} times {n * n}. " * 3, "source": "a"} for n in range(120)]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    recipe = parse(Recipe, {"name": "toy", "stages": {
        "curate": {"kind": "curate", "inputs": [{"kind": "auto", "path": str(folder / "data.jsonl")}],
                   "held_out": {"minimum_bytes": 600, "share": 0.1}},
        "tokenize": {"kind": "tokenize", "tokenizer": {"kind": "bytes"}, "unit_tokens": 32}}})
    run_recipe(recipe, folder / "toy")
    torch.manual_seed(0)
    base = TransformerConfig(vocab_size=257, layers=2, width=16, heads=2, feed_forward=32, context=32, init_std=0.2)
    export_llama(base.build().initialize(0), folder / "llama")
    return folder / "toy"


def go(run, name, fields, stop=()):
    """Run a stage to its end; `stop`: steps at which a request to stop comes."""
    stage = parse(PretrainStage, fields)
    (run / name).mkdir(exist_ok=True)
    write_json(run / name / "manifest.json", {"fields": stage.model_dump(mode="json"), "summary": None})
    work = Pretraining(stage, Context(run, run / name))
    make = work.loop

    def loop():
        made = make()
        made.hooks.append(Every(1, lambda loop: signal.raise_signal(signal.SIGTERM) if loop.at.step in stop else None))
        return made

    work.loop = loop
    return work.run()


def in_pieces(run, name, fields, stop):
    for _ in stop:
        with pytest.raises(Interrupted):
            go(run, name, fields, stop)
    return go(run, name, fields)


def model(run, name, folder="model"):
    return load_file(run / name / folder / "model.safetensors")


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_averaged_model_is_what_later_stages_read_and_its_score_is_told(run):
    fields = {**BASE, "average": {"kind": "ema", "decay": 0.8}}
    summary = go(run, "ema", fields)
    lines = read_json_lines(run / "ema" / "metrics.jsonl")
    told = [line["held_out_average"]["bits_per_byte"] for line in lines if "held_out_average" in line]
    assert len(told) == 3 and summary["held_out_average"] == pytest.approx(told[-1])
    assert summary["held_out_average"] != summary["held_out_bits_per_byte"]
    go(run, "without", BASE)
    assert equal(model(run, "ema", "last"), model(run, "without"))
    assert not equal(model(run, "ema"), model(run, "ema", "last"))
    go(run, "beside", {**fields, "average": {"kind": "ema", "decay": 0.8, "use": False}})
    assert equal(model(run, "beside"), model(run, "without"))
    assert equal(model(run, "beside", "averaged"), model(run, "ema"))


def test_a_branch_goes_on_with_the_average_of_its_source(run):
    fields = {**BASE, "average": {"kind": "ema", "decay": 0.8}, "checkpoint": {"keep_every": 4}}
    go(run, "source", fields)
    go(run, "branch", {**fields, "budget": {"steps": 6}, "branch_from": {"stage": "source", "step": 4}})
    assert equal(model(run, "branch"), model(run, "source"))
    with pytest.raises(BadInput, match="`average` differs"):
        go(run, "other", {**fields, "average": None, "branch_from": {"stage": "source"}})


def test_the_mean_of_checkpoints_is_that_of_their_weights(run):
    fields = {**BASE, "checkpoint": {"keep_every": 2}, "average": {"kind": "checkpoints", "count": 3}}
    summary = go(run, "mean", fields)
    states = [load_state(run / "mean" / "checkpoints" / f"step-{step:08d}")["learner"]["modules"]
              for step in (6, 8, 10)]
    for name, tensor in model(run, "mean").items():
        expected = torch.stack([state[f"model.{name}"].double() for state in states]).mean(0).float()
        assert torch.equal(tensor, expected)
    assert summary["held_out_average"] > 0
    with pytest.raises(BadInput, match="keeps 2 checkpoints"):
        go(run, "few", {**fields, "checkpoint": {"keep_every": 5}})


CASES = {
    "ema": {"average": {"kind": "ema", "decay": 0.8}},
    "mean": {"average": {"kind": "checkpoints", "count": 2}, "checkpoint": {"keep_every": 4}},
    "experts": {"model": {**MODEL, "experts": EXPERTS}, "optimizer": {"kind": "muon", "lr": 1e-2}},
    "lora": {"start_from": "llama", "lora": {"rank": 2}, "average": {"kind": "ema"}},
}


@pytest.mark.parametrize("case", CASES)
def test_stopped_and_resumed_leaves_the_same_bytes(run, case):
    fields = {**BASE, **CASES[case]}
    if "start_from" in fields:
        fields["start_from"] = str(run.parent / "llama")
    whole, pieces = go(run, f"whole-{case}", fields), in_pieces(run, f"pieces-{case}", fields, (3, 7))
    assert equal(model(run, f"whole-{case}"), model(run, f"pieces-{case}"))
    assert whole.get("held_out_average") == pieces.get("held_out_average")
    curves = [[line.get("loss") for line in read_json_lines(run / f"{one}-{case}" / "metrics.jsonl")]
              for one in ("whole", "pieces")]
    assert curves[0] == curves[1]


def test_adapters_train_alone_and_leave_a_plain_model_that_exports(run, tmp_path):
    fields = {**BASE, "start_from": str(run.parent / "llama"), "lora": {"rank": 2, "targets": ["query", "down"]}}
    summary = go(run, "lora", fields)
    assert summary["parameters_trained"] == 2 * 2 * (16 + 16 + 32 + 16) < summary["parameters"]
    base, found = load_file(run.parent / "llama" / "model.safetensors"), load_model(run / "lora")[0]
    assert torch.equal(found.embedding.weight, base["model.embed_tokens.weight"])
    assert torch.equal(found.blocks[0].attention.key.weight, base["model.layers.0.self_attn.k_proj.weight"])
    assert not torch.equal(found.blocks[0].attention.query.weight, base["model.layers.0.self_attn.q_proj.weight"])
    state = load_state(run / "lora" / "checkpoints" / "step-00000010")
    held = sum(one["exp_avg"].numel() for one in state["optimizers"]["main"]["state"].values())
    assert held == summary["parameters_trained"]
    export(run / "lora", tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == base.keys()


def test_a_mixture_runs_its_road_and_is_counted_on_it(run, tmp_path):
    fields = {**BASE, "model": {**MODEL, "experts": EXPERTS}}
    summary = go(run, "experts", fields)
    one = 3 * 16 * 16
    assert summary["parameters"] - summary["parameters_active"] == 2 * one
    line = [line for line in read_json_lines(run / "experts" / "metrics.jsonl") if "loss" in line][-1]
    assert len(line["expert_load"]) == 1 and sum(line["expert_load"][0]) == pytest.approx(1)
    assert 0 <= line["expert_dropped"] < 1 and line["balance_loss"] > 0
    write_json(run / "experts" / "manifest.json", {"fields": fields, "summary": summary})
    export(run / "experts", tmp_path)
    assert read_json(tmp_path / "config.json")["model_type"] == "mixtral"
    assert f"({summary['parameters_active']:,} of them active for each token)" in (tmp_path / "README.md").read_text()


def test_plans_count_active_and_trained_parameters(run, tmp_path):
    stages = {"tokenize": {"kind": "tokenize", "tokenizer": {"kind": "bytes"}},
              "experts": {"kind": "pretrain", **BASE, "model": {**MODEL, "experts": EXPERTS}},
              "lora": {"kind": "pretrain", **BASE, "start_from": str(run.parent / "llama"), "lora": {"rank": 2}}}
    mixed, adapted = plan_recipe(parse(Recipe, {"name": "toy", "stages": stages}), tmp_path, Hardware(device="cpu"))
    assert "active for a token" in plan_text(mixed) and "trained" not in plan_text(mixed)
    assert adapted["parameters_trained"] * 4 == adapted["memory"]["gradients"] < adapted["memory"]["weights"] / 2
    assert "trained" in plan_text(adapted) and adapted["advice"] is None
    assert mixed["advice"]["parameters"] == mixed["parameters_non_embedding"]


@pytest.mark.parametrize(("fields", "message"), [
    ({"lora": {}}, "lora adapts a model that exists; set start_from"),
    ({"lora": {}, "start_from": "x", "optimizer": {"kind": "adamw", "lr": "auto"}}, "with lora, give a rate"),
    ({"average": {"kind": "ema"}, "simulated": {}}, "drop simulated or average"),
    ({"average": {"kind": "mean"}}, "choose|Choose one of ema, checkpoints")])
def test_what_does_not_go_together_is_refused(fields, message):
    with pytest.raises(BadInput, match=message):
        parse(PretrainStage, {**BASE, **fields})


def test_adapters_and_tensor_parallelism_are_refused(run):
    from tilth.train.parallel import ParallelSettings
    stage = parse(PretrainStage, {**BASE, "start_from": str(run.parent / "llama"), "lora": {"rank": 2}})
    with pytest.raises(BadInput, match=r"Adapters \(`lora`\) are not split by --tensor"):
        Pretraining(stage, Context(run, run / "tensor", hardware=Hardware(parallel=ParallelSettings(tensor=2))))
