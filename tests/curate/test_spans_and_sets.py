"""Spans taken out of texts, sets of what was seen, duplicates by URL, paragraph and passage."""

import json
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilth.curate.bloom import Bloom, HashSet, bloom_size, false_positives
from tilth.curate.curate import CurateConfig, curate
from tilth.curate.paragraphs import ParagraphDuplicates, RepeatedPassages
from tilth.curate.spans import covered, flat, span_lists, union, without
from tilth.curate.url_duplicates import UrlDuplicates
from tilth.recipe import BadInput, parse

ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


class Frame:
    """An index in memory, whose parts are of three rows."""

    def __init__(self, frame: pl.DataFrame):
        self.frame, self.height = frame.with_row_index("row"), frame.height

    def select(self, *columns):
        return self.frame.select(columns)

    def parts(self, *columns):
        return iter(self.frame.select(columns).iter_slices(3))


def as_lists(spans: pl.Series) -> list[list[tuple[int, int]]]:
    return [[(span["start"], span["end"]) for span in row] for row in spans.to_list()]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(ANY, st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=5)), max_size=6))
def test_spans_join_and_cut_as_a_loop_does(case):
    texts = [text for text, _ in case]
    chosen = [(row, *sorted((min(a, len(text)), min(b, len(text))))) for row, (text, spans) in enumerate(case)
              for a, b in spans]
    chosen = [span for span in chosen if span[1] < span[2]]
    spans = span_lists(len(texts), *np.array(chosen, np.int64).reshape(-1, 3).T)
    inside = [{at for row, start, end in chosen if row == number for at in range(start, end)}
              for number in range(len(texts))]
    assert [{at for start, end in row for at in range(start, end)} for row in as_lists(spans)] == inside
    for row in as_lists(spans):
        assert all(a[1] < b[0] for a, b in pairwise(row))
    assert without(pl.Series(texts, dtype=pl.String), spans).to_list() == [
        "".join(sign for at, sign in enumerate(text) if at not in inside[row]) for row, text in enumerate(texts)]
    assert covered(spans).tolist() == [len(row) for row in inside]
    assert as_lists(span_lists(len(texts), *flat(spans))) == as_lists(spans)
    if len(texts):
        assert as_lists(union([spans, spans])) == as_lists(spans)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.one_of(st.integers(0, 20), st.integers(0, 2**64 - 1)), max_size=30), max_size=5))
def test_a_hash_set_is_exact_and_a_bloom_filter_never_forgets(batches):
    known: set[int] = set()
    exact, bloom = HashSet(sum(map(len, batches))), Bloom(200, 1e-3)
    for batch in batches:
        expected = []
        for value in batch:
            value = value or 1  # the two smallest hashes are one
            expected.append(value in known)
            known.add(value)
        hashes = np.array(batch, np.uint64)
        assert exact.add(hashes).tolist() == expected
        assert (bloom.add(np.maximum(hashes, 1)) >= np.array(expected, bool)).all()


@pytest.mark.parametrize("rate", [1e-2, 1e-3])
def test_a_bloom_filter_errs_as_stated(rate):
    random = np.random.default_rng(1)
    number = 50_000
    bloom = Bloom(number, rate)
    early = bloom.add(random.integers(0, 1 << 63, number, np.uint64)).mean()
    late = np.mean([Copy(bloom).add(part).mean() for part in random.integers(0, 1 << 63, (4, 25_000), np.uint64)])
    assert early < rate and rate / 2 < late < 2 * rate
    assert bloom_size(30_000, 1e-6)[0] / 30_000 == pytest.approx(28.76, abs=0.1)
    assert false_positives(number, *bloom_size(number, rate)) <= rate


class Copy(Bloom):
    """A filter with the bits of another, to ask without adding."""

    def __init__(self, other: Bloom):
        self.bits, self.functions, self.words = other.bits, other.functions, other.words.copy()


def url_originals(urls: list[str | None], **fields) -> list[int | None]:
    metadata = [None if url is None else json.dumps({"url": url}) for url in urls]
    rule = UrlDuplicates(**fields)
    frame = pl.DataFrame({"metadata": metadata}, schema={"metadata": pl.String})
    return rule.decide(Frame(rule.signature(frame))).to_list()


def test_urls():
    urls = ["http://Example.com", "https://www.example.com:443/#top", None, "https://example.com/a?utm_source=x&q=1",
            "example.com/A", "//u:p@example.com/a/?q=1", "", "https://example.com/?q=1", "HTTP://example.com:80/"]
    assert url_originals(urls) == [None, 0, None, None, None, None, None, None, 0]
    assert url_originals([*urls, "http://example.com/a?q=1"])[-1] == 3
    assert url_originals(urls, loose=False) == [None] * 8 + [0]
    assert url_originals(["http://a.b/x", "http://a.b/x/"], loose=False) == [None, None]
    assert url_originals([]) == []
    with pytest.raises(BadInput, match=r"metadata\.url"):
        url_originals([None, None])


