"""Runs of several processes give what one gives: losses, weights, units, whatever is spread, saved and loaded."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from spread_scenarios import build, run
from train_toys import pool_stream

from tilth.recipe import BadInput
from tilth.recipe.files import read_json_lines
from tilth.train import processes as module
from tilth.train.checkpoint import load_state
from tilth.train.parallel import ParallelSettings, settings_of
from tilth.train.processes import Processes, launched

ALONE = ParallelSettings()


def launch(folder: Path, processes: int, *scenarios: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone",
               str(Path(__file__).with_name("spread_scenarios.py")), str(folder), *scenarios]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    """What two processes left, and then four: the four go on from a checkpoint of the two."""
    folder = tmp_path_factory.mktemp("together")
    pool_stream(folder / "pool")
    launch(folder, 2, "replicate", "shard", "tensor", "context", "muon", "hardest", "hardest_shard", "towers",
           "resume:2", "again", "experts", "experts_shard", "capacity",
           "unbalanced", "adapted")
    shutil.copytree(folder / "resume", folder / "half")
    launch(folder, 4, "hybrid", "tensor_shard", "context_shard", "resume")
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    pool_stream(folder / "pool")
    for name in ("replicate", "muon", "hardest", "towers", "experts", "capacity", "unbalanced",
                 "adapted"):
        run(folder, name, Processes(), ALONE)
    return folder


def end(folder: Path, name: str) -> dict:
    return json.loads((folder / name / "end.json").read_text())


def lines(folder: Path, name: str) -> list[dict]:
    return read_json_lines(folder / name / "metrics.jsonl")


SAME = [("replicate", "replicate"), ("shard", "replicate"), ("hybrid", "replicate"), ("tensor", "replicate"),
        ("tensor_shard", "replicate"), ("context", "replicate"), ("context_shard", "replicate"), ("muon", "muon"),
        ("hardest", "hardest"), ("hardest_shard", "hardest"), ("towers", "towers"), ("resume", "muon"),
        ("experts", "experts"), ("experts_shard", "experts"), ("capacity", "capacity"),
        ("unbalanced", "unbalanced"), ("adapted", "adapted")]


@pytest.mark.parametrize(("name", "reference"), SAME)
def test_several_processes_train_as_one(together, alone, name, reference):
    one, other = end(alone, reference), end(together, name)
    assert one["weights"].keys() == other["weights"].keys()
    for key, values in one["weights"].items():
        torch.testing.assert_close(torch.tensor(other["weights"][key], dtype=torch.float64),
                                   torch.tensor(values, dtype=torch.float64), rtol=1e-8, atol=1e-10, msg=key)
    for ours, theirs in zip(lines(alone, reference), lines(together, name), strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-7), "sums of units are float32"
        for field in ("gradient_norm", "tokens", "flops", "lr"):
            assert theirs[field] == pytest.approx(ours[field], rel=1e-9), field
        assert theirs.get("padded") == pytest.approx(ours.get("padded"))


@pytest.mark.parametrize(("name", "reference"), [("experts_shard", "experts"), ("capacity", "capacity")])
def test_experts_are_asked_as_by_one_process(together, alone, name, reference):
    fields = ["balance_loss", "router_z_loss", "expert_load", *(["expert_dropped"] if name == "capacity" else [])]
    for ours, theirs in zip(lines(alone, reference), lines(together, name), strict=True):
        for field in fields:
            torch.testing.assert_close(torch.tensor(theirs[field]), torch.tensor(ours[field]))
        assert torch.tensor(theirs["expert_load"]).sum(-1).tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("name", ["replicate", "shard", "tensor", "hybrid", "tensor_shard", "context_shard"])
def test_every_process_is_told_of_all_units_in_the_order_of_one(together, alone, name):
    ours, theirs = end(alone, "replicate")["told"], end(together, name)["told"]
    flat = [[unit for ids, _ in told for unit in ids] for told in (ours, theirs)]
    assert flat[0] == flat[1]
    losses = [torch.tensor([one for _, values in told for one in values]) for told in (ours, theirs)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)


def test_two_processes_go_on_bit_for_bit(together):
    assert end(together, "again")["weights"] == end(together, "muon")["weights"]
    assert [line["loss"] for line in lines(together, "again")] == [line["loss"] for line in lines(together, "muon")]


def test_one_process_goes_on_from_a_checkpoint_of_two(together, alone, tmp_path):
    """...and so do four (`resume`, above): moments, weights and stream are those of the run that was not stopped."""
    shutil.copytree(together / "pool", tmp_path / "pool")
    shutil.copytree(together / "half", tmp_path / "resume")
    run(tmp_path, "resume", Processes(), ALONE)
    one, other = end(alone, "muon"), end(tmp_path, "resume")
    assert [line["step"] for line in lines(tmp_path, "resume")] == [1, 2, 3, 4]
    for key, values in one["weights"].items():
        torch.testing.assert_close(torch.tensor(other["weights"][key], dtype=torch.float64),
                                   torch.tensor(values, dtype=torch.float64), rtol=1e-8, atol=1e-10, msg=key)


def test_sharded_checkpoint_holds_each_number_once_and_is_refused_when_edited(together, tmp_path):
    folder = shutil.copytree(together / "half" / "checkpoints" / "step-00000002", tmp_path / "step")
    shards = sorted(folder.glob("*.safetensors"))
    whole = sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(load_state(folder)))
    assert len(shards) == 2
    assert whole <= sum(path.stat().st_size for path in shards) < 1.2 * whole + 2 * 8192, "no tensor twice"
    content = bytearray(shards[1].read_bytes())
    content[-1] ^= 1
    shards[1].write_bytes(content)
    with pytest.raises(BadInput, match=shards[1].name):
        load_state(folder)


def tensors_of(state) -> list[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return [state]
    items = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else []
    return [tensor for item in items for tensor in tensors_of(item)]


@pytest.mark.parametrize("remember", ["products", "inputs"])
def test_what_is_computed_again_is_the_same_to_the_bit(alone, tmp_path, remember):
    shutil.copytree(alone / "pool", tmp_path / "pool")
    run(tmp_path, "replicate", Processes(), ParallelSettings(remember=remember))
    assert end(tmp_path, "replicate")["weights"] == end(alone, "replicate")["weights"]


def test_less_is_kept_for_the_backward_pass(tmp_path):
    from tilth.stages.building import random_batch
    from tilth.train.device import SavedBytes
    from tilth.train.loop import seeded
    kept = {}
    for remember in ("all", "products", "inputs"):
        loop = build(tmp_path, Processes(), ParallelSettings(remember=remember), name=remember)
        loop.learner.modules.float()
        weights = {parameter.untyped_storage().data_ptr() for parameter in loop.learner.modules.parameters()}
        with SavedBytes(weights) as saved:
            loss = loop.learner.loss("main", random_batch(17, 4, 12, torch.device("cpu")), seeded(0))
        kept[remember] = saved.bytes
        assert float(loss.total.detach().sum()) > 0
    assert kept["inputs"] < 0.5 * kept["all"]
    assert kept["products"] < kept["all"]


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path):
    processes = Processes()
    processes.data_world = 3
    pool_stream(tmp_path / "pool")
    with pytest.raises(BadInput, match="3 processes must divide the batch of 8 rows"):
        build(tmp_path, processes, ALONE)


@pytest.mark.parametrize(("arguments", "match"), [
    ({"replicas": 2}, "needs --shard"), ({"remember": "some"}, "use all, products or inputs")])
def test_settings_that_contradict_each_other_are_refused(arguments, match):
    with pytest.raises(BadInput, match=match):
        settings_of(**arguments)


def test_tensor_parallelism_needs_processes_and_sizes_that_divide(tmp_path):
    pool_stream(tmp_path / "pool")
    with pytest.raises(BadInput, match="cannot be split into groups of 2"):
        Processes(tensor=2)
    from spread_scenarios import text_learner
    with pytest.raises(BadInput, match=r"`model.heads` is 2, which --tensor 3"):
        text_learner().modules["model"].tensor_plan(3)


@pytest.mark.parametrize(("environment", "found"), [
    ({}, None), ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, (1, 2, 1)),
    ({"RANK": "0", "WORLD_SIZE": "1"}, None),
    ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1", "MASTER_ADDR": "a"}, (3, 4, 1)),
    ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, None)])
def test_launchers_are_known_by_their_environment(monkeypatch, environment, found):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launched() == found


@pytest.mark.parametrize(("shared", "fresh"), [("True", True), ("False", False)])
def test_restarts_are_told_apart_only_in_a_store_that_is_kept(shared, fresh, monkeypatch):
    """Agents that share one keep it over restarts, of which all count the same; without that every start has its own,
    and the agent of a machine that took another's place counts from 0."""
    kept = torch.distributed.HashStore()
    monkeypatch.setattr(module.dist, "rendezvous", lambda *rest: iter([(kept, 0, 2)]))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", shared)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    module._store(0, 2).set("address", "of the first start")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert module._store(0, 2).check(["address"]) != fresh
