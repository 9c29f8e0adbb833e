"""Decontamination: what is caught, what is not, where it stood, and errors about evaluation files."""

import json

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilth.curate.curate import CurateConfig
from tilth.curate.decontaminate import Contamination
from tilth.curate.pipeline import Pipeline
from tilth.data.records import SCHEMA
from tilth.recipe import BadInput, parse
from tilth.recipe.files import read_json

LONG = " ".join(f"q{at}" for at in range(40))
SHORT = "How many ploughs does a farmer need?"


def write(path, *rows) -> str:
    content = "\n".join(json.dumps(row) for row in rows).encode()
    if path.suffix == ".zst":
        with pa.CompressedOutputStream(str(path), "zstd") as out:
            out.write(content)
    else:
        path.write_bytes(content)
    return str(path)


@pytest.fixture
def questions(tmp_path) -> str:
    return write(tmp_path / "quiz.jsonl.zst", {"question": LONG, "answer": "Yes."},
                 {"question": SHORT, "choices": ["One", "Two of them, one for each of the oxen"]},
                 {"question": "Two words", "answer": None})


def measure(questions: str, *texts: str, **fields) -> list[dict]:
    attribute = Contamination(evaluation=[{"path": questions, "fields": ["question"]}], **fields)
    frame = attribute.measure(pl.DataFrame({"text": texts}, schema={"text": pl.String}))
    assert tuple(frame.columns) == attribute.columns()
    return frame.rename({column: column.rpartition("_")[2] for column in frame.columns}).to_dicts()


def test_a_question_quoted_in_full_is_caught_in_a_long_document(questions):
    around = " ".join(f"x{at}" for at in range(42))
    document = around + " " + LONG.upper().replace(" Q20", ",  (Q20)") + " " + around
    held, clean = measure(questions, document, around)
    assert held["item"] == "quiz.jsonl.zst:1 question" and held["share"] == 1
    assert document[held["spans"][0]["start"]:held["spans"][0]["end"]].split()[::39] == ["Q0", "Q39"]
    assert clean == {"item": None, "share": 0, "spans": []}
    # Jaccard of the 13-grams of the two: (40 - 12) / (124 - 12), which a threshold on Jaccard would let pass.
    assert (40 - 12) / (124 - 12) == 0.25


def test_a_question_shorter_than_an_ngram_is_caught_too(questions):
    changed = "How many ploughs does a farmer really need?"
    texts = [f"He asked: «{SHORT}» and left.", SHORT.lower(), changed, "Two words"]
    found = measure(questions, *texts)
    assert [row["item"] for row in found] == ["quiz.jsonl.zst:2 question"] * 2 + [None, None]
    assert found[0]["spans"] == [{"start": 11, "end": 46}]
    assert measure(questions, "Two words", minimum_words=2)[0]["item"] == "quiz.jsonl.zst:3 question"
    # The first item is clean: the later ones are looked at all the same.
    assert measure(questions, "x y z " + SHORT)[0]["share"] == 1


def test_overlap_is_a_share_of_the_item(questions):
    part = " ".join(LONG.split()[:20])  # 8 of its 28 n-grams
    assert measure(questions, part)[0]["share"] == pytest.approx(8 / 28)
    assert measure(questions, part + " and " + part)[0]["share"] == pytest.approx(8 / 28)
    assert measure(questions, part, overlap=0.3)[0] == {"item": None, "share": 0, "spans": []}
    assert measure(questions, " ".join(LONG.split()[:12]))[0]["item"] is None
    assert measure(questions, " ".join(LONG.split()[:12]), ngram=5)[0]["item"] is not None


def test_paragraphs_and_documents(tmp_path):
    path = write(tmp_path / "texts.jsonl", {"text": LONG + "\nshort line\n" + SHORT})
    options = {"evaluation": [{"path": path, "fields": ["text"]}]}

    def names(match: str, *texts: str) -> list[bool]:
        frame = Contamination(match=match, **options).measure(pl.DataFrame({"text": texts}))
        return frame[frame.columns[0]].is_not_null().to_list()

    asked = ("é before\n" + LONG + "!\nafter", LONG + " more", "short line", LONG + "\n\nShort line " + SHORT)
    assert names("paragraph", *asked) == [True, False, False, True]
    assert names("document", *asked) == [False, False, False, True]
    spans = Contamination(match="paragraph", **options).measure(pl.DataFrame({"text": asked}))[:, 2].to_list()
    assert spans[0] == [{"start": 9, "end": 9 + len(LONG) + 2}]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=7), min_size=1, max_size=4),
       st.lists(st.lists(st.sampled_from("abc"), max_size=12), min_size=1, max_size=4), st.integers(2, 5))
