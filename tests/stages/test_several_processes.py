"""The same command under torchrun: one process leads, all train, and any number of processes goes on."""

import os
import shutil
import subprocess
import sys

import pytest
import yaml
from safetensors.torch import load_file
from stage_toys import curve, tiny, write_corpus

from tilth.recipe.files import read_json, write_json
from tilth.stages import Hardware
from tilth.stages.runner import run_recipe


def torchrun(processes: int, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
               "-m", "tilth", *arguments]
    return subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
                          timeout=300)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The tiny recipe by one process and by two, sharded."""
    folder = tmp_path_factory.mktemp("several")
    recipe = tiny(write_corpus(folder / "corpus"))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    run_recipe(recipe, folder / "one", Hardware(micro_rows=2))
    done = torchrun(2, "run", str(folder / "recipe.yaml"), "-f", str(folder / "two"), "--shard", "--micro-rows", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    return recipe, folder, done


def close(one: list[dict], other: list[dict]) -> None:
    assert [line["step"] for line in one] == [line["step"] for line in other]
    for ours, theirs in zip(one, other, strict=True):
        for name in ("loss", "tokens", "flops", "gradient_norm"):
            if name in ours:
                assert theirs[name] == pytest.approx(ours[name], rel=2e-4), name
        if "held_out" in ours:
            assert theirs["held_out"]["bits_per_byte"] == pytest.approx(ours["held_out"]["bits_per_byte"], rel=2e-4)


def test_two_processes_leave_the_run_of_one(runs):
    _, folder, done = runs
    close(curve(folder / "one" / "pretrain"), curve(folder / "two" / "pretrain"))
    one, two = (read_json(folder / name / "pretrain" / "manifest.json")["summary"] for name in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    assert one["tokens"] == two["tokens"] and one["sources"] == two["sources"]
    for name in ("report.html", "pretrain/model/config.json", "pretrain/drawn"):
        assert (folder / "two" / name).exists()
    assert done.stderr.count("pretrain: done in") == 1, "one process speaks for all"


def test_one_process_goes_on_where_two_stopped(runs, tmp_path):
    recipe, folder, _ = runs
    shutil.copytree(folder / "two", tmp_path / "run")
    stage = tmp_path / "run" / "pretrain"
    steps = sorted((stage / "checkpoints").glob("step-*"))
    shutil.rmtree(steps[-1])
    shutil.rmtree(stage / "model")
    manifest = read_json(stage / "manifest.json")
    write_json(stage / "manifest.json", {**manifest, "summary": None})
    run_recipe(recipe, tmp_path / "run", Hardware(micro_rows=2))
    close(curve(folder / "one" / "pretrain"), curve(stage))
    ours, theirs = (load_file(path / "model" / "model.safetensors") for path in (folder / "one" / "pretrain", stage))
    for name, tensor in ours.items():
        assert (tensor - theirs[name]).abs().max() < 1e-3, name


def test_bad_input_is_told_once(runs, tmp_path):
    _, folder, _ = runs
    done = torchrun(2, "run", str(folder / "recipe.yaml"), "-f", str(tmp_path / "run"), "pretrain.batch_tokens=7")
    assert done.returncode != 0
    assert done.stderr.count("tilth: error:") == 1 and "must be a multiple of `length`" in done.stderr
