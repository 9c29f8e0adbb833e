"""Documents to a pool: every character and byte once, units that lead back to their records."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilth.data.held_out import EvalRows
from tilth.data.pool import Pool
from tilth.data.tokenize import (
    DocumentTexts,
    TokenizedRecord,
    Units,
    add_document,
    pool_from_arrays,
    tokenize_documents,
)
from tilth.data.tokenizer import BpeTokenizer, BytesTokenizer
from tilth.recipe import BadInput

BYTES = BytesTokenizer().build([])
BPE = BpeTokenizer(vocab_size=275, min_frequency=1).build(["日本語 text é words and words 😀"] * 3)
NAMES = ("id", "text", "source", "license", "attribution", "metadata")


def documents(path, rows):
    filled = [{**dict.fromkeys(NAMES), "source": "web", "license": "CC0", **row} for row in rows]
    pq.write_table(pa.table({name: pa.array([row[name] for row in filled], pa.string()) for name in NAMES}), path)
    return path


@settings(max_examples=200, deadline=None)
@given(text=st.text("ab é日😀\n", min_size=1, max_size=40), unit_tokens=st.integers(1, 12))
def test_units_cover_the_document(text, unit_tokens):
    for tokenizer in (BYTES, BPE):
        units = Units()
        record = {"id": "r", "text": text, "source": "s", "license": None}
        add_document(units, record, tokenizer.encode(text), tokenizer, unit_tokens)
        columns = units.columns
        assert all(0 < len(tokens) <= unit_tokens for tokens in units.tokens)
        assert np.concatenate(units.tokens).tolist() == [*tokenizer.encode(text), tokenizer.end_of_text]
        assert "".join(text[a:b] for a, b in zip(columns["start"], columns["end"], strict=True)) == text
        assert columns["start"] == [0, *columns["end"][:-1]]
        assert [len(text[a:b].encode()) for a, b in zip(columns["start"], columns["end"], strict=True)] == (
            columns["bytes"])
        # A character is at most four bytes, so that no cut of byte tokens need part one. A BPE token can hold the end
        # of one character and the beginning of the next, and a run of such tokens has no clean place to cut.
        if tokenizer is BYTES and unit_tokens >= 4:
            spans = [text[a:b] for a, b in zip(columns["start"], columns["end"], strict=True)]
            assert [tokenizer.decode(tokens) for tokens in units.tokens] == spans


def test_documents_to_pool(tmp_path):
    first = documents(tmp_path / "a.parquet", [{"id": "a", "text": "é" * 10}, {"id": "none", "text": ""},
                                               {"id": "b", "text": "xyz", "source": "books", "license": None}])
    second = documents(tmp_path / "b.parquet", [{"id": "c", "text": "hello"}])
    report = tokenize_documents([first, second], BYTES, tmp_path / "pool", 8, progress="tokenize")
    pool = Pool.open(tmp_path / "pool")
    assert pool.column("unit_id").tolist() == ["a#0", "a#1", "a#2", "b#0", "c#0"]
    assert pool.column("record_id").tolist() == ["a", "a", "a", "b", "c"]
    assert pool.sources == ["web", "books"]
    assert pool.column("bytes").tolist() == [8, 8, 4, 3, 5]
    assert pool.column("end").tolist() == [4, 8, 10, 3, 5]
    assert pool.column("tokens").tolist() == [8, 8, 5, 4, 6] == pool.lengths().tolist()
    assert pool.get("tokens", 3).tolist() == [*b"xyz", 256]
    assert (pool.end_of_text, pool.vocab_size, pool.tokenizer().end_of_text) == (256, 257, 256)
    assert report == json.loads((tmp_path / "pool" / "report.json").read_text())
    assert {key: report[key] for key in ("documents", "empty_documents", "units", "tokens", "bytes")} == {
        "documents": 3, "empty_documents": 1, "units": 5, "tokens": 31, "bytes": 28}
    assert [(one["source"], one["license"], one["documents"]) for one in report["sources"]] == [
        ("books", None, 1), ("web", "CC0", 2)]
    assert list(DocumentTexts([first, second])) == ["é" * 10, "", "xyz", "hello"]


def test_again_gives_the_same_bytes(tmp_path):
    path = documents(tmp_path / "a.parquet", [{"id": str(i), "text": f"words and {i} words"} for i in range(50)])
    for name in ("one", "two"):
        tokenize_documents([path], BPE, tmp_path / name, 4)
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert len(files) == 10
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files)


def test_bad_documents(tmp_path):
    with pytest.raises(BadInput, match="without an id or a text"):
        tokenize_documents([documents(tmp_path / "n.parquet", [{"id": "a", "text": None}])], BYTES, tmp_path / "p", 8)
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "no.parquet")
    with pytest.raises(BadInput, match=r"no\.parquet has no column license, source, text"):
        tokenize_documents([tmp_path / "no.parquet"], BYTES, tmp_path / "p", 8)
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    with pytest.raises(BadInput, match="cannot be read as a Parquet file"):
        tokenize_documents([tmp_path / "torn.parquet"], BYTES, tmp_path / "p", 8)
    with pytest.raises(BadInput, match="two records have the same id"):
        tokenize_documents([documents(tmp_path / "d.parquet", [{"id": "a", "text": "x"}] * 2)], BYTES,
                           tmp_path / "p", 8)
    with pytest.raises(BadInput, match="no document was left"):
        tokenize_documents([documents(tmp_path / "e.parquet", [])], BYTES, tmp_path / "p", 8)
    assert not (tmp_path / "p" / "fields").exists()


def test_tokenized_arrays(tmp_path):
    records = [TokenizedRecord("a", np.frombuffer("héllo".encode(), np.uint8), "web"),
               TokenizedRecord("b", np.array([120, 256]), "web", "CC0")]
    report = pool_from_arrays(records, tmp_path / "known", 4, 257, 256, BYTES)
    pool = Pool.open(tmp_path / "known")
    assert [pool.get("tokens", row).tolist() for row in range(3)] == [[104, 195, 169, 108], [108, 111, 256], [120, 256]]
    assert pool.column("bytes").tolist() == [4, 2, 1]
    assert pool.column("end").tolist() == [4, 7, 2]
    assert report["bytes"] == 7
    report = pool_from_arrays(records, tmp_path / "unknown", 4, 257, 256)
    assert Pool.open(tmp_path / "unknown").column("bytes").tolist() == [-1, -1, -1]
    assert report["bytes_per_token"] is None
    with pytest.raises(BadInput, match="how many bytes"):
        EvalRows(Pool.open(tmp_path / "unknown"), 8).bytes_by_source  # noqa: B018


@pytest.mark.parametrize("bad", [257, -1, 2**33])
def test_tokenized_ids_out_of_range(tmp_path, bad):
    with pytest.raises(BadInput, match=f"'a' holds token id {bad}"):
        pool_from_arrays([TokenizedRecord("a", np.array([1, bad]), "web")], tmp_path / "p", 4, 257, 256)
    with pytest.raises(BadInput, match="257 ids"):
        pool_from_arrays([], tmp_path / "p", 4, 300, 256, BYTES)
    with pytest.raises(BadInput, match="not a list of token ids"):
        pool_from_arrays([TokenizedRecord("a", np.array([1.5]), "web")], tmp_path / "p", 4, 257, 256)
