"""Digests of files: remembered while a file is unchanged, taken again when it is not."""

import json
import os

from tilth.data import locations


def test_an_unchanged_file_is_not_read_again_and_a_changed_one_is(tmp_path, monkeypatch):
    path, memory = tmp_path / "a.txt", tmp_path / "digests.json"
    path.write_text("one")
    with locations.remembering(memory):
        first = locations.fingerprint(str(path))
    read = []
    monkeypatch.setattr(locations, "sha256_file", lambda name: read.append(name) or "again")
    with locations.remembering(memory):
        assert locations.fingerprint(str(path)) == first and not read
    path.write_text("two")
    os.utime(path, ns=(1, 1))
    with locations.remembering(memory):
        assert locations.fingerprint(str(path))["sha256"] == "again" and read == [str(path)]


def test_what_is_remembered_is_written_only_when_it_changed(tmp_path):
    path, memory = tmp_path / "a.txt", tmp_path / "digests.json"
    path.write_text("one")
    for _ in range(2):
        with locations.remembering(memory):
            locations.fingerprint(str(path))
    stamp = memory.stat().st_mtime_ns
    with locations.remembering(memory):
        locations.fingerprint(str(path))
    assert memory.stat().st_mtime_ns == stamp
    assert list(json.loads(memory.read_text())) == [str(path)]
