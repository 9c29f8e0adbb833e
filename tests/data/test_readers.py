"""Readers: what they yield, what they quarantine, and what they say."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilth.data import locations
from tilth.data.compressed import lines
from tilth.data.inputs import INPUTS, Input
from tilth.data.records import BATCH_BYTES, COLUMNS, SCHEMA, Quarantine, in_batches, record_batch
from tilth.data.text_files import html_text
from tilth.recipe import BadInput, Config, one_of, parse
from tilth.recipe.files import read_json_lines


class Holder(Config):
    input: one_of(Input, INPUTS)


def make(**fields) -> Input:
    return parse(Holder, {"input": {"kind": "auto", **fields}}).input


def read(item: Input, quarantine: Quarantine | None = None) -> list[dict]:
    batches = list(item.read(quarantine or Quarantine()))
    assert all(batch.schema.equals(SCHEMA) for batch in batches)
    for batch in batches:
        batch.validate(full=True)
    return [row for batch in batches for row in batch.to_pylist()]


def write_lines(path, *lines_):
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines_))
    return path


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def test_jsonl_columns_and_defaults(tmp_path):
    path = write_lines(tmp_path / "web.jsonl", {"text": "one", "id": 7, "license": "CC0-1.0", "url": "u", "n": [1]},
                       {"text": "two\r\n\0", "source": "own", "metadata": {"a": 1}, "b": None})
    first, second = read(make(path=str(path), license="MIT"))
    assert first == {"id": "7", "text": "one", "source": "web", "license": "CC0-1.0", "attribution": None,
                     "metadata": '{"url":"u","n":[1]}'}
    assert second == {"id": "web.jsonl:2", "text": "two\r\n\0", "source": "own", "license": "MIT",
                      "attribution": None, "metadata": '{"a":1,"b":null}'}
    assert read(make(path=str(path), source="given"))[1]["source"] == "given"


@pytest.mark.parametrize("suffix, pack", [(".gz", gzip.compress), (".zst", zstd),
                                          (".gz", lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:]))])
def test_jsonl_compressed(tmp_path, suffix, pack):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(pack(b'{"text": "one"}\n{"text": "two"}\n'))
    assert [row["text"] for row in read(make(path=str(path)))] == ["one", "two"]
    torn = tmp_path / f"torn.jsonl{suffix}"
    torn.write_bytes(pack(b'{"text": "one"}\n' * 1000)[:-9])
    quarantine = Quarantine()
    read(make(path=str(torn)), quarantine)
    assert quarantine.counts == {"damaged compressed data": 1}
    with pytest.raises(BadInput, match=r"torn\.jsonl.*line \d+: damaged compressed data"):
        read(make(path=str(torn), on_bad="error"))


BAD_LINES = [
    (b'{"text": "torn', "not valid JSON"), (b'{"text": "\xff"}', "invalid UTF-8"),
    (b'{"text": "\xed\xa0\x80"}', "invalid UTF-8"), (b'{"text": "a\\ud800b"}', "lone surrogates"),
    (b'{"text": "fine", "tag": "\\udfff"}', "lone surrogates"), (b'{"other": 1}', "no 'text'"),
    (b'{"text": null}', "no 'text'"), (b'{"text": 5}', "'text' is not a string"), (b'[1, 2]', "not a JSON object"),
    (b'{"text": NaN}', "not valid JSON"), (b'{"text": "x", "deep": ' + b"[" * 100_000, "nested too deeply"),
    (b'{"text": "x", "n": ' + b"9" * 5000 + b"}", "not valid JSON"),
    (b'{"text": "' + b"x" * 200_000 + b'"}', "longer than max_record_bytes"),
]


@pytest.mark.parametrize("line, reason", BAD_LINES)
def test_bad_line_is_quarantined_with_its_place_or_stops(tmp_path, line, reason):
    path = write_lines(tmp_path / "a.jsonl", {"text": "good"}, b"", line, {"text": "good too"})
    with Quarantine(tmp_path / "q.jsonl") as quarantine:
        rows = read(make(path=str(path), max_record_bytes=150_000), quarantine)
    assert [row["text"] for row in rows] == ["good", "good too"]
    assert read_json_lines(tmp_path / "q.jsonl") == [{"path": str(path), "line": 3, "reason": reason}]
    with pytest.raises(BadInput, match=r"a\.jsonl, line 3: "):
        read(make(path=str(path), max_record_bytes=150_000, on_bad="error"))


def test_empty_text_is_counted_and_never_stops(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", {"text": ""}, {"text": "x"})
    quarantine = Quarantine()
    assert len(read(make(path=str(path), on_bad="error"), quarantine)) == 1
    assert quarantine.counts == {"empty text": 1}


def test_text_column_missing_everywhere_names_the_nearest(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", {"texts": "a", "url": "b"}, {"texts": "c"})
    with pytest.raises(BadInput, match=r"a\.jsonl has no column 'text'; did you mean 'texts'\? It has texts, url\."):
        read(make(path=str(path)))
    assert len(read(make(path=str(path), text_column="texts"))) == 2


def test_json_array_is_told_from_json_lines(tmp_path):
    path = write_lines(tmp_path / "a.json", b'[{"text": "a"},', b'{"text": "b"}]')
    with pytest.raises(BadInput, match=r"a JSON array, not JSON lines"):
        read(make(path=str(path)))


def test_bombs_are_capped(tmp_path):
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(b" " * (66 << 20), 1))
    with pytest.raises(BadInput, match=r"unpacks to more than 200 times"):
        read(make(path=str(path), max_record_bytes=1000))
    with pytest.raises(BadInput, match=r"unpacks to more than 2,000,000 bytes.*max_decompressed_bytes"):
        read(make(path=str(path), max_decompressed_bytes=2_000_000))


@given(st.lists(st.binary(max_size=30).filter(lambda part: b"\n" not in part), max_size=20), st.integers(1, 7))
def test_lines_loses_no_byte(parts, size):
    content = b"\n".join(parts)
    chunks = (content[at:at + size] for at in range(0, len(content), size))
    expected = content.split(b"\n")
    expected = expected[:-1] if expected[-1] == b"" else expected
    assert list(lines(chunks, 100)) == list(enumerate(expected, 1))
    assert [line for _, line in lines(iter([content]), 5)] == [part if len(part) <= 5 else None for part in expected]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.text(st.characters(), max_size=40), st.binary(max_size=40)), min_size=1, max_size=8))
def test_any_line_is_read_unchanged_or_quarantined(tmp_path_factory, contents):
    folder = tmp_path_factory.mktemp("any")
    raw = [json.dumps({"text": item}).encode() if isinstance(item, str) else item.replace(b"\n", b"") or b"-"
           for item in contents]
    path = write_lines(folder / "a.jsonl", b'{"text": "first"}', *raw)
    quarantine = Quarantine()
    rows = read(make(path=str(path)), quarantine)
    blank = sum(not item.strip() for item in raw)
    assert len(rows) + quarantine.total + blank == len(raw) + 1
    fine = [item for item in contents if isinstance(item, str) and item and
            not any("\ud800" <= sign <= "\udfff" for sign in item)]
    got = [row["text"] for row in rows[1:]]
    assert [text for text in got if text in fine] == fine or len(got) > len(fine)


def test_parquet(tmp_path):
    table = pa.table({"id": ["a", None, "c", "d"], "text": ["one", "two", None, ""], "n": [1, 2, 3, 4],
                      "list": [["x"], [], None, []], "when": pa.array([0, 1, 2, 3], pa.timestamp("s")),
                      "nan": [float("nan"), 1.0, 2.0, 3.0]})
    pq.write_table(table, tmp_path / "t.parquet")
    quarantine = Quarantine()
    first, second = read(make(path=str(tmp_path), source="s", license="MIT"), quarantine)
    assert (first["id"], second["id"]) == ("a", "t.parquet#1")
    assert json.loads(first["metadata"]) == {"n": 1, "list": ["x"], "when": "1970-01-01 00:00:00", "nan": None}
    assert (first["source"], first["license"]) == ("s", "MIT")
    assert quarantine.counts == {"no 'text'": 1, "empty text": 1}
    with pytest.raises(BadInput, match=r"t\.parquet, record 2: no 'text'"):
        read(make(path=str(tmp_path), on_bad="error"))
    with pytest.raises(BadInput, match=r"no column 'body'.*It has id, text, n"):
        read(make(path=str(tmp_path), text_column="body"))
    with pytest.raises(BadInput, match=r"'n' is int64, not text"):
        read(make(path=str(tmp_path), text_column="n"))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_with_invalid_utf8(tmp_path, kind):
    raw = pa.array([b"good", b"\xff\xfe", "ü".encode(), None], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 4, raw.buffers(), 1)
    if pa.types.is_large_string(kind):
        raw = raw.cast(pa.large_binary())
        text = pa.Array.from_buffers(kind, 4, raw.buffers(), 1)
    if pa.types.is_dictionary(kind):
        text = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, None], pa.int32()), text[:3])
    pq.write_table(pa.table({"text": text, "more": text}), tmp_path / "bad.parquet")
    quarantine = Quarantine()
    rows = read(make(path=str(tmp_path / "bad.parquet")), quarantine)
    assert [row["text"] for row in rows] == ["good", "ü"]
    assert quarantine.counts == {"invalid UTF-8": 1, "no 'text'": 1}


def test_damaged_parquet(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1 nothing PAR1")
    quarantine = Quarantine()
    assert read(make(path=str(tmp_path)), quarantine) == [] and quarantine.counts == {"damaged Parquet file": 1}
    with pytest.raises(BadInput, match=r"x\.parquet, record 0: damaged Parquet file"):
        read(make(path=str(tmp_path), on_bad="error"))


def test_written_records_are_read_back_as_they_were(tmp_path):
    rows = [{"id": "a", "text": "x", "source": "s", "license": None, "attribution": "me", "metadata": '{"k":1}'}]
    pq.write_table(pa.Table.from_batches([record_batch(rows)]), tmp_path / "documents-00000.parquet")
    assert read(make(path=str(tmp_path))) == rows


def test_files_keep_their_bytes(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.txt").write_text("hidden")
    (tmp_path / "sub" / "b.txt").write_bytes(b"one\r\ntwo\0")
    (tmp_path / "a.py").write_bytes("# -*- coding: latin-1 -*-\r\nx = 'é'\r\n".encode("latin-1"))
    (tmp_path / "c.html").write_text("<title>T</title><p>A &amp; <b>B</b><script>x</script>")
    (tmp_path / "d.bin").write_bytes(b"\0")
    (tmp_path / "e.md").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "f.py").write_bytes(b"# coding: rot13\n")
    (tmp_path / "g.rst").write_bytes(b"")
    quarantine = Quarantine()
    rows = read(make(kind="files", path=str(tmp_path), source="docs"), quarantine)
    assert {row["id"]: row["text"] for row in rows} == {
        "a.py": "# -*- coding: latin-1 -*-\r\nx = 'é'\r\n", "sub/b.txt": "one\r\ntwo\0", "c.html": "T\n\nA & B"}
    assert quarantine.counts == {"not decodable": 2, "empty text": 1}
    assert [row["id"] for row in rows] == ["a.py", "c.html", "sub/b.txt"]
    assert [row["id"] for row in read(make(path=f"{tmp_path}/**/*.txt"))] == ["sub/b.txt"]
    with pytest.raises(BadInput, match=r"e\.md, record e\.md: not decodable"):
        read(make(path=str(tmp_path / "e.md"), on_bad="error"))


@settings(max_examples=50)
@given(st.text())
def test_html_of_any_text(page):
    assert "\0" in page or isinstance(html_text(page), str)


def test_auto_prefers_records_to_a_readme(tmp_path):
    write_lines(tmp_path / "b.jsonl", {"text": "two"})
    pq.write_table(pa.table({"text": ["one"]}), tmp_path / "a.parquet")
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "settings.json").write_text("{}")
    item = make(path=str(tmp_path))
    assert [row["text"] for row in read(item)] == ["one", "two"]
    assert [part["path"] for part in item.fingerprint()] == item.paths()
    assert item.fingerprint()[0].keys() == {"path", "size", "sha256"}
    assert [row["text"] for row in read(make(path=str(tmp_path / "README.md")))] == ["about"]


def test_nothing_to_read(tmp_path):
    with pytest.raises(BadInput, match=r"No file at .*missing"):
        read(make(path=str(tmp_path / "missing.jsonl")))
    with pytest.raises(BadInput, match=r"No file at"):
        read(make(path=f"{tmp_path}/*.jsonl"))
    (tmp_path / "x.jpg").write_bytes(b"1")
    with pytest.raises(BadInput, match=r"no file that a reader knows \(found 1 x \.jpg\)"):
        read(make(path=str(tmp_path)))
    with pytest.raises(BadInput, match=r"holds 1 files, but none that ends in \.jsonl"):
        read(make(kind="jsonl", path=str(tmp_path)))
    (tmp_path / "ids.npy").write_bytes(b"1")
    with pytest.raises(BadInput, match=r"give them to the tokenize stage"):
        read(make(path=str(tmp_path)))
    with pytest.raises(BadInput, match=r"did you mean 'jsonl'"):
        make(kind="json", path="x")


def test_paths_through_fsspec():
    system, _ = locations.file_system("memory://corpus/a.jsonl")
    for name in ("b", "a"):
        with system.open(f"/corpus/{name}.jsonl", "wb") as file:
            file.write(json.dumps({"text": name}).encode())
    item = make(path="memory://corpus/*.jsonl")
    assert [(row["text"], row["id"], row["source"]) for row in read(item)] == [
        ("a", "a.jsonl:1", "corpus"), ("b", "b.jsonl:1", "corpus")]
    assert len({part["sha256"] for part in item.fingerprint()}) == 2
    with pytest.raises(BadInput, match=r"file system that fsspec does not know"):
        read(make(path="nosuch://x"))


def test_saved_dataset(tmp_path):
    for split in ("train", "test"):
        folder = tmp_path / split
        folder.mkdir()
        batch = pa.record_batch({"text": [f"{split} one", "two"], "label": [0, 1]})
        with pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as sink, \
                pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    assert [row["text"] for row in read(make(path=str(tmp_path)))] == ["train one", "two"]
    row = read(make(kind="dataset", path=str(tmp_path), split="test"))[1]
    assert (row["id"], row["metadata"]) == ("data-00000-of-00001.arrow#1", '{"label":1}')
    with pytest.raises(BadInput, match=r"has the splits train, test; set `split`.*not 'dev'"):
        read(make(kind="dataset", path=str(tmp_path), split="dev"))
    (tmp_path / "train" / "data-00000-of-00001.arrow").write_bytes(b"no arrow")
    with pytest.raises(BadInput, match=r"no Arrow stream, or damaged"):
        read(make(path=str(tmp_path)))
    with pytest.raises(BadInput, match=r"no folder that datasets.save_to_disk wrote"):
        read(make(kind="dataset", path=str(tmp_path / "nothing")))


def test_hub_dataset_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    item = make(kind="dataset", path="hub:someone/corpus")
    assert item.paths() == ["hub:someone/corpus"] and item.sizes() == [0]
    monkeypatch.setattr(type(item), "resolved_revision", lambda self: "abc123")
    assert item.fingerprint()[0]["path"] == "hub:someone/corpus@abc123"
    with pytest.raises(BadInput, match=r"pip install 'tilth\[hf\]'"):
        read(item)


def test_hub_dataset_streams(monkeypatch):
    table = pa.table({"text": ["one", "two"]})
    rows = type("Rows", (), {"with_format": lambda self, _: self, "iter": lambda self, batch_size: [table]})()
    package = type("Datasets", (), {"load_dataset": staticmethod(lambda *args, **kwargs: rows)})
    monkeypatch.setitem(__import__("sys").modules, "datasets", package)
    item = make(kind="dataset", path="hub:someone/corpus", revision="main")
    monkeypatch.setattr(type(item), "resolved_revision", lambda self: "abc123")
    assert [row["id"] for row in read(item)] == ["someone/corpus#0", "someone/corpus#1"]


def test_batches_are_bounded():
    rows = ({"id": str(n), "text": "x" * 1000, "source": "s"} for n in range(100))
    sizes = [len(batch) for batch in in_batches(rows, batch_bytes=10_000)]
    assert sizes == [10] * 10
    big = [{"id": "a", "text": "é" * 4000, "source": "s"}] * 2
    assert [len(batch) for batch in in_batches(big, batch_bytes=10_000)] == [1, 1]
    assert BATCH_BYTES <= 64 << 20 and next(in_batches(big)).schema.names == list(COLUMNS)


def test_quarantine_is_written_anew(tmp_path):
    for _ in range(2):
        with Quarantine(tmp_path / "q.jsonl") as quarantine:
            quarantine.add("bad\udcff.txt", "not decodable: byte 3", record=0)
    assert len(read_json_lines(tmp_path / "q.jsonl")) == 1 and quarantine.counts == {"not decodable": 1}
