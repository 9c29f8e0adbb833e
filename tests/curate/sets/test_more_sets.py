"""Dolma's sets, code, addresses, samples, token repetition, Chinese and many languages."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.curate.sets.peers import applied, cases, records
from tilth.curate.curate import CurateConfig
from tilth.curate.rules import RULES, expanded
from tilth.curate.sets.chinese import COLUMNS as CHINESE
from tilth.curate.sets.chinese import Chinese, ChineseMeasures
from tilth.curate.sets.code import Code, LicenceHeader, MaskSecrets, Secrets
from tilth.curate.sets.dolma import DolmaBooks, DolmaWeb
from tilth.curate.sets.multilingual import STOP_WORDS, Multilingual
from tilth.curate.sets.sampling import RandomNumber, Sample
from tilth.curate.sets.token_repetition import TokenRepetition, stretches
from tilth.curate.sets.urls import DropUrls
from tilth.recipe import BadInput, parse

DOLMA_CODE = {"longest_line": "max_line_length_doc", "mean_line": "avg_line_length_doc",
              "alphanumeric": "alnum_prop_doc", "letters_per_token": "alpha_token_prop_doc"}


def metadata(key, *values):
    return [None if value is None else json.dumps({key: value}) for value in values]


def test_code_measures_are_those_of_dolma():
    measured = Code(profile="dolma-1.2.1").attribute().measure(records([case["text"] for case in cases()]))
    for ours, theirs in DOLMA_CODE.items():
        expected = [case["dolma"]["code_redpajama_taggers_v1"].get(theirs, 0) for case in cases()]
        assert measured[f"dolma_code_{ours}"].to_list() == pytest.approx(expected), ours


def test_licence_headers_as_dolma_and_right():
    texts = [case["text"] for case in cases()]
    ours, _ = applied([LicenceHeader(profile="dolma-1.2.1")], records(texts))
    for text, left, case in zip(texts, ours, cases(), strict=True):
        spans = case["dolma"]["code_copyright_comments_v1"]
        for start, end in spans.get("copyright_notice", []) + spans.get("comment_block", []):
            text = text[:start] + text[end:]
        assert left == text
    kept = "#!/bin/sh\n# -*- coding: utf-8 -*-\n"
    for source, left in ((kept + "# Copyright A\n# any use\n\nx = 1\n", kept + "x = 1\n"),
                         ("/* License: MIT */\nint a; /* copyright */\n", "int a; /* copyright */\n"),
                         ("# just a comment\nx = 1\n", "# just a comment\nx = 1\n"),
                         ("x = 1\n/* Copyright */\n", "x = 1\n/* Copyright */\n")):
        assert applied([LicenceHeader()], records([source]))[0] == [left]


def test_code_rules():
    texts = ["def f(x):\n    return x\n" * 3, "x" * 1001, "word " * 30, "{}();\n" * 40, "<?xml version='1.0'?>words"]
    assert applied([Code()], records(texts))[1] == [None, "code maximum_line", "code maximum_mean_line",
                                                    "code minimum_alphanumeric", "code maximum_xml"]


def test_secrets_are_counted_and_masked():
    text = "key = 'AKIA" + "ABCDEFGHIJKLMNOP' # postgres://me:hunter22@db.example.org/x, ghp_short"
    assert Secrets().measure(records([text, "none"]))["secrets"].to_list() == [2, 0]
    assert applied([MaskSecrets()], records([text]))[0] == ["key = '[secret]' # [secret]db.example.org/x, ghp_short"]


def test_urls():
    addresses = ["https://www.Example.org/a/b?x=1", "http://sub.bad.com:80/", "https://notbad.com/", "wwf.org/x", None,
                 "https://c.org/poker/casino-games", "https://me:pw@bad.com/"]
    frame = records(["t"] * 7, metadata=metadata("url", *addresses))
    def gone(**given):
        return [at for at, by in enumerate(applied([DropUrls(**given)], frame)[1]) if by]
    assert gone(domains=["bad.com"]) == [1, 6]
    assert gone(domains=["f.org", "example.org"]) == [0]  # www. is a prefix, not a set of letters
    assert gone(urls=["http://example.org/a/"]) == [0] and gone(urls=["example.org/a/b/"]) == [0]
    assert gone(urls=["example.org/a/bc"]) == []
    assert gone(words=["poker", "casino"], minimum_words=2) == [5] and gone(words=["games", "xyz"]) == [5]
    assert gone(parts=["asin"]) == [5] and gone(parts=["nothing"], without_url="drop") == [4]


def test_lists_of_domains_in_files(tmp_path):
    (tmp_path / "list").write_text("# comment\n0.0.0.0 bad.com\n||worse.com^\n! other\nplain.com\n\n")
    frame = records(["t"] * 4, metadata=metadata("url", "http://bad.com", "http://worse.com", "plain.com", "good.com"))
    gone = applied([DropUrls(domains=str(tmp_path / "list"))], frame)[1]
    assert [bool(by) for by in gone] == [True, True, True, False]
    with pytest.raises(BadInput, match="holds no entry"):
        applied([DropUrls(domains=[" "])], frame)
    with pytest.raises(ValueError):
        DropUrls()


def test_samples_depend_on_the_document_alone():
    frame = records(["t"] * 4000)
    numbers = RandomNumber().measure(frame)["random_number"]
    assert 0.47 < numbers.mean() < 0.53 and numbers.min() >= 0 and numbers.max() < 1
    assert RandomNumber().measure(frame[1000:])["random_number"].equals(numbers[1000:])
    assert not RandomNumber(seed=1).measure(frame)["random_number_1"].equals(numbers.alias("random_number_1"))
    small, large = (np.array([by is None for by in applied([Sample(share=share)], frame)[1]]) for share in (.05, .5))
    assert 150 < small.sum() < 260 and (large | ~small).all()
    assert applied([Sample(share=0)], frame[:50])[1].count(None) == 0
    assert applied([Sample(share=1)], frame[:50])[1].count(None) == 50


def test_stretches_are_those_of_a_search_by_hand():
    chance = np.random.default_rng(5)
    for _ in range(60):
        tokens = chance.integers(0, 2, 30)
        for period in (1, 2, 3):
            starts, stops = stretches(tokens.astype(np.uint64), np.zeros(30, int), period, 3)
            longest = set()
            for start in range(30):
                stop = start + period
                while stop < 30 and tokens[stop] == tokens[stop - period]:
                    stop += 1
                before = start and tokens[start - 1] == tokens[start - 1 + period] if start + period <= 30 else True
                if stop - start >= 3 * period and not before:
                    longest.add((start, stop))
            assert set(zip(starts.tolist(), stops.tolist(), strict=True)) == longest


def test_token_repetition():
    texts = ["buy now! " * 12 + "and then", "buy now! " * 10 + "and then", "no such thing in here", ""]
    measured = TokenRepetition().attribute().measure(records(texts))
    assert measured["token_repetition_times"].to_list() == [11, 9, 0, 0]
    assert measured["token_repetition_characters"].to_list() == [104, 86, 0, 0]  # from the first ` now` on
    assert applied([TokenRepetition()], records(texts))[1] == ["token_repetition maximum_characters"] + [None] * 3


def test_dolmas_sets():
    page = "The harvest of that field and the river have to be with us.\nMenu\n"
    prose = "So the one of " + " ".join(f"word{at} other{at}" for at in range(60)) + ".\nMenu\nThe end.\n"
    texts, dropped = applied([DolmaWeb()], records([page * 30, prose, "x"]))
    assert texts[1] == prose.replace("Menu\n", "")
    assert [by and by.split()[1] for by in dropped] == ["gopher_repetition", None, "gopher_quality"]
    assert applied([DolmaBooks()], records(["a b c", "w " * 24 + "v", " ".join(map(str, range(25)))]))[1] == [
        "dolma_books minimum_words", None, None]
    frame = records(["one"] * 2, metadata=metadata("en", "0.6", "0.4"))
    english = [rule for rule in expanded([DolmaWeb(english="metadata.en")]) if rule.title().endswith(" english")]
    assert applied(english, frame)[1] == [None, "dolma_web english"]


def chinese(*texts):
    measured = ChineseMeasures().measure(records(texts))
    return {name: measured[f"chinese_{name}"].to_list() for name in CHINESE}


def test_chinese_worked_examples():
    found = chinese("今天天气好" * 3 + "。", "", "".join(chr(0x4E00 + at) for at in range(20)),
                    "".join(chr(0x4E00 + at) for at in range(21)))
    assert [found[f"top_{n}_gram"][0] for n in (2, 3, 4)] == [0.25, 0.375, 0.5]
    assert found["duplicated_5_grams"][0] == 15 / 16  # by place; the released code would say 4/16
    assert found["entropy"] == pytest.approx([found["entropy"][0], 0, math.log(20), math.log(21)])
    tags = chinese("【标签】" + "字" * 12, "【标签】" + "字" * 16, "a#b##c",
                   "句一.句二!句三", "等……..\n读readmore\n正文")
    assert tags["brackets"][:2] == [2 / 16, 2 / 20] and tags["hashes"][2] == 2 / 6
    assert tags["sentences"][3] == 3 and tags["cut_lines"][4] == 2 / 3  # NFKC makes dots of U+2026


def test_chinese_rules_and_rewrites():
    clean = "".join(chr(0x4E00 + at * 7) for at in range(60)) + "。"
    clean += "".join(chr(0x5E00 + at) for at in range(30)) + "！"
    texts, dropped = applied([Chinese(half_width=True)], records([
        clean + "看https://a.cn/b 吧", "今天天气好" * 20 + "。"]))
    assert dropped == [None, "chinese minimum_sentences"]
    assert texts[0].endswith("!看 吧") and "。" not in texts[0]
    assert applied([Chinese(minimum_sentences=None)], records(["今天天气好" * 20 + "。"]))[1] == [
        "chinese minimum_distinct"]


def test_chinese_word_length_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jieba", None)
    with pytest.raises(BadInput, match="pip install jieba"):
        applied([Chinese(minimum_word_length=1.3)], records(["今天"]))


def test_many_languages():
    german = "Der Hund und die Katze sind in dem Haus; das ist nicht von mir. " * 1
    long = " ".join(f"{german}Satz {at} hat Wort{at}." for at in range(5))
    frame = records([long, long, "今天天气很好。我们去公园散步吧！" * 3, long],
                    metadata=metadata("language", "de", "fi-FI", "zh", "xx"))
    dropped = applied([Multilingual(fineweb={"maximum_newlines": None})], frame)[1]
    assert dropped == [None, "multilingual minimum_stop_words", None, None]
    assert applied([Multilingual(stop_words={"xx": ["zz", "yy"]})], frame)[1][3] == "multilingual minimum_stop_words"
    assert all(len(set(words)) >= 8 for words in STOP_WORDS.values())


NEED_FIELDS = {"keep", "drop", "drop_matching", "rewrite", "drop_lines", "drop_urls", "sample", "contamination",
               "paragraph_duplicates", "line_duplicates"}
OURS = [name for name, known in RULES.items() if isinstance(known, str) and "curate.sets" in known]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), min_size=1, max_size=4))
def test_every_set_takes_any_text(texts):
    for name in OURS:
        given_ = {"drop_lines": {"matching": "a"}, "drop_urls": {"domains": ["a"]}, "sample": {"share": 0.5}}
        config = parse(CurateConfig, {"inputs": [], "rules": [{"kind": name, **given_.get(name, {})}]})
        left, dropped = applied(config.rules, records(texts))
        assert len(left) == len(dropped) == len(texts)


def test_a_profile_that_a_set_does_not_have_is_an_error():
    with pytest.raises(BadInput, match="the profiles of this set are default, dolma"):
        parse(CurateConfig, {"inputs": [], "rules": [{"kind": "code", "profile": "datatrove-0.10.1"}]})
