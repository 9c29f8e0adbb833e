"""Languages by a detector: what it says of any text, what is kept by it, and fastText where there is one."""

import json
import os
import sys
import types
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.curate.sets.peers import records
from tilth.curate import language
from tilth.curate.curate import CurateConfig
from tilth.curate.language import Cld2, Detector, FastText, Language, LineLanguages
from tilth.curate.pieces import pieces
from tilth.curate.pipeline import Pipeline
from tilth.curate.rules import expanded
from tilth.recipe import BadInput, parse

pytest.importorskip("pycld2", reason="the extra `language` is not installed")
ENGLISH = "The committee met in the morning and decided to write down what everybody had agreed on.\n"
GERMAN = "Der Ausschuss kam am Morgen zusammen und beschloss aufzuschreiben, worauf sich alle geeinigt hatten.\n"
JAPANESE = "委員会は朝に集まり、みんなが同意したことを書き留めることに決めました。\n"
ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


def applied(texts, *rules, **columns):
    config = parse(CurateConfig, {"inputs": [], "rules": list(rules)})
    left, measured = Pipeline(expanded(config.rules), []).apply(records(texts, **columns))
    return left["text"].to_list(), measured


def test_documents_and_their_confidence():
    measured = Language().measure(records([ENGLISH, GERMAN, JAPANESE, "", "12 34", "\0" + ENGLISH]))
    assert measured["language"].to_list() == ["en", "de", "ja", None, None, "en"]
    assert measured["language_confidence"].is_between(0, 1).all()
    assert (measured["language_confidence"] > 0.9).to_list() == [True, True, True, False, False, True]


@settings(max_examples=80, deadline=None)
@given(st.lists(ANY, max_size=4))
def test_any_text_is_answered(texts):
    measured = LineLanguages().measure(records(texts))
    assert Language().measure(records(texts)).height == measured.height == len(texts)
    for text, lines in zip(texts, measured["language_lines"], strict=True):
        split = [line for line in text.split("\n") if line.strip(" ") and pl.Series([line]).str.contains(r"\S").item()]
        assert [text[one["start"]:one["end"]].removesuffix("\n") for one in lines] == split


def test_the_score_of_lines_is_dolmas():
    text = ENGLISH + "\n" + GERMAN * 2 + "12\n"
    row = LineLanguages().measure(records([text])).row(0, named=True)
    lines = row["language_lines"]
    assert [line["language"] for line in lines] == ["en", "de", "de", None]
    assert [text[line["start"]:line["end"]] for line in lines] == [ENGLISH, GERMAN, GERMAN, "12\n"]
    german = sum((line["end"] - line["start"]) * line["confidence"] for line in lines if line["language"] == "de")
    assert row["line_language"] == "de"
    assert row["line_language_confidence"] == pytest.approx(german / (len(text) - 1))  # the blank line is no line


def test_keep_languages():
    texts = [ENGLISH, GERMAN, JAPANESE, "12", ENGLISH + JAPANESE * 2]
    rule = {"kind": "keep_languages", "languages": ["EN", "de"]}
    assert applied(texts, rule)[1]["dropped_by"].is_null().to_list() == [True, True, False, False, False]
    by_lines = applied(texts, {**rule, "by": "lines", "languages": {"en": 0.5, "de": 1.0}})[1]
    assert by_lines["dropped_by"].is_null().to_list() == [True, False, False, False, True]
    tally = Pipeline(expanded(parse(CurateConfig, {"inputs": [], "rules": [rule]}).rules), [])
    tally.apply(records(texts))
    assert tally.tallies[0].examples[0]["why"].startswith("language ja with confidence 0.9")


def test_lines_of_other_languages_go():
    text = ENGLISH + GERMAN + "\n12 34 56\nOui.\n" + ENGLISH
    left, measured = applied([text, GERMAN, ENGLISH], {"kind": "drop_foreign_lines", "languages": ["en"]})
    assert left == [ENGLISH + "\n12 34 56\nOui.\n" + ENGLISH, "", ENGLISH]
    assert measured["dropped_by"].is_null().to_list() == [True, False, True]
    assert applied([text], {"kind": "drop_foreign_lines", "languages": ["en"], "minimum_characters": 500})[0] == [text]


