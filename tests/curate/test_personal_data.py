"""Personal data: what is found, what dolma finds, and that nothing else is ever touched."""

import gzip
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.curate.sets.peers import records
from tilth.curate.curate import CurateConfig
from tilth.curate.matches import find
from tilth.curate.personal_data import PersonalData, spans
from tilth.curate.personal_rules import MASKS
from tilth.curate.pipeline import Pipeline
from tilth.curate.report import masked
from tilth.curate.rules import expanded
from tilth.curate.spans import replaced, span_lists
from tilth.recipe import BadInput, parse

FIXTURE = Path(__file__).parent / "fixtures" / "dolma_personal_data.jsonl.gz"
CARD = "Write to ann@x.org, or call (206) 555-0100 from 10.0.0.12 today.\n"


def applied(texts: list[str], **rule):
    config = parse(CurateConfig, {"inputs": [], "rules": [{"kind": "personal_data", **rule}]})
    pipeline = Pipeline(expanded(config.rules), [])
    left, measured = pipeline.apply(records(texts))
    return left["text"].to_list(), measured, pipeline.tallies


def found(text: str) -> list[list[str]]:
    row = PersonalData().measure(records([text])).row(0)
    return [[text[span["start"]:span["end"]] for span in column] for column in row[:3]]


def test_the_published_example():
    ours, theirs = (PersonalData(profile=profile).measure(records([CARD])).row(0)
                    for profile in ("default", "dolma-1.2.1"))
    as_pairs = [[(span["start"], span["end"]) for span in column] for row in (ours, theirs) for column in row[:3]]
    assert as_pairs == [[(9, 18)], [(28, 42)], [(48, 57)], [(8, 20)], [(27, 42)], [(48, 57)]]
    assert ours[3] == theirs[3] == 3
    assert applied([CARD])[0] == [f"Write to {MASKS['email']}, or call {MASKS['phone']} from {MASKS['ip']} today.\n"]
    assert applied([CARD], profile="dolma-1.2.1")[0] == [
        "Write to |||EMAIL_ADDRESS||| or call |||PHONE_NUMBER|||  from  |||IP_ADDRESS|||  today.\n"]


@pytest.mark.parametrize("text, emails, phones, ips", [
    ("ann@x.org", ["ann@x.org"], [], []), ("<mailto:a.b+c@mail.example.co.uk>", ["a.b+c@mail.example.co.uk"], [], []),
    ("Jürgen@müller.de.", ["Jürgen@müller.de"], [], []), ("j@x.org,k@y.org", ["j@x.org", "k@y.org"], [], []),
    ("icon@2x.png a@b @c.de a..b@x..org", [], [], []), ("206-555-0100@x.org", ["206-555-0100@x.org"], [], []),
    ("206-555-0100", [], ["206-555-0100"], []), ("tel:+12065550100", [], ["+12065550100"], []),
    ("+44 (0)20 7946 0958, +49 30 1234567", [], ["+44 (0)20 7946 0958", "+49 30 1234567"], []),
    ("206 555 0100", [], ["206 555 0100"], []), ("100 200 3000", [], [], []), ("2065550100", [], [], []),
    ("12345-555-123-4567 555-123-45678 3.141-592-6535 x+12345678901", [], [], []),
    ("http://10.0.0.1:80/", [], [], ["10.0.0.1"]), ("国10.0.0.1国", [], [], ["10.0.0.1"]),
    ("1.2.3.4.5 v1.2.3.4 256.1.1.1 1.2.3.4567 01.02.03.04", [], [], []),
    ("2001:db8::1 and [::1], ::ffff:10.0.0.1", [], [], ["2001:db8::1", "::1", "::ffff:10.0.0.1"]),
    ("12:30:45 std::vector a::b :: 5:: 1:2:3:4:5:6:7:8:9", [], [], []),
])
def test_what_is_found(text, emails, phones, ips):
    assert found(text) == [emails, phones, ips]


def test_dolmas_profile_finds_what_dolma_finds():
    with gzip.open(FIXTURE, "rt", encoding="utf-8") as lines:
        cases = [json.loads(line) for line in lines]
    measured = PersonalData(profile="dolma-1.2.1").measure(records([case["text"] for case in cases]))
    assert measured.columns == ["dolma_personal_emails", "dolma_personal_phones", "dolma_personal_ips",
                                "dolma_personal_data"]
    for case, row in zip(cases, measured.iter_rows(), strict=True):
        for kind, column in zip(("email", "phone", "ip"), row, strict=False):
            assert [[span["start"], span["end"]] for span in column] == case[kind], case["text"]
        assert row[3] == case["count"]
    many = "? " * 10_001 + CARD
    assert PersonalData(profile="dolma-1.2.1").measure(records([many])).row(0)[3] == 0
    assert PersonalData().measure(records([many])).row(0)[3] == 3


def test_six_drop_a_document_and_five_are_masked():
    five, six = "ann@x.org 1.2.3.4 " * 2 + "b@x.org", "ann@x.org 1.2.3.4 " * 3
    texts, measured, (limit, mask) = applied([five, six, "nothing"])
    assert measured["dropped_by"].to_list() == [None, "personal_data maximum", None]
    assert texts[0] == f"{MASKS['email']} {MASKS['ip']} " * 2 + MASKS["email"] and texts[2] == "nothing"
    assert mask.found == {"personal_emails": 3, "personal_phones": 0, "personal_ips": 2}
    assert mask.as_json()["found"]["personal_emails"] == 3
    assert mask.rewritten.documents == 1 and limit.dropped.documents == 1
    shown = json.dumps([limit.as_json(), mask.as_json()])
    assert "ann@" not in shown and "1.2.3.4" not in shown and "[e-mail]" in shown
    assert masked("at 2001:db8::17 since 12:30:45") == "at [IP address] since 12:30:45"


