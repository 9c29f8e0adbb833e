"""What a crawl may hold: any text, one line of 50 MB, a million tiny documents. All web rules take it, and what they do
not rewrite comes out byte for byte."""

import json

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tilth.curate.curate import CurateConfig, curate
from tilth.recipe import BadInput, parse

WEB = ["gopher_quality", "gopher_repetition", "c4", "fineweb", "token_repetition", "personal_data", "near_duplicates",
       {"kind": "paragraph_duplicates"}]
DROPPING = ["gopher_quality", "gopher_repetition", {"kind": "c4", "terminal_punctuation": False, "citations": False,
            "javascript": False, "policy_phrases": [], "minimum_line_words": None, "maximum_word_length": None},
            "fineweb", "token_repetition", {"kind": "personal_data", "masks": {}}, "near_duplicates"]
PIECES = ["\x00", "\ud800", "\udfff", "\ufeff", "\u2028", "\x85", "\r\n", "\n", " ", "the", "have", "#", "...",
          "a@b.org", "日本", "\U0010ffff", "e\u0301", "{", "x" * 40]


def curated(folder, texts, rules):
    """The report, and the texts that stayed by id."""
    source = folder / "in.jsonl"
    with open(source, "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"id": str(at), "text": text}) + "\n" for at, text in enumerate(texts))
    config = parse(CurateConfig, {"inputs": [{"kind": "jsonl", "path": str(source)}], "rules": rules})
    report = curate(config.inputs, config.rules, folder=folder / "out", exact_duplicates=False)
    stayed = pl.read_parquet(folder / "out" / "documents-*.parquet")
    return report, dict(zip(stayed["id"].to_list(), stayed["text"].to_list(), strict=True))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(st.text(st.characters(), max_size=80), st.lists(st.sampled_from(PIECES), max_size=30).map(
    "".join)), min_size=1, max_size=8))
def test_any_text(tmp_path_factory, texts):
    texts = [json.loads(json.dumps(text)) for text in texts]  # two surrogates that are a pair become one character
    broken = [not text or any("\ud800" <= sign <= "\udfff" for sign in text) for text in texts]  # to quarantine
    for rules in (WEB, []):
        try:
            report, stayed = curated(tmp_path_factory.mktemp("any"), texts, rules)
        except BadInput as error:  # every record is quarantined, or every document dropped: said, not crashed
            assert "left no document" in str(error) or ("None of the" in str(error) and all(broken)), error
            continue
        assert report["quarantined"]["documents"] == sum(broken)
        assert report["read"]["documents"] == len(texts) - sum(broken)
        if not rules:
            assert stayed == {str(at): text for at, text in enumerate(texts) if not broken[at]}


def test_what_is_not_rewritten_stays_byte_for_byte(tmp_path):
    odd = "\x00\ufeff\u2028e\u0301\r\n\U0010ffff \x85"
    prose = [f"The river {at} and the stones of it have to be with us in that field of number {at * 7}. {odd} "
             + " ".join(f"w{at}x{number} v{at}y{number} u{at}z{number}." for number in range(60)) + "\n"
             for at in range(20)]
    report, stayed = curated(tmp_path, prose, DROPPING)
    assert stayed == {str(at): text for at, text in enumerate(prose)}
    assert all(rule["rewritten"]["documents"] == 0 for rule in report["rules"])


@pytest.mark.slow
def test_one_line_of_50_megabytes(tmp_path):
    line = " ".join(f"word{at % 99991} of the{at}" for at in range(3_400_000))
    assert len(line) > 50_000_000 and "\n" not in line
    report, stayed = curated(tmp_path, [line, "short"], [])
    assert stayed == {"0": line, "1": "short"} and report["read"]["documents"] == 2
    attributes = tmp_path / "all"
    attributes.mkdir()
    with pytest.raises(BadInput, match="left no document"):
        curated(attributes, [line], WEB)  # more than 100,000 words; all rules have measured it before


@pytest.mark.slow
def test_a_million_tiny_documents(tmp_path):
    count = 1_000_000
    report, stayed = curated(tmp_path, ([f"t {at}", "x", "\x00", ""][at % 4] for at in range(count)), [
        {"kind": "gopher_quality", "minimum_words": None, "minimum_word_length": None, "minimum_stop_words": None,
         "minimum_alphabetic_words": None}, "token_repetition"])
    assert report["quarantined"]["documents"] == count // 4
    assert report["read"]["documents"] == len(stayed) == count - count // 4
    assert stayed["4"] == "t 4" and stayed["5"] == "x" and stayed["6"] == "\x00" and "7" not in stayed
