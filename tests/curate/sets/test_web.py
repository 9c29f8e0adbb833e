"""C4 and FineWeb: worked examples, the peers' decisions and texts, and any text at all."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.curate.sets.peers import PeersWords, applied, cases, fires, jaccard, records
from tilth.curate.sets.c4 import C4
from tilth.curate.sets.fineweb import FineWeb
from tilth.curate.sets.line_rules import DropLines
from tilth.recipe import BadInput

FINEWEB = {"minimum_line_ends": "line_punct_thr", "maximum_short_lines": "short_line_thr",
           "maximum_duplicate_characters": "char_duplicates_ratio", "maximum_newlines": "new_line_ratio"}
OFF = {"terminal_punctuation": False, "minimum_line_words": None, "maximum_word_length": None, "citations": False,
       "javascript": False, "policy_phrases": [], "lorem_ipsum": False, "curly_bracket": False,
       "minimum_sentences": None}
ONE = {"terminal": "terminal_punctuation", "line_words": "minimum_line_words", "long_word": "maximum_word_length",
       "javascript": "javascript", "policy": "policy_phrases", "citations": "citations",
       "lorem_ipsum": "lorem_ipsum", "curly_bracket": "curly_bracket", "sentences": "minimum_sentences"}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def alone(field: str) -> C4:
    on = C4.model_fields[field].get_default(call_default_factory=True)
    return C4(**{**OFF, field: on}, profile="datatrove-0.10.1")


def test_c4_line_rules_leave_the_texts_that_datatrove_leaves():
    frame = records([case["text"] for case in cases()])
    for name, field in ONE.items():
        texts, dropped = applied([alone(field)], frame)
        ours = [None if by else digest(text) for text, by in zip(texts, dropped, strict=True)]
        theirs = [case["datatrove"]["c4"][name] for case in cases()]
        if field == "minimum_sentences":  # counted by a splitter like spaCy's, not by spaCy
            assert sum(a == b for a, b in zip(ours, theirs, strict=True)) >= 0.98 * len(ours)
        else:
            assert [at for at, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]] == [], field


def test_c4_all_rules_together_decide_as_datatrove():
    frame = records([case["text"] for case in cases()])
    texts, dropped = applied([C4(profile="datatrove-0.10.1")], frame)
    gone = np.array([by is not None for by in dropped])
    theirs = np.array([case["datatrove"]["c4"]["all"] is None for case in cases()])
    assert jaccard(gone, theirs) >= 0.99 and jaccard(~gone, ~theirs) >= 0.95
    both = np.flatnonzero(~gone & ~theirs)
    assert all(digest(texts[at]) == cases()[at]["datatrove"]["c4"]["all"] for at in both)


def test_c4_agrees_with_dolmas_tagger():
    frame = records([case["text"] for case in cases()])
    for spans, field in (("lines_with_no_ending_punctuation", "terminal_punctuation"),
                         ("lines_with_too_few_words", "minimum_line_words")):
        on = C4.model_fields[field].get_default(call_default_factory=True)
        texts, _ = applied([C4(**{**OFF, field: on}, profile="dolma-1.2.1")], frame)
        for text, case in zip(texts, cases(), strict=True):
            kept, place = [], 0
            for start, end in case["dolma"]["c4_v2"].get(spans, []):
                kept.append(case["text"][place:start])
                place = end
            assert text == "".join(kept) + case["text"][place:]
    for name, field in (("has_javascript", "javascript"), ("has_lorem_ipsum", "lorem_ipsum"),
                        ("has_curly_brace", "curly_bracket")):
        _, dropped = applied([C4(**{**OFF, field: True}, profile="dolma-1.2.1")], frame)
        assert [by is not None for by in dropped] == [name in case["dolma"]["c4_v2"] for case in cases()]


def test_fineweb_decides_as_datatrove():
    texts = [case["text"] for case in cases()]
    kept = np.array([bool(case["datatrove"]["words"]) for case in cases()])  # it drops, or divides by, nothing
    found = fires(FineWeb(profile="datatrove-0.10.1", splitter=PeersWords()), texts)
    for field, name in FINEWEB.items():
        theirs = np.array([f"fineweb.{name}" in case["datatrove"]["fires"] for case in cases()])
        assert jaccard(found[field] & kept, theirs & kept) >= 0.99, field


def test_the_default_c4_keeps_bytes_and_knows_other_scripts():
    page = "  Hello there my friend.  \nMenu\n" \
        "JavaScript is off now.\nWe say “never again.”\r\nOne two three...\n今日は 良い 天気。"
    texts, dropped = applied([C4(minimum_sentences=3)], records([page, "A. b {c}.", "lorem Ipsum. A b c."]))
    assert texts[0] == "  Hello there my friend.  \nWe say “never again.”\r\n今日は 良い 天気。"
    assert dropped == [None, "c4 curly_bracket", "c4 lorem_ipsum"]
    five = "One of it. Two of it? Three of it! Four of it."
    assert applied([C4()], records([five, five + " Five of it."]))[1] == ["c4 minimum_sentences", None]


def test_bad_words_by_a_list_and_by_a_file(tmp_path):
    frame = records(["A Darn. day", "darning", "a.b", "axb"])
    off = {**OFF, "bad_words": ["darn", "a.b"]}
    assert applied([C4(**off)], frame)[1] == ["c4 bad_words", None, "c4 bad_words", None]
    assert applied([C4(**off, bad_words_apart=False)], frame)[1][1] == "c4 bad_words"
    (tmp_path / "words.txt").write_text("darn\n\na.b\n")
    assert applied([C4(**{**off, "bad_words": str(tmp_path / "words.txt")})], frame)[1][0] == "c4 bad_words"
    with pytest.raises(BadInput, match="cannot be read"):
        C4(bad_words=str(tmp_path / "none.txt")).rules()


def test_drop_lines_conditions():
    page = "a\nbb bb\nccc ccc ccc"
    for test, left in (({"minimum_words": 2}, "bb bb\nccc ccc ccc"), ({"maximum_word_length": 2}, "a\nbb bb\n"),
                       ({"minimum_characters": 2, "maximum_characters": 5}, "bb bb\n"), ({"matching": "^a"}, page[2:]),
                       ({"not_matching": "a"}, "a\n")):
        assert applied([DropLines(**test)], records([page]))[0] == [left]
    for wrong in ({}, {"matching": "("}):
        with pytest.raises(ValueError):
            DropLines(**wrong)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=80), max_size=5))
def test_any_text(texts):
    for profile in ("default", "dolma-1.2.1", "datatrove-0.10.1"):
        left, _ = applied([C4(profile=profile)], records(texts))
        assert len(left) == len(texts)
        if profile == "default":  # what stays are whole lines of the text, but for citations
            for text, after in zip(texts, left, strict=True):
                assert "[" in text or set(after.split("\n")) <= {*text.split("\n"), ""}
    for profile in ("default", "datatrove-0.10.1"):
        measured = FineWeb(profile=profile).attribute().measure(records(texts))
        assert measured.height == len(texts) and sum(measured.null_count().row(0)) == 0