def test_thresholds_and_masks_are_the_recipes():
    assert applied([CARD], masks={"email": "$1"})[0] == [CARD.replace("ann@x.org", "$1")]
    assert applied([CARD], maximum=2)[1]["dropped_by"].to_list() == ["personal_data maximum"]
    assert applied([CARD * 3], maximum=None)[1]["dropped_by"].to_list() == [None]
    for wrong in ({"masks": {"name": "x"}}, {"profile": "datatrove-0.10.1"}, {"maximum": None, "masks": {}}):
        with pytest.raises(BadInput):
            applied([CARD], **wrong)


PARTS = st.sampled_from(["ann@x.org", "206-555-0100", "+4930123456", "10.0.0.12", "2001:db8::1", " ", "\n", "é", "日",
                         "\U0010ffff", "\x00", ".", "-", "word", "(", "5"])
TEXTS = st.lists(st.one_of(PARTS, st.text(st.characters(exclude_categories=["Cs"]), max_size=5)),
                 max_size=12).map("".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXTS, max_size=4), st.sampled_from(["default", "dolma-1.2.1"]))
def test_bytes_outside_the_spans_never_change(texts, profile):
    masks = dict.fromkeys(("email", "phone", "ip"), "é")
    left, measured, _ = applied(texts, profile=profile, maximum=None, masks=masks)
    for text, new, row in zip(texts, left, measured.iter_rows(), strict=True):
        kept, done = [], 0
        both = [(span["start"], span["end"]) for column in row[1:4] for span in column]
        for start, end in sorted(both, key=lambda span: (span[0], -span[1])):
            assert start < end <= len(text)
            if start >= done:
                kept.append(text[done:start])
                done = end
        assert new == "é".join([*kept, text[done:]])
        if profile == "default":
            assert sum(len(column) for column in row[1:4]) == len(kept) == row[4]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("ab1é日\U0010ffff", max_size=8), max_size=5))
def test_matches_are_where_they_are_said_to_be(texts):
    made = find(pl.Series(texts, dtype=pl.String), "[0-9]+|é")
    shown = [texts[row][start:end] for row, start, end in zip(made.row, made.starts, made.ends, strict=True)]
    assert shown == made.texts.to_list()
    assert sum(map(len, shown)) == sum(text.count("1") + text.count("é") for text in texts)
    for row, start, (near, far) in zip(made.row, made.starts, made.before, strict=True):
        left = texts[row][:start].encode()
        assert [near, far] == [*reversed((b"\0\0" + left)[-2:])]
    for row, end, (near, far) in zip(made.row, made.ends, made.after, strict=True):
        assert [near, far] == [*(texts[row][end:].encode() + b"\0\0")[:2]]


def test_spans_that_touch_stay_two():
    texts = pl.Series(["abcd", "x"])
    row, start, end = spans(texts)["email"]
    assert len(row) == len(start) == len(end) == 0
    row, start, end = np.array([0, 0]), np.array([0, 2]), np.array([2, 4])
    assert span_lists(2, row, start, end, touching=False).to_list()[0] == [{"start": 0, "end": 2},
                                                                           {"start": 2, "end": 4}]
    assert len(span_lists(2, row, start, end).to_list()[0]) == 1
    assert replaced(texts, row, start, end, ["", "é"]).to_list() == ["é", "x"]


def test_a_line_of_megabytes_takes_no_more_than_its_length():
    long = "a@" * 500_000 + "1." * 500_000 + "1-" * 500_000 + ":1" * 200_000
    assert PersonalData().measure(records([long])).height == 1


def test_through_a_curation_by_several_processes(tmp_path):
    rows = [{"id": f"d{at}", "text": CARD.replace("ann", f"ann{at}") * (1 + at % 3), "license": "CC BY 4.0"}
            for at in range(12)]
    for part in (0, 1):
        lines = "\n".join(json.dumps(row) for row in rows[part::2])
        (tmp_path / f"part-{part}.jsonl").write_text(lines)
    config = parse(CurateConfig, {
        "inputs": [{"path": str(tmp_path / f"part-{part}.jsonl")} for part in (0, 1)], "held_out": None,
        "exact_duplicates": False, "attributes": ["spdx_licence"],
        "rules": [{"kind": "licences", "licences": ["CC-BY"]}, "personal_data"]})
    report = config.curate(tmp_path / "made", seed=0, workers=2)
    names = [rule["name"] for rule in report["rules"]]
    assert names == ["licences", "personal_data maximum", "personal_data masks"]
    assert report["rules"][1]["dropped"]["documents"] == 8  # six or nine spans each
    assert report["rules"][2]["found"] == {"personal_emails": 4, "personal_phones": 4, "personal_ips": 4}
    texts = pl.read_parquet(tmp_path / "made" / "documents-*.parquet")["text"]
    assert len(texts) == 4 and not texts.str.contains("ann").any()
    stored = pl.read_parquet(tmp_path / "made" / "attributes-*.parquet")
    assert stored["personal_data"].sum() == 12 * 2 * 3 and (stored["spdx_licence"] == "CC-BY-4.0").all()