def test_the_multilingual_set_can_find_the_language_itself():
    texts = [GERMAN * 12, JAPANESE * 12]
    told = applied(texts, "multilingual", metadata=['{"language": "de"}', '{"language": "ja"}'])[1]
    detected = applied(texts, {"kind": "multilingual", "detector": "cld2"})[1]
    for measured in (told, detected):
        assert measured["language_stop_words"].to_list()[1] is None and measured["language_stop_words"][0] >= 2
        assert measured["unspaced"].to_list() == [0, 1]
    assert told["dropped_by"].to_list() == detected["dropped_by"].to_list()


def test_variants_belong_to_their_code_and_outside_detectors_serve():
    rule = {"kind": "keep_languages", "languages": ["zh"], "detector": f"{__name__}:Fixed"}
    assert applied(["a", "b"], rule)[1]["dropped_by"].is_null().to_list() == [True, True]
    assert applied(["a"], {**rule, "languages": ["z"]})[1]["dropped_by"].is_null().to_list() == [False]


class Fixed(Detector):
    """Says Chinese to everything."""

    kind: str = "fixed"

    def detect(self, texts):
        return ["zh-hant"] * len(texts), pl.Series([0.9] * len(texts)).to_numpy()


def test_fasttext_reads_what_dolma_reads(monkeypatch, tmp_path):
    asked = []

    class Model:
        class f:
            @staticmethod
            def predict(text, k, threshold, errors):
                asked.append(text)
                return [(1.00001, "__label__en")] if text else []

    (tmp_path / "lid.bin").write_bytes(b"model")
    monkeypatch.setitem(sys.modules, "fasttext", types.SimpleNamespace(load_model=lambda path: Model()))
    language._fasttext.cache_clear()
    detector = FastText(path=str(tmp_path / "lid.bin"))
    codes, confidence = detector.detect(pl.Series(["Hello\nWorld", ""]))
    assert asked == ["hello world", ""] and codes == ["en", None] and confidence.tolist() == [1.0, 0.0]
    assert detector.reads() == [str(tmp_path / "lid.bin")]
    with pytest.raises(BadInput, match="no file"):
        FastText(path=str(tmp_path / "none.bin")).detect(pl.Series(["a"]))
    language._fasttext.cache_clear()
    monkeypatch.setitem(sys.modules, "fasttext", None)
    with pytest.raises(BadInput, match="pip install fasttext"):
        detector.detect(pl.Series(["a"]))


def test_without_the_package_the_recipe_says_what_to_install(monkeypatch):
    language._cld2.cache_clear()
    monkeypatch.setitem(sys.modules, "pycld2", None)
    with pytest.raises(BadInput, match=r"pip install 'tilth\[language\]'"):
        Cld2()
    language._cld2.cache_clear()


def test_sentences_and_lines_are_the_text_again():
    text = "One. Two! (Three?) \nfour 。五。\n\n六"
    for unit in ("line", "sentence"):
        made = pieces(pl.Series([text, "", "x"]), unit)
        assert [text[start:end] for row, start, end in zip(made.row, made.starts, made.ends, strict=True)
                if row == 0] == made.texts.to_list()[:-1]
    assert made.texts.to_list() == ["One. ", "Two! ", "(Three?) \n", "four 。", "五。\n", "六", "x"]


UDHR = {"eng": "en", "deu_1996": "de", "fra": "fr", "spa": "es", "ron": "ro", "jpn": "ja", "kor": "ko", "rus": "ru",
        "fin": "fi", "cym": "cy", "isl": "is", "gle": "ga"}


@pytest.mark.skipif("TILTH_DATA" not in os.environ, reason="TILTH_DATA names no folder with text/multi_udhr.jsonl.zst")
def test_the_declaration_in_many_languages():
    path = Path(os.environ["TILTH_DATA"]) / "text" / "multi_udhr.jsonl.zst"
    rows = [json.loads(line) for line in pa.input_stream(str(path), compression="zstd").read().splitlines()]
    known = [row for row in rows if row["lang"] in UDHR]
    assert len(known) >= 8
    found = Language().measure(records([row["text"] for row in known]))["language"].to_list()
    assert found == [UDHR[row["lang"]] for row in known]
