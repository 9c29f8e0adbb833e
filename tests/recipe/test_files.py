"""Files appear whole or not at all; logs survive a torn last line."""

import errno
import json
import os

import pytest

from tilth.recipe import BadInput, RunFailed
from tilth.recipe import files as files_module
from tilth.recipe.files import (
    append_json_line,
    locked,
    read_json,
    read_json_lines,
    write_bytes,
    write_json,
    writing,
    writing_folder,
)


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def listing(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_full_disk_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path, monkeypatch, failing):
    path = tmp_path / "state.json"
    write_json(path, {"old": True})
    monkeypatch.setattr(files_module.os, failing, no_space)
    with pytest.raises(RunFailed, match=r"state\.json.*No space left"):
        write_json(path, {"new": True})
    monkeypatch.undo()
    assert read_json(path) == {"old": True}
    assert listing(tmp_path) == ["state.json"]


def test_full_disk_in_the_middle_of_a_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "pool.bin"
    write_bytes(path, b"old")
    with pytest.raises(RunFailed, match="free some space"), writing(path) as file:
        file.write(b"half of the n")
        no_space()
    assert path.read_bytes() == b"old"
    assert listing(tmp_path) == ["pool.bin"]


def test_error_of_the_program_itself_passes_unchanged_and_writes_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), writing(tmp_path / "a") as file:
        file.write(b"half")
        1 / 0  # noqa: B018
    with pytest.raises(KeyboardInterrupt), writing_folder(tmp_path / "b") as beside:
        (beside / "x").write_text("half")
        raise KeyboardInterrupt
    assert listing(tmp_path) == []


def test_folder_appears_whole_and_replaces_the_old_one(tmp_path):
    for content in ("first", "second"):
        with writing_folder(tmp_path / "model") as beside:
            (beside / content).write_text(content)
            assert content == "first" or listing(tmp_path / "model") == ["first"]
    assert listing(tmp_path) == ["model", "model/second"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_full_disk_keeps_the_old_folder(tmp_path, monkeypatch, failing):
    with writing_folder(tmp_path / "model") as beside:
        (beside / "old").write_text("old")
    monkeypatch.setattr(files_module.os, failing, no_space)
    with pytest.raises(RunFailed, match="kept"), writing_folder(tmp_path / "model") as beside:
        (beside / "new").write_text("new")
    monkeypatch.undo()
    assert listing(tmp_path) == ["model", "model/old"]


def test_folder_left_by_a_killed_process_does_not_disturb(tmp_path):
    (tmp_path / ".model.part").mkdir()
    (tmp_path / ".model.part" / "stale").write_text("stale")
    with writing_folder(tmp_path / "model") as beside:
        (beside / "new").write_text("new")
    assert listing(tmp_path) == ["model", "model/new"]


@pytest.mark.parametrize("torn", [b'{"step": 3, "lo', b'{"step": 3, "lo\n', b"\x00\x00\x00\n", b"{"])
def test_torn_last_line_is_dropped(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    with open(path, "ab") as file:
        for step in (1, 2):
            append_json_line(file, {"step": step})
        file.write(torn)
    assert read_json_lines(path) == [{"step": 1}, {"step": 2}]


def test_every_cut_of_a_log_gives_a_prefix_of_its_lines(tmp_path):
    lines = [{"step": step, "text": "é\n"} for step in range(4)]
    whole = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    for size in range(len(whole) + 1):
        (tmp_path / "log").write_bytes(whole[:size])
        read = read_json_lines(tmp_path / "log")
        assert read == lines[:len(read)]
        assert len(read) == whole[:size].count(b"\n")


def test_broken_line_in_the_middle_is_an_error_with_its_number(tmp_path):
    (tmp_path / "log").write_text('{"step": 1}\nnot json\n{"step": 2}\n')
    with pytest.raises(BadInput, match="line 2"):
        read_json_lines(tmp_path / "log")


def test_missing_log_is_empty_and_missing_json_names_the_file(tmp_path):
    assert read_json_lines(tmp_path / "none") == []
    with pytest.raises(BadInput, match=r"none\.json"):
        read_json(tmp_path / "none.json")


def test_lock_is_free_again_after_the_block_and_refused_to_another_process(tmp_path):
    def busy():
        return BadInput("busy")

    for _ in range(2):
        with locked(tmp_path / "run" / ".lock", busy):
            child = os.fork()
            if child == 0:  # a forked child does not inherit the lock
                try:
                    with locked(tmp_path / "run" / ".lock", busy):
                        os._exit(0)
                except BadInput:
                    os._exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
