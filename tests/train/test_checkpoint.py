"""Checkpoints: what goes in comes out, damage is named and passed over, nothing is unpickled."""

import errno
import json
import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tilth
from tilth.recipe import BadInput, RunFailed
from tilth.train import Checkpoints
from tilth.train import checkpoint as checkpoint_module
from tilth.train.checkpoint import decode, encode, load_state, save_state

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    values = torch.randint(0, 2 if (dtype := draw(st.sampled_from(DTYPES))) == torch.bool else 9, shape)
    values = values.to(dtype)
    return values.T if values.ndim == 2 and draw(st.booleans()) else values


KEYS = st.one_of(st.text(st.sampled_from("a/'$1"), max_size=3), st.sampled_from(["$tensor", "$tuple", "$items", "1"]),
                 st.integers(-2, 2), st.booleans(), st.none())
PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5))


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return (isinstance(other, torch.Tensor) and one.dtype == other.dtype and one.shape == other.shape
                and torch.equal(one, other))
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return (list(one) == list(other) and [type(key) for key in one] == [type(key) for key in other]
                and all(same(one[key], other[key]) for key in one))
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


STATES = st.dictionaries(KEYS, st.recursive(
    PLAIN | tensors(), lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple)
    | st.dictionaries(KEYS, inner, max_size=3), max_leaves=12), max_size=4)


@settings(deadline=None, max_examples=200)
@given(STATES)
def test_any_state_survives_json_and_safetensors(state):
    found: dict[str, torch.Tensor] = {}
    tree = json.loads(json.dumps(encode(state, found, {})))
    assert same(decode(tree, found), state)


@settings(deadline=None, max_examples=10)
@given(STATES)
def test_any_state_survives_the_disk(tmp_path_factory, state):
    folder = tmp_path_factory.mktemp("state") / "step"
    save_state(folder, {"state": state})
    assert same(load_state(folder), {"state": state})


def test_tied_tensors_are_stored_once_and_equal_views_of_parts_are_not_confused(tmp_path):
    table = torch.arange(6.0).view(2, 3)
    state = {"embedding": table, "head": table, "row": table[0], "transposed": table.T, "copy": table.clone()}
    save_state(tmp_path / "s", state)
    loaded = load_state(tmp_path / "s")
    assert same(loaded, state)
    assert loaded["embedding"] is loaded["head"]
    stored = (tmp_path / "s" / "tensors.safetensors").read_bytes()
    assert b"/head" not in stored and b"/copy" in stored


def test_special_floats_survive():
    tree = json.loads(json.dumps(encode({"a": float("inf"), "b": float("nan")}, {}, {})))
    loaded = decode(tree, {})
    assert loaded["a"] == float("inf") and loaded["b"] != loaded["b"]


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", {("a", 1): 2}])
def test_what_json_cannot_hold_is_refused_by_its_place(value):
    with pytest.raises(TypeError, match="/deep/0"):
        encode({"deep": [value]}, {}, {})


def checkpoints(folder: Path, keep=3, **identity) -> Checkpoints:
    return Checkpoints(folder, {"lr": 1e-3, "seed": 0, **identity}, keep)


def saved(folder: Path, steps=(2, 4, 6), **more) -> Checkpoints:
    found = checkpoints(folder, **more)
    for step in steps:
        found.save(step, {"step": step, "weights": torch.full((3,), float(step))})
    return found


def test_only_the_newest_are_kept(tmp_path):
    found = saved(tmp_path, range(1, 8), keep=2)
    assert found.steps() == [6, 7]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000006", "step-00000007"]
    assert found.newest()["step"] == 7


def test_no_checkpoint_is_none_and_folders_of_other_names_are_left_alone(tmp_path):
    (tmp_path / "step-notes").mkdir()
    (tmp_path / ".step-00000009.part").mkdir()
    assert checkpoints(tmp_path).newest() is None


FILES = ["tensors.safetensors", "state.json", "checksums.json"]


def truncate(path: Path):
    path.write_bytes(path.read_bytes()[:-3])


