"""Branches: the decayed model of step k, whatever the stable phase did after it; another mixture; exact resume."""

import json

import pytest

from tilth.recipe import BadInput, Interrupted, parse
from tilth.recipe.files import read_json, read_json_lines, write_json
from tilth.stages import Context
from tilth.stages.commands import trace_run
from tilth.stages.pretrain import PretrainStage
from tilth.stages.pretraining import Pretraining
from tilth.stages.runner import run_recipe
from tilth.stages.stage import Recipe
from tilth.train import Every, Loop
from tilth.train.checkpoint import load_state

BASE = {"model": {"kind": "transformer", "layers": 1, "width": 16, "heads": 2, "context": 32}, "length": 32,
        "batch_tokens": 64, "held_out_every": 1000, "optimizer": {"kind": "adamw", "lr": 3e-3}}
STABLE = {**BASE, "schedule": {"kind": "constant", "warmup": 2}, "budget": {"steps": 12},
          "checkpoint": {"keep_every": 4}}
DECAY = {**BASE, "schedule": {"kind": "wsd", "warmup": 0, "decay": 1}, "budget": {"steps": 4},
         "branch_from": {"stage": "stable", "step": 8}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with a pool of two sources and a finished stable phase of 12 steps."""
    folder = tmp_path_factory.mktemp("run")
    lines = [{"id": f"{source}{n}", "text": f"{source} says {n} times {n * n}. " * 3, "source": source}
             for n in range(60) for source in ("apples", "pears")]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    recipe = parse(Recipe, {"name": "toy", "stages": {
        "curate": {"kind": "curate", "inputs": [{"kind": "auto", "path": str(folder / "data.jsonl")}],
                   "held_out": None},
        "tokenize": {"kind": "tokenize", "tokenizer": {"kind": "bytes"}, "unit_tokens": 32},
        "stable": {"kind": "pretrain", **STABLE}}})
    run_recipe(recipe, folder / "toy")
    return folder / "toy"


def go(run, name, fields, hook=None):
    stage = parse(PretrainStage, fields)
    (run / name).mkdir(exist_ok=True)
    context = Context(run, run / name)
    write_json(run / name / "manifest.json", {"fields": stage.model_dump(mode="json")})
    work = Pretraining(stage, context)
    loop = work.loop()
    loop.hooks += [hook] if hook else []
    try:
        loop.run()
    finally:
        loop.metrics.close()
    return loop


def losses(folder):
    return {line["step"]: (line["loss"], line["lr"]) for line in read_json_lines(folder / "metrics.jsonl")
            if "loss" in line}


def test_a_branch_at_step_k_is_the_run_that_decays_at_k(run):
    straight = {**BASE, "schedule": {"kind": "wsd", "warmup": 2, "decay": 4}, "budget": {"steps": 12}}
    reference = go(run, "straight", straight)
    branch = go(run, "branch", DECAY)
    expected = {step: value for step, value in losses(run / "straight").items() if step > 8}
    found = losses(run / "branch")
    assert found.keys() == expected.keys() == {9, 10, 11, 12}
    assert [loss for loss, _ in found.values()] == [loss for loss, _ in expected.values()]
    assert [lr for _, lr in found.values()] == pytest.approx([lr for _, lr in expected.values()])
    for one, other in zip(branch.learner.modules.parameters(), reference.learner.modules.parameters(), strict=True):
        assert (one == other).all()
    assert branch.stream.state_dict() == reference.stream.state_dict()
    assert branch.at.tokens == reference.at.tokens
    assert (trace_run(run / "branch", "8:12", None) == trace_run(run / "straight", "8:12", None))
    with pytest.raises(BadInput, match="began at step 8"):
        trace_run(run / "branch", "7:9", None)


def test_a_branch_stopped_at_any_step_goes_on_exactly(run):
    go(run, "whole", DECAY)

    def stop(loop: Loop) -> None:
        import signal
        if loop.at.step in (9, 11):
            signal.raise_signal(signal.SIGTERM)

    for _ in range(2):
        with pytest.raises(Interrupted):
            go(run, "pieces", DECAY, Every(1, stop))
    go(run, "pieces", DECAY)
    assert losses(run / "pieces") == losses(run / "whole")


def test_the_stable_phase_goes_on_as_a_branch_of_itself(run):
    longer = {**STABLE, "budget": {"steps": 12}, "checkpoint": {}}
    go(run, "longer", {**longer, "budget": {"steps": 16}})
    go(run, "onward", {**longer, "schedule": {"kind": "constant", "warmup": 0}, "budget": {"steps": 4},
                       "branch_from": {"stage": "stable"}})
    assert {step: value for step, value in losses(run / "longer").items() if step > 12} == losses(run / "onward")


def test_a_branch_with_an_enriched_mixture_begins_it_at_once_and_repeats_nothing_unserved(run):
    enriched = {**DECAY, "policy": {"mixture": {"kind": "fixed", "weights": {"apples": 1.0}}}}
    loop = go(run, "enriched", enriched)
    before = load_state(run / "stable" / "checkpoints" / "step-00000008")["stream"]
    assert loop.stream.stretch == before["stretch"] + 1
    assert loop.stream.rows == before["served"] + before["row"] + 4 * 2
    trace_run(run / "enriched", "8:12", run / "enriched.parquet")
    import polars as pl
    assert set(pl.read_parquet(run / "enriched.parquet")["source"]) == {"apples"}
    drawn = {one["source"]: one["tokens"] for one in loop.stream.policy.report()["sources"]}
    trace_run(run / "stable", "0:8", run / "stable.parquet")
    stable = pl.read_parquet(run / "stable.parquet").group_by("source").agg(pl.col("tokens").sum())
    assert drawn["pears"] == dict(stable.iter_rows())["pears"], "unserved units were given back"


def test_what_a_branch_cannot_carry_over_is_refused_by_name(run):
    for change, message in (
            ({"branch_from": {"stage": "stable", "step": 7}}, "kept no checkpoint of step 7, only of 4, 8, 12"),
            ({"model": {**BASE["model"], "width": 32}}, "`model` differs"),
            ({"optimizer": {"kind": "muon"}}, "must be adamw")):
        with pytest.raises(BadInput, match=message):
            go(run, "refused", {**DECAY, **change})
    assert read_json(run / "stable" / "budget.json")["first_step"] == 0


def test_a_branch_takes_its_own_rate_and_decay(run):
    loop = go(run, "slower", {**DECAY, "optimizer": {"kind": "adamw", "lr": 1e-3, "weight_decay": 0.5},
                              "schedule": {"kind": "constant", "warmup": 0}})
    groups = {group["name"]: group for group in loop.optimizers["main"].param_groups}
    assert (groups["matrices"]["lr"], groups["matrices"]["weight_decay"]) == (1e-3, 0.5)
