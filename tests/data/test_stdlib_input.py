"""The standard library as a corpus."""

import ast

import pyarrow as pa
import pytest

from tilth.data.records import Quarantine
from tilth.data.stdlib import StdlibInput, read_topics
from tilth.recipe import BadInput


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    quarantine = Quarantine()
    table = pa.Table.from_batches(StdlibInput().read(quarantine))
    assert quarantine.total == 0
    return table.to_pylist()


def test_it_is_real_text_of_some_megabytes(rows):
    size = sum(len(row["text"].encode()) for row in rows)
    assert 8e6 < size < 20e6 and len(rows) > 500
    assert {row["source"] for row in rows} == {"python-stdlib", "python-docs"}
    assert {row["license"] for row in rows} == {"PSF-2.0"}


def test_ids_are_unique_relative_and_without_tests(rows):
    ids = [row["id"] for row in rows]
    assert len(set(ids)) == len(ids) and "json/decoder.py" in ids
    parts = {part for identity in ids for part in identity.split("/")}
    assert not parts & {"test", "tests", "idle_test", "site-packages", "__pycache__", ""}
    code = [identity for identity in ids if "#" not in identity]
    assert code == sorted(code)


def test_topics_are_prose(rows):
    topics = [row for row in rows if row["source"] == "python-docs"]
    assert len(topics) > 50 and any("compound statement" in row["text"] for row in topics)


def test_topics_are_data_not_code():
    assert read_topics("# generated\ntopics = {'a': 'b' 'c'}") == {"a": "bc"}
    with pytest.raises(BadInput):
        read_topics("import os\ntopics = dict(a=os.getcwd())")
    with pytest.raises(ValueError):
        read_topics("topics = {'a': __import__('os').getcwd()}")
    assert ast.parse("topics = {}")


def test_a_python_without_its_source(tmp_path):
    with pytest.raises(BadInput, match="No Python source in"):
        StdlibInput(path=str(tmp_path)).paths()