def edit(path: Path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, edit, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_damaged_file_is_named_and_the_checkpoint_before_it_used(tmp_path, capsys, name, damage):
    found = saved(tmp_path)
    damage(found.path(6) / name)
    with pytest.raises(BadInput) as caught:
        load_state(found.path(6))
    assert "step-00000006" in str(caught.value)
    assert damage is edit or name in str(caught.value)
    assert found.newest()["step"] == 4
    assert "before it" in capsys.readouterr().err
    assert found.steps() == [2, 4], "the damaged one is moved out of the way"


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": 1, "sha256": {}}', '{"format": 1, "sha256": 3}'])
def test_edited_checksums_cannot_switch_the_check_off(tmp_path, content):
    found = saved(tmp_path)
    (found.path(6) / "checksums.json").write_text(content)
    edit(found.path(6) / "tensors.safetensors")
    assert found.newest()["step"] == 4


def test_all_damaged_is_an_error_that_says_what_to_do(tmp_path):
    found = saved(tmp_path)
    for step in found.steps():
        truncate(found.path(step) / "tensors.safetensors")
    with pytest.raises(RunFailed, match=r"All checkpoints .* damaged.*run the same command"):
        found.newest()
    assert found.newest() is None


def test_the_same_step_may_be_damaged_twice(tmp_path):
    for _ in range(3):
        found = saved(tmp_path, (2, 4))
        truncate(found.path(4) / "state.json")
        assert found.newest()["step"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged-00000004", "step-00000002"]


def test_checkpoint_of_another_recipe_is_refused_naming_the_fields(tmp_path):
    saved(tmp_path)
    with pytest.raises(BadInput, match=r"another recipe: extra, lr differ"):
        checkpoints(tmp_path, lr=3e-3, extra=1).newest()
    assert checkpoints(tmp_path).newest()["step"] == 6, "the checkpoint itself is untouched"


def test_newer_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_module, "FORMAT", 2)
    saved(tmp_path)
    monkeypatch.undo()
    with pytest.raises(BadInput, match="format 2"):
        load_state(checkpoints(tmp_path).path(6))


@pytest.mark.parametrize("failing", ["fsync", "save_file", "replace"])
def test_full_disk_fails_the_run_and_keeps_the_earlier_checkpoints(tmp_path, monkeypatch, failing):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    found = saved(tmp_path)
    monkeypatch.setattr(checkpoint_module if failing == "save_file" else os, failing, full)
    with pytest.raises(RunFailed, match="No space left"):
        found.save(8, {"step": 8, "weights": torch.zeros(3)})
    monkeypatch.undo()
    assert found.steps() == [2, 4, 6]
    assert found.newest()["step"] == 6


class Bomb:
    def __reduce__(self):
        return (os.system, ("touch " + os.environ["BOMB"],))


def test_planted_pickle_is_never_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    found = saved(tmp_path / "checkpoints")
    bomb = pickle.dumps(Bomb())
    for name in (*FILES, "extra.pt", "pytorch_model.bin"):
        (found.path(6) / name).write_bytes(bomb)
    for name in ("optimizer.pt", "step-00000008"):
        (found.folder / name).write_bytes(bomb)
    assert found.newest()["step"] == 4
    assert not (tmp_path / "exploded").exists()
    pickle.loads(bomb)
    assert (tmp_path / "exploded").exists(), "the planted file does explode when unpickled"


def test_no_source_of_the_package_can_unpickle():
    forbidden = re.compile(r"\b(pickle|cPickle|dill|joblib|shelve|marshal|cloudpickle)\b\s*(\.|import|$)"
                           r"|import\s+(pickle|dill|joblib|shelve|marshal|cloudpickle)"
                           r"|torch\.load\b|read_pickle|allow_pickle\s*=\s*True|weights_only\s*=\s*False")
    sources = Path(tilth.__file__).parent.rglob("*.py")
    found = [f"{path.name}:{number}: {line.strip()}" for path in sources
             for number, line in enumerate(path.read_text().splitlines(), 1) if forbidden.search(line)]
    assert found == []
