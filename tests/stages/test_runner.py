"""Running a recipe: finished stages are skipped, changes are noticed and explained, one process a folder."""

import subprocess
import sys

import pytest
import stage_toys
from stage_toys import SEEDED, WRITE

from tilth.recipe import BadInput, Interrupted, parse
from tilth.recipe.files import read_json
from tilth.stages import Recipe
from tilth.stages.runner import run_recipe


@pytest.fixture(autouse=True)
def fresh():
    stage_toys.ran.clear()


def recipe(seed=0, **texts):
    """a reads a file; b reads a; c stands alone and depends on the seed."""
    return parse(Recipe, {"name": "r", "seed": seed, "stages": {
        "b": {"kind": WRITE, "inputs": ["a"], "text": texts.get("b", "b")},
        "a": {"kind": WRITE, "file": texts["file"], "text": texts.get("a", "a")},
        "c": {"kind": SEEDED, "text": texts.get("c", "c")}}})


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source.txt").write_text("1")
    return tmp_path / "source.txt"


def run(tmp_path, source, **more):
    new = more.pop("new", False)
    return run_recipe(recipe(file=str(source), **more), tmp_path / "run", new=new)


def test_stages_run_in_order_once(tmp_path, source, capsys):
    first = run(tmp_path, source)
    assert stage_toys.ran == ["a", "b", "c"]
    assert first["b"] == {"text": "ba1", "seed": 0}
    assert run(tmp_path, source) == first
    assert stage_toys.ran == ["a", "b", "c"]
    assert "a: finished before" in capsys.readouterr().err
    assert read_json(tmp_path / "run" / "manifest.json")["stages"] == dict.fromkeys("bac", "finished")


def test_changed_input_runs_again_all_that_read_it_and_says_why(tmp_path, source, capsys):
    run(tmp_path, source)
    source.write_text("2")
    stale = tmp_path / "run" / "a" / "stale"
    stale.write_text("left from the first run")
    capsys.readouterr()
    assert run(tmp_path, source)["b"]["text"] == "ba2"
    assert stage_toys.ran == ["a", "b", "c", "a", "b"]
    said = capsys.readouterr().err
    assert f"a: run again, because {source} changed" in said and "b: run again, because a changed" in said
    assert "c: finished before" in said
    assert not stale.exists()


def test_changed_recipe_is_refused_naming_the_fields_and_touches_nothing(tmp_path, source):
    run(tmp_path, source)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(BadInput, match=r"a\.text, c\.text differ.*--new"):
        run(tmp_path, source, a="x", c="y")
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    assert stage_toys.ran == ["a", "b", "c"]


def test_changed_seed_is_a_change_of_the_stages_that_use_it(tmp_path, source):
    run(tmp_path, source)
    with pytest.raises(BadInput, match=r"another recipe: c\.seed differ"):
        run(tmp_path, source, seed=1)


def test_raised_version_of_a_stage_is_a_change(tmp_path, source, monkeypatch):
    run(tmp_path, source)
    monkeypatch.setattr(stage_toys.Seeded, "version", 2)
    with pytest.raises(BadInput, match=r"c\.version differ"):
        run(tmp_path, source)


def test_new_starts_over_but_never_removes_what_is_no_run(tmp_path, source):
    run(tmp_path, source)
    (tmp_path / "run" / "notes.txt").write_text("old")
    assert run(tmp_path, source, a="x", new=True)["a"]["text"] == "x1"
    assert stage_toys.ran == ["a", "b", "c"] * 2
    assert not (tmp_path / "run" / "notes.txt").exists()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(BadInput, match="holds no run"):
        run_recipe(recipe(file=str(source)), tmp_path / "home", new=True)
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"


def test_interrupted_stage_goes_on_and_the_stages_before_it_are_kept(tmp_path, source, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "stop").touch()
    with pytest.raises(Interrupted, match="tilth run r"):
        run_recipe(recipe(file=str(source)), tmp_path / "run", command="tilth run r")
    assert read_json(tmp_path / "run" / "manifest.json")["stages"] == {
        "b": "not started", "a": "unfinished", "c": "not started"}
    assert (tmp_path / "run" / "report.html").exists()
    (tmp_path / "run" / "stop").unlink()
    run(tmp_path, source)
    assert stage_toys.ran == ["a", "a", "b", "c"]
    assert "a: going on" in capsys.readouterr().err


def test_changed_recipe_of_an_unfinished_stage_is_refused_too(tmp_path, source):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "stop").touch()
    with pytest.raises(Interrupted):
        run(tmp_path, source)
    with pytest.raises(BadInput, match=r"a\.text differ"):
        run(tmp_path, source, a="x")


HOLD = """
import fcntl, sys
file = open(sys.argv[1], "a")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
input()
"""


def test_second_process_in_one_folder_is_refused(tmp_path, source):
    (tmp_path / "run").mkdir()
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run" / ".lock")], text=True,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    holder.stdout.readline()
    try:
        with pytest.raises(BadInput, match="Another tilth process is working"):
            run(tmp_path, source)
        assert stage_toys.ran == [] and not (tmp_path / "run" / "recipe.yaml").exists()
    finally:
        holder.communicate("go\n")
    run(tmp_path, source)


def test_recipe_in_the_folder_is_the_recipe(tmp_path, source):
    from tilth.stages import load_recipe
    run(tmp_path, source)
    again = load_recipe(str(tmp_path / "run" / "recipe.yaml"))
    assert again == parse(Recipe, recipe(file=str(source)).model_dump(mode="json"))
    run_recipe(again, tmp_path / "run")
    assert stage_toys.ran == ["a", "b", "c"]


def test_a_file_that_only_the_last_stage_reads_is_missed_before_the_first(tmp_path):
    late = parse(Recipe, {"name": "late", "stages": {
        "first": {"kind": WRITE}, "second": {"kind": WRITE, "inputs": ["first"], "file": str(tmp_path / "missing")}}})
    with pytest.raises(FileNotFoundError, match="missing"):
        run_recipe(late, tmp_path / "run")
    assert not stage_toys.ran
