"""The whole of curate: nothing lost, the same bytes again, going on after a kill, and errors that say what to do."""

import json
from hashlib import sha256
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tilth.curate import curate as module
from tilth.curate import shards
from tilth.curate.curate import CurateConfig, curate
from tilth.recipe import BadInput, parse
from tilth.recipe.files import read_json, read_json_lines

RULES = [{"kind": "normalize"}, {"kind": "keep", "attribute": "words", "minimum": 3, "name": "short"}]
WORDS = ["soil", "rain", "seed", "root", "leaf", "worm", "plough", "field", "grain", "straw", "frost", "clay"]


def sentence(number: int, length: int = 30) -> str:
    return " ".join(WORDS[(number * number * 7 + at * at * (number % 11 + 1) + at // 3) % 12] + str(number * at % 97)
                    for at in range(length))


def write_corpus(folder: Path) -> Path:
    """Four files with what a corpus has: duplicates across files, short texts, broken lines, near copies."""
    folder.mkdir()
    for part in range(4):
        rows = [{"id": f"{part}-{at}", "text": sentence(100 * part + at), "source": "ab"[part % 2]} for at in range(60)]
        rows += [{"text": "too short"}, {"text": sentence(100)}, {"text": sentence(part * 100 + 3) + " and more"}]
        lines = [json.dumps(row).encode() for row in rows] + [b'{"text": "\\ud800"}', b"{"]
        (folder / f"part-{part}.jsonl").write_bytes(b"\n".join(lines))
    return folder


def config(folder: Path, **fields) -> CurateConfig:
    return parse(CurateConfig, {"inputs": [{"path": str(folder)}], "rules": RULES, "attributes": ["characters"],
                                "held_out": {"minimum_bytes": 3000}, **fields})


def run(made: CurateConfig, folder: Path, seed: int = 1, workers: int = 1, shard_bytes: int = 15_000) -> dict:
    return curate(made.inputs, made.rules, made.attributes, made.exact_duplicates, made.held_out, folder, seed,
                  workers, shard_bytes)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("in") / "corpus")


@pytest.fixture(scope="module")
def done(corpus, tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("out") / "curate"
    return folder, run(config(corpus), folder)


def test_the_folder_holds_what_the_design_says(done):
    folder, report = done
    assert [name for name in contents(folder) if not name.startswith((".", "documents", "attributes"))] == [
        "clusters.parquet", "held_out.parquet", "quarantine.jsonl", "report.json"]
    assert read_json(folder / "report.json") == report and not (folder / ".work").exists()
    documents = pl.read_parquet(folder / "documents-*.parquet")
    assert documents.columns == ["id", "text", "source", "license", "attribution", "metadata"]
    assert documents.height == report["kept"]["documents"]
    assert documents["text"].str.len_bytes().sum() == report["kept"]["bytes"]
    assert pl.read_parquet_metadata(folder / "documents-00000.parquet")["tilth_version"]


def test_nothing_is_lost(done):
    folder, report = done
    dropped = sum(rule["dropped"]["documents"] for rule in report["rules"])
    assert report["read"]["documents"] == 4 * 63 and report["quarantined"]["documents"] == 8
    assert report["read"]["documents"] == report["kept"]["documents"] + dropped + report["held_out"]["documents"]
    attributes = pl.read_parquet(sorted(folder.glob("attributes-*.parquet")))
    assert attributes.columns == ["id", "words", "characters", "dropped_by"]
    assert attributes.height == report["read"]["documents"]
    reasons = dict(attributes["dropped_by"].value_counts().rows())
    assert reasons.pop(None) == report["kept"]["documents"]
    assert reasons.pop("held_out") == report["held_out"]["documents"]
    assert reasons == {rule["name"]: rule["dropped"]["documents"] for rule in report["rules"]
                       if rule["dropped"]["documents"]}
    assert [row["line"] for row in read_json_lines(folder / "quarantine.jsonl")] == [64, 65] * 4
    assert report["quarantined"]["by_reason"] == {"lone surrogates": 4, "not valid JSON": 4}


def test_rules_duplicates_and_the_held_out_part(done):
    folder, report = done
    rules = {rule["name"]: rule for rule in report["rules"]}
    assert list(rules) == ["normalize", "short", "exact_duplicates", "near_copies_of_held_out"]
    assert rules["short"]["dropped"] == {"documents": 4, "bytes": 36}
    assert rules["short"]["examples"][0] == {"id": "part-0.jsonl:61", "text": "too short", "why": "words is 2"}
    # sentence(100) is record 1-0, read after the copy in the first file, which therefore stays.
    assert rules["exact_duplicates"]["dropped"]["documents"] == 4
    assert rules["exact_duplicates"]["examples"][0]["id"] == "1-0"
    assert rules["exact_duplicates"]["examples"][0]["why"] == "repeats part-0.jsonl:62"
    held = pl.read_parquet(folder / "held_out.parquet")
    assert report["held_out"]["sha256"] == sha256("".join(held["text"]).encode()).hexdigest()
    assert 3000 <= report["held_out"]["bytes"] == held["text"].str.len_bytes().sum()
    assert set(held["source"]) >= {"a", "b"}
    kept = set(pl.read_parquet(folder / "documents-*.parquet")["text"])
    assert not kept & set(held["text"])
    assert not [text for text in kept for other in held["text"] if other in text or text in other]
    assert report["held_out"]["near_copies_removed"] == rules["near_copies_of_held_out"]["dropped"]
    by_source = {row["source"]: row for row in report["sources"]}
    assert sum(row["documents"] for row in by_source.values()) == report["kept"]["documents"]


def test_the_same_bytes_again_with_other_workers(corpus, done, tmp_path):
    folder, report = done
    assert run(config(corpus), tmp_path / "again", workers=2) == report
    assert contents(tmp_path / "again") == contents(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert run(config(corpus), folder) == report
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize("place, calls", [("first_pass", 2), ("write_held_out", 0), ("second_pass", 0),
                                          ("second_pass", 3), ("_report", 0)])
def test_killed_anywhere_it_goes_on(corpus, done, tmp_path, monkeypatch, place, calls):
    """Cut at several places; the finished shards are not read again, and the bytes are those of an uncut run."""
    real, made = getattr(module, place), []

    def cut(*args):
        made.append(args)
        if len(made) > calls:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(module, place, cut)
    with pytest.raises(KeyboardInterrupt):
        run(config(corpus), tmp_path / "out")
    assert not (tmp_path / "out" / "report.json").exists()
    monkeypatch.setattr(module, place, real)
    again: list[int] = []
    first = module.first_pass
    monkeypatch.setattr(module, "first_pass", lambda plan, shard, *rest: (again.append(shard.number),
                                                                         first(plan, shard, *rest)))
    run(config(corpus), tmp_path / "out")
    assert again == ([2, 3] if place == "first_pass" else [])
    assert contents(tmp_path / "out") == contents(done[0])


def test_a_torn_shard_leaves_nothing_half_written(corpus, tmp_path, monkeypatch):
    real = shards._first_pass_batch
    monkeypatch.setattr(shards, "_first_pass_batch", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(config(corpus), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()} == {"identity.json"}
    monkeypatch.setattr(shards, "_first_pass_batch", real)
    run(config(corpus), tmp_path / "out")


def test_changes_are_curated_again_and_foreign_files_are_kept(corpus, tmp_path):
    folder = tmp_path / "out"
    run(config(corpus), folder, shard_bytes=15_000)
    looser = run(config(corpus, rules=[], held_out=None), folder, shard_bytes=1 << 30)
    assert [path.name for path in folder.glob("documents*")] == ["documents-00000.parquet"]
    assert not (folder / "held_out.parquet").exists()
    assert looser["held_out"] == {"documents": 0, "bytes": 0, "sha256": None,
                                  "near_copies_removed": {"documents": 0, "bytes": 0}}
    with pytest.raises(BadInput, match=r"may be held out"):
        run(config(corpus, held_out={"minimum_bytes": 1 << 20}), folder)
    assert read_json(folder / "report.json") == looser  # an error loses nothing
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "documents-00000.parquet").write_text("precious")
    with pytest.raises(BadInput, match=r"not written by an earlier run of curate"):
        run(config(corpus), tmp_path / "mine")
    assert (tmp_path / "mine" / "documents-00000.parquet").read_text() == "precious"


def test_a_threshold_changes_decisions_and_not_attributes(corpus, tmp_path):
    strict = [RULES[0], {"kind": "keep", "attribute": "words", "minimum": 31, "name": "short"}]
    run(config(corpus, held_out=None), tmp_path / "a")
    run(config(corpus, held_out=None, rules=strict), tmp_path / "b")
    first, second = (pl.read_parquet(sorted((tmp_path / name).glob("attributes-*"))) for name in "ab")
    assert first.drop("dropped_by").equals(second.drop("dropped_by"))
    assert not first["dropped_by"].equals(second["dropped_by"], null_equal=True)


def test_errors_say_what_to_do(tmp_path, corpus):
    (tmp_path / "empty.jsonl").write_bytes(b"\n\n")
    with pytest.raises(BadInput, match=r"empty\.jsonl\) hold no record at all: an empty corpus"):
        run(config(tmp_path / "empty.jsonl"), tmp_path / "o1")
    (tmp_path / "bad.jsonl").write_bytes(b"{\n{\n\xff")
    with pytest.raises(BadInput, match=r"None of the 3 records .* \(2\): not valid JSON\. Set `on_bad: error`"):
        run(config(tmp_path / "bad.jsonl"), tmp_path / "o2")
    with pytest.raises(BadInput, match=r"`inputs` is empty"):
        run(config(corpus, inputs=[]), tmp_path / "o3")
    with pytest.raises(BadInput, match=r"The corpus has [\d,]+ bytes after the rules.*set `held_out.minimum_bytes` to"):
        run(config(corpus, held_out={"minimum_bytes": 1 << 20}), tmp_path / "o4")
    every = [{"kind": "drop", "attribute": "words", "minimum": 0, "name": "all"}]
    with pytest.raises(BadInput, match=r"The rules left no document: 'all' alone dropped 252 of 252"):
        run(config(corpus, rules=every, held_out=None), tmp_path / "o5")
    with pytest.raises(BadInput, match=r"Two rules are called 'normalize'"):
        run(config(corpus, rules=["normalize", "normalize"]), tmp_path / "o6")
    with pytest.raises(BadInput, match=r"part-0\.jsonl, line 64: lone surrogates"):
        run(config(corpus, inputs=[{"path": str(corpus), "on_bad": "error"}]), tmp_path / "o7")
    with pytest.raises(BadInput, match=r"part-[01]\.jsonl, line 64: lone surrogates"):
        run(config(corpus, inputs=[{"path": str(corpus), "on_bad": "error"}]), tmp_path / "o8", workers=2)
    with pytest.raises(BadInput, match=r"Unknown key `held_out.minimum`"):
        config(corpus, held_out={"minimum": 5})


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(), max_size=30), min_size=1, max_size=12))
def test_any_corpus_adds_up_and_keeps_its_bytes(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("any")
    (folder / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    made = config(folder / "a.jsonl", rules=[{"kind": "keep", "attribute": "words", "minimum": 1}], held_out=None)
    try:
        report = run(made, folder / "out")
    except BadInput as error:
        assert "None of the" in str(error) or "left no document" in str(error)
        return
    dropped = sum(rule["dropped"]["documents"] for rule in report["rules"])
    assert len(texts) == report["kept"]["documents"] + dropped + report["quarantined"]["documents"]
    assert set(pl.read_parquet(folder / "out" / "documents-00000.parquet")["text"]) <= set(texts)


def test_duplicates_can_stay_or_be_placed_among_the_rules(corpus, tmp_path):
    without = run(config(corpus, exact_duplicates=False, held_out=None), tmp_path / "a")
    assert [rule["name"] for rule in without["rules"]] == ["normalize", "short"]
    placed = [*RULES, {"kind": "exact_duplicates", "name": "same text"}]
    report = run(config(corpus, rules=placed, exact_duplicates=False, held_out=None), tmp_path / "b")
    assert report["rules"][2]["name"] == "same text" and report["rules"][2]["dropped"]["documents"] == 4
    assert without["kept"]["documents"] == report["kept"]["documents"] + 4


@pytest.mark.parametrize("workers", [1, 2])
def test_what_no_record_has_is_said_aloud(tmp_path, capfd, workers):
    rows = [{"text": sentence(number), "metadata": {"score": 1.0}} for number in range(40)]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "others.jsonl").write_text("".join(json.dumps({"text": row["text"] + " Else."}) + "\n" for row in rows))
    rules = [{"kind": "drop", "attribute": f"metadata.{name}", "minimum": 0} for name in ("score", "skore")]
    made = parse(CurateConfig, {"inputs": [{"kind": "jsonl", "path": str(tmp_path / "*.jsonl")}], "rules": [
        {**rule, "name": rule["attribute"]} for rule in rules], "held_out": None, "exact_duplicates": False})
    report = run(made, tmp_path / "out", workers=workers, shard_bytes=1)
    assert report["absent"] == ["metadata.skore"]
    said = capfd.readouterr().err
    assert said.count("no record has 'metadata.skore'") == 1 and "'metadata.score'" not in said
