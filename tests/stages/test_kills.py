"""`tilth run` in a process of its own, ended in every way, then typed again: the run nobody disturbed, bit for bit."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import yaml
from stage_toys import curve, tiny, write_corpus

from tilth.stages.runner import run_recipe

STEPS = 60
WEIGHTS = "pretrain/model/model.safetensors"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe file, and the folder of its undisturbed run."""
    folder = tmp_path_factory.mktemp("kills")
    found = tiny(write_corpus(folder / "corpus"), budget={"steps": STEPS}, checkpoint={"steps": 7},
                 held_out_every=20)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(found.model_dump(mode="json")))
    run_recipe(found, folder / "straight")
    return folder / "tiny.yaml", folder / "straight"


def start(recipe, folder) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.Popen([sys.executable, "-m", "tilth", "run", str(recipe), "--folder", str(folder)],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def lines_of(folder) -> int:
    path = folder / "pretrain" / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def end_in_training(process, folder, number, after: int) -> tuple[int, str]:
    """Send the signal once `after` lines more are in the log; the exit code and what was said."""
    wanted, deadline = lines_of(folder) + after, time.monotonic() + 120
    while process.poll() is None and lines_of(folder) < wanted and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(number)
    said = process.communicate(timeout=120)[1]
    return process.returncode, said


def check(recipe, folder):
    _, straight = recipe
    process = start(recipe[0], folder)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said
    assert curve(folder / "pretrain") == curve(straight / "pretrain")
    assert (folder / WEIGHTS).read_bytes() == (straight / WEIGHTS).read_bytes()


@pytest.mark.parametrize("signals", [
    (signal.SIGTERM, signal.SIGKILL),
    pytest.param((signal.SIGINT, signal.SIGKILL, signal.SIGUSR1, signal.SIGKILL), marks=pytest.mark.slow)])
def test_run_ended_by_signals_and_kills_is_the_run_nobody_disturbed(recipe, tmp_path, signals):
    folder = tmp_path / "run"
    for number in signals:
        code, said = end_in_training(start(recipe[0], folder), folder, number, after=random.randint(3, 12))
        assert lines_of(folder) < STEPS, "it must have been ended early"
        if number == signal.SIGKILL:
            assert code == -signal.SIGKILL
            continue
        assert code == 130, said
        assert f"Stopped by {number.name}" in said and f"tilth run {recipe[0]} --folder {folder}" in said
        assert "Traceback" not in said
    check(recipe, folder)


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(4))
def test_run_killed_at_any_moment_of_any_stage_is_the_run_nobody_disturbed(recipe, tmp_path, attempt):
    folder = tmp_path / "run"
    for _ in range(4):
        process = start(recipe[0], folder)
        time.sleep(random.uniform(1.0, 6.0))
        process.kill()
        process.communicate()
    check(recipe, folder)
