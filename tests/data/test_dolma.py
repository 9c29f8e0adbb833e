"""Dolma's layout, read and written: documents with their attributes, token files with their index."""

import gzip
import json

import numpy as np
import polars as pl
import pytest

from tilth.curate.dolma_attribute import DolmaAttribute
from tilth.data.dolma import DolmaInput, read_tokens, write_documents, write_tokens
from tilth.data.pool import Pool, PoolWriter, token_field
from tilth.data.records import Quarantine, record_batch
from tilth.recipe import BadInput
from tilth.stages.tokenize import TokenFile

DOCUMENTS = [{"id": "a", "text": "One {two}", "source": "web", "metadata": {"url": "http://a.org"}, "added": "2024"},
             {"id": "b", "text": "Grüße", "source": "web"}, {"id": "c", "text": "Three", "source": "books"}]
BRACES = [{"source": "web", "id": "a", "attributes": {"c4_v2__c4_v2__has_curly_brace": [[0, 9, 1.0]],
                                                     "c4_v2__c4_v2__lines": [[0, 3, 0.25], [4, 9, 0.75]]}},
          {"source": "web", "id": "b", "attributes": {"c4_v2__c4_v2__has_curly_brace": [[0, 5, 0.0]],
                                                      "c4_v2__c4_v2__lines": []}},
          {"source": "books", "id": "c", "attributes": {}}]


def dataset(folder, documents=DOCUMENTS, braces=BRACES):
    for name, rows in (("documents", documents), ("attributes/c4_v2", braces)):
        path = folder / name / "2024" / "part-0.jsonl.gz"
        path.parent.mkdir(parents=True)
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return folder


def read(folder, *names: str) -> pl.DataFrame:
    with Quarantine() as quarantine:
        batches = list(DolmaInput(path=str(folder), attributes=list(names)).read(quarantine))
    return pl.concat([pl.DataFrame(pl.from_arrow(batch)) for batch in batches])


def test_documents_come_with_their_attributes(tmp_path):
    records = read(dataset(tmp_path), "c4_v2")
    assert records["id"].to_list() == ["a", "b", "c"] and records["source"].to_list() == ["web", "web", "books"]
    about = json.loads(records["metadata"][0])
    assert about["url"] == "http://a.org" and about["added"] == "2024"
    assert about["attributes"]["c4_v2__c4_v2__has_curly_brace"] == [[0, 9, 1.0]]
    assert "attributes" not in json.loads(read(tmp_path)["metadata"][0])


@pytest.mark.parametrize(("reduce", "values"), [
    ("max", [0.75, None, None]), ("min", [0.25, None, None]), ("sum", [1.0, 0.0, None]), ("mean", [0.5, None, None]),
    ("count", [2.0, 0.0, None]), ("covered", [8.0, 0.0, None])])
def test_spans_become_one_number(tmp_path, reduce, values):
    records = read(dataset(tmp_path), "c4_v2")
    attribute = DolmaAttribute(column="c4_v2__c4_v2__lines", reduce=reduce, prefix="their_")
    frame = attribute.measure(records)
    assert frame.columns == ["their_c4_v2__c4_v2__lines"]
    assert frame.to_series().to_list() == values


@pytest.mark.parametrize(("braces", "match"), [
    ([BRACES[1], BRACES[0], BRACES[2]], "line 1: holds attributes of 'b', but the document of that line is 'a'"),
    (BRACES[:2], "ends before line 3"), ([*BRACES, BRACES[2]], "goes on after line 3")])
def test_files_that_do_not_match_line_by_line_stop_the_run(tmp_path, braces, match):
    with pytest.raises(BadInput, match=match):
        read(dataset(tmp_path, braces=braces), "c4_v2")


def test_missing_attribute_files_are_named(tmp_path):
    with pytest.raises(BadInput, match=r"attributes/other/2024/part-0\.jsonl\.gz"):
        read(dataset(tmp_path), "other")


def curated(folder):
    folder.mkdir()
    records = [{"id": one["id"], "text": one["text"], "source": one["source"], "license": "CC0-1.0",
                "attribution": None, "metadata": json.dumps(one.get("metadata", {}))} for one in DOCUMENTS]
    pl.DataFrame(pl.from_arrow(record_batch(records))).write_parquet(folder / "documents-00000.parquet")
    pl.DataFrame({"id": ["a", "dropped", "b", "c"], "characters": [9, 1, 5, 5], "some text": ["x"] * 4,
                  "letters@normalize": [0.5, 0.0, 1.0, None],
                  "dropped_by": [None, "keep", None, None]}).write_parquet(folder / "attributes-00000.parquet")
    return folder


def test_what_is_written_is_read_back(tmp_path):
    assert write_documents(curated(tmp_path / "curate"), tmp_path / "out") == {"documents": 3, "attributes": 2}
    records = read(tmp_path / "out", "tilth")
    assert records["text"].to_list() == [one["text"] for one in DOCUMENTS]
    about = [json.loads(text) for text in records["metadata"]]
    assert about[0]["url"] == "http://a.org" and about[0]["license"] == "CC0-1.0"
    assert about[1]["attributes"] == {"tilth__characters__characters": [[0, 5, 5.0]],
                                      "tilth__letters_normalize__letters_normalize": [[0, 5, 1.0]]}
    assert set(about[2]["attributes"]) == {"tilth__characters__characters"}, "null is no attribute"
    first = {path.name: path.read_bytes() for path in (tmp_path / "out").rglob("*.gz")}
    write_documents(tmp_path / "curate", tmp_path / "again")
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "again").rglob("*.gz")}


def pool(folder):
    units = [("a,1", [5, 6]), ("a,1", [7, 0]), ('b"', [8, 0]), ("c", [9, 9, 9, 0])]
    with PoolWriter(folder, {"tokens": token_field(10)}, vocab_size=10, end_of_text=0) as writer:
        writer.append({"tokens": [np.array(tokens) for _, tokens in units]},
                      {"unit_id": [f"u{at}" for at in range(4)], "record_id": [name for name, _ in units],
                       "source": ["s"] * 4})
    return Pool.open(folder)


def test_token_files_cover_the_pool_and_come_back_by_document(tmp_path):
    ours = pool(tmp_path / "pool")
    assert write_tokens(ours, tmp_path) == {"token_documents": 3, "tokens": 10}
    path = tmp_path / "part-0-00000.npy"
    assert np.memmap(path, "uint16", "r").tolist() == np.asarray(ours.values("tokens")).tolist()
    found = list(read_tokens(str(path)))
    assert [one.id for one in found] == ["a,1", 'b"', "c"]
    assert np.concatenate([one.tokens for one in found]).tolist() == np.asarray(ours.values("tokens")).tolist()
    named = TokenFile(path=str(path), license="CC0-1.0")
    assert [one.id for one in named.records()] == ["a,1", 'b"', "c"] and next(named.records()).license == "CC0-1.0"
    assert named.stored() == [str(path), str(tmp_path / "part-0-00000.csv.gz")]


def test_token_files_read_as_another_type_or_cut_short_are_refused(tmp_path):
    write_tokens(pool(tmp_path / "pool"), tmp_path)
    path = tmp_path / "part-0-00000.npy"
    with pytest.raises(BadInput, match="another `dtype` than uint32"):
        list(read_tokens(str(path), "uint32"))
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(BadInput, match="line 3: tokens 6 to 10"):
        list(read_tokens(str(path)))
    path.write_bytes(b"abc")
    with pytest.raises(BadInput, match="no whole number of uint16"):
        list(read_tokens(str(path)))