def test_containment_agrees_with_sets(tmp_path_factory, items, texts, size):
    def windows(words: list[str], width: int) -> set[tuple[str, ...]]:
        return {tuple(words[at:at + width]) for at in range(len(words) - width + 1)}

    path = write(tmp_path_factory.mktemp("items") / "i.jsonl", *({"text": " ".join(item)} for item in items))
    attribute = Contamination(evaluation=[{"path": path, "fields": ["text"]}], ngram=size, minimum_words=1)
    frame = attribute.measure(pl.DataFrame({"text": [" ".join(text) for text in texts]}))
    for text, name, share in zip(texts, frame[:, 0], frame[:, 1], strict=True):
        shares = []
        for item in items:
            own = windows(item, min(size, len(item)))
            shares.append(len(own & windows(text, min(size, len(item)))) / len(own))
        assert share == pytest.approx(max(shares))
        assert name == (f"i.jsonl:{shares.index(max(shares)) + 1} text" if max(shares) > 0 else None)


def apply(rule: dict, *texts: str):
    config = parse(CurateConfig, {"inputs": [], "rules": [{"kind": "decontaminate", **rule}]})
    filled = {"id": [f"d{at}" for at in range(len(texts))], "text": list(texts), "source": ["s"] * len(texts),
              "license": None, "attribution": None, "metadata": None}
    pipeline = Pipeline(config.rules, [])
    records, attributes = pipeline.apply(pl.DataFrame(filled, schema=dict.fromkeys(SCHEMA.names, pl.String)))
    return records["text"].to_list(), attributes, pipeline.tallies[0]


def test_drop_and_cut(questions):
    evaluation = [{"path": questions, "fields": ["question", "choices"]}]
    texts = ("nothing here", "Ü: " + SHORT + " Oh!", SHORT, "two of them, one for each of the oxen, he said")
    _, attributes, tally = apply({"evaluation": evaluation}, *texts)
    assert attributes["dropped_by"].to_list() == [None, "decontaminate", "decontaminate", "decontaminate"]
    assert attributes["contamination_item"].to_list()[3] == "quiz.jsonl.zst:2 choices"
    assert tally.examples[0]["why"] == "holds 100 % of quiz.jsonl.zst:2 question"
    left, attributes, tally = apply({"evaluation": evaluation, "action": "cut"}, *texts[:3], SHORT[:-1])
    assert left == ["nothing here", "Ü: ? Oh!", "?", ""]
    assert attributes["dropped_by"].to_list() == [None, None, None, "decontaminate"]
    assert tally.rewritten.documents == 3 and tally.dropped.documents == 1


@pytest.mark.parametrize("content, words_of_error", [
    ('{"qestion": "a"}', "'question'; did you mean 'qestion'"), ("[1]", "it is no object"), ("{", "not JSON lines"),
    ('{"question": 3}', "No row")])
def test_evaluation_files_that_cannot_serve_are_errors(tmp_path, content, words_of_error):
    (tmp_path / "e.jsonl").write_text(content)
    with pytest.raises(BadInput, match=words_of_error):
        measure(str(tmp_path / "e.jsonl"), "text")


def test_a_changed_evaluation_file_curates_again(tmp_path, questions):
    corpus = write(tmp_path / "in.jsonl", {"text": "one " + SHORT}, {"text": "some other text"})
    config = parse(CurateConfig, {"inputs": [{"path": corpus}], "held_out": None, "rules": [
        {"kind": "decontaminate", "evaluation": [{"path": questions, "fields": ["question"]}]}]})
    assert [one["path"] for one in config.side_files()] == [questions]
    assert config.curate(tmp_path / "out", 0)["kept"]["documents"] == 1
    write(tmp_path / "quiz.jsonl.zst", {"question": "quite another question this time"})
    assert config.curate(tmp_path / "out", 0)["kept"]["documents"] == 2
    rule = read_json(tmp_path / "out" / "report.json")["rules"][0]
    assert rule["seen"]["documents"] == 2 and rule["items"] == 1 and rule["items_too_short"] == 0