def cut(rule, texts: list[str]) -> tuple[list[str], list[list[tuple[int, int]]]]:
    series = pl.Series("text", texts, dtype=pl.String)
    spans = rule.cut(Frame(rule.signature(series.to_frame())))
    return without(series, spans).to_list(), as_lists(spans)


def test_lines_in_stream_order():
    rule = ParagraphDuplicates(unit="line", minimum_characters=1)
    assert cut(rule, ["alpha\nbeta\nalpha\n", "gamma\nbeta", "\n\n", "é\n alpha\né"]) == (
        ["alpha\nbeta\n", "gamma\n", "\n\n", "é\n"], [[(11, 17)], [(6, 10)], [], [(2, 10)]])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["", "a", "bb", " bb", "é c", "long enough"]), max_size=6), max_size=8),
       st.sampled_from(["line", "paragraph"]), st.integers(1, 4), st.sampled_from([None, 1e-9]))
def test_paragraphs_agree_with_a_loop(pieces, unit, minimum, rate):
    separator = "\n" if unit == "line" else "\n\n"
    texts, seen, expected = [separator.join(text) for text in pieces], set(), []
    for text in texts:
        left = ""
        parts = text.split(separator)
        for at, part in enumerate(parts):
            key = part.strip()
            if len(key) < minimum or key not in seen:
                left += part + (separator if at < len(parts) - 1 else "")
            if len(key) >= minimum:
                seen.add(key)
        expected.append(left)
    rule = ParagraphDuplicates(unit=unit, minimum_characters=minimum, false_positives=rate)
    assert cut(rule, texts)[0] == expected


def test_passages_are_found_wherever_they_begin():
    random = np.random.default_rng(0)
    text = [str(word) for word in random.integers(0, 1 << 40, 400)]
    passage = " ".join(text[100:260])
    texts = ["Ünd " + " ".join(text), "new words " + passage + " and others", " ".join(text[:40])]
    marked = cut(RepeatedPassages(sample=1), texts)[1]
    assert marked == [[], [(10, 10 + len(passage))], []]
    start, end = cut(RepeatedPassages(sample=4), texts)[1][1][0]
    assert 10 <= start < 300 and end <= 10 + len(passage) and end - start > len(passage) / 2
    loop = "tick tock " * 100  # a passage that repeats itself is left once
    assert cut(RepeatedPassages(ngram=10, sample=1), [loop]) == (["tick tock  "], [[(10, 999)]])


def test_cuts_in_the_curated_folder(tmp_path):
    common = "A paragraph that every page carries at its end."
    text = "Page number {} has words of its own.\n\n" + common
    rows = [{"id": f"d{at}", "text": text.format(at), "url": f"http://x.y/{at % 9}"} for at in range(10)]
    rows += [{"id": "only", "text": common, "url": "http://x.y/only"}]
    (tmp_path / "in").mkdir()
    for part in range(2):
        (tmp_path / "in" / f"{part}.jsonl").write_text("\n".join(map(json.dumps, rows[part * 6:part * 6 + 6])))
    rules = ["url_duplicates", {"kind": "paragraph_duplicates", "false_positives": 1e-6},
             {"kind": "repeated_passages", "ngram": 5, "sample": 1}]
    held_out = {"minimum_bytes": 80, "share": 0.2}
    config = parse(CurateConfig, {"inputs": [{"path": str(tmp_path / "in")}], "rules": rules, "held_out": held_out})
    report = curate(config.inputs, config.rules, (), True, config.held_out, tmp_path / "out", 3, 1, 100)
    documents = pl.read_parquet(tmp_path / "out" / "documents-*.parquet")
    held = pl.read_parquet(tmp_path / "out" / "held_out.parquet")
    assert held["text"].str.contains(common).all()  # held-out text is whole
    assert documents["text"].str.contains(common).sum() + held.height >= 1
    assert documents["text"].str.contains(common).sum() <= 1
    named = {rule["name"]: rule for rule in report["rules"]}
    assert named["url_duplicates"]["dropped"]["documents"] == 1
    assert named["paragraph_duplicates"]["rewritten"]["documents"] >= 7
    assert named["paragraph_duplicates"]["bloom"]["functions"] == 20
    assert named["paragraph_duplicates"]["dropped"]["documents"] + (
        "only" in held["id"].to_list()) + named["near_copies_of_held_out"]["dropped"]["documents"] >= 1
    attributes = pl.read_parquet(sorted((tmp_path / "out").glob("attributes-*.parquet")))
    assert {"paragraph_duplicates_spans", "repeated_passages_spans"} <= set(attributes.columns)
    assert attributes["repeated_passages_spans"].list.len().sum() > 5
    total = sum(rule["dropped"]["documents"] for rule in report["rules"])
    assert report["read"]["documents"] == 11 == report["kept"]["documents"] + held.height + total
    assert report["kept"]["bytes"] == documents["text"].str.len_bytes().sum()


def test_cuts_come_last(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}')
    config = parse(CurateConfig, {"inputs": [{"path": str(tmp_path / "a.jsonl")}],
                                  "rules": ["paragraph_duplicates", "near_duplicates"]})
    with pytest.raises(BadInput, match="Put 'paragraph_duplicates' last"):
        config.curate(tmp_path / "out", 0)
