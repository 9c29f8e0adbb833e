"""Several runs side by side: planted domains, onsets, orders, sizes alike at equal loss, and a law found again."""

import json

import numpy as np
import pytest

from tilth.evaluate.tracking.study import lines, study
from tilth.recipe import BadInput
from tilth.stages.track import study_runs


def loss_of(size, tokens):
    return 1.0 + 20 / size**0.4 + 50 / tokens**0.3


def planted(size, seed, tasks=("sum-a", "sum-b", "copy-a", "copy-b"), shift=0.0):
    """A run whose tasks follow its loss, with wiggles that tasks of one domain share."""
    rng = np.random.default_rng(seed)
    tokens = np.geomspace(1e5, 1e7, 14)
    loss = loss_of(size, tokens)
    wiggles = {domain: rng.normal(0, 0.02, len(tokens)) for domain in ("sum", "copy")}
    points = []
    for number, count in enumerate(tokens):
        results = {task: {"accuracy": {"value": 0.25 + 0.25 * (3.6 - loss[number]) + wiggles[task[:-2]][number] + shift,
                                       "stderr": 0.01, "n": 400, "chance": 0.25}} for task in tasks}
        results["held_out"] = {"bits_per_byte": {"value": float(loss[number]), "stderr": 0.01, "n": 9}}
        points.append({"step": number + 1, "tokens": count, "flops": count, "results": results})
    return {"parameters": size, "total_tokens": tokens[-1], "points": points, "forecasts": [], "started": []}


@pytest.fixture
def runs():
    return {f"{size}-{seed}": planted(size, 10 * at + seed) for at, size in enumerate((1e3, 3e3, 1e4, 3e4))
            for seed in range(2)}


def test_what_was_planted_is_found(runs):
    found = study(runs)
    assert found["coherence"]["within"] > 0.9 > 0.5 > found["coherence"]["across"]
    assert found["size_gap"]["loss"] < found["size_gap"]["tokens"]
    assert found["loss_law"]["relative_error"] < 0.01
    assert found["early_order"]["sum-a"]["loss"] > 0.7
    assert all(tokens is not None for tokens in found["starts"]["copy-b"].values())
    assert any("bits per byte" in line for line in lines(found))
    assert json.loads(json.dumps(found)) == found


def test_domains_can_be_named_and_the_wrong_ones_do_not_cohere(runs):
    wrong = {"sum-a": "x", "copy-a": "x", "sum-b": "y", "copy-b": "y"}
    assert study(runs, wrong)["coherence"]["value"] < 0


def test_what_cannot_be_answered_is_null(runs):
    found = study({"one": planted(1e3, 0, tasks=("sum-a",))})
    assert [found[key] for key in ("coherence", "size_gap", "loss_law")] == [None, None, None]
    assert found["early_order"]["sum-a"] is None
    assert len(lines(found)) == 5
    with pytest.raises(BadInput, match="share no task"):
        study({"one": planted(1e3, 0, tasks=("sum-a",)), "two": planted(1e3, 0, tasks=("copy-a",))})


def test_folders_and_domains_from_the_command_line(tmp_path, runs):
    for name, tracking in runs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "tracking.json").write_text(json.dumps(tracking))
    folders = [tmp_path / name for name in runs]
    assert study_runs(folders, ["sums=sum-a,sum-b", "copies=copy-a,copy-b"], 0.3)["coherence"]["p"] <= 1
    with pytest.raises(BadInput, match="NAME=TASK"):
        study_runs(folders, ["sums"], 0.3)
