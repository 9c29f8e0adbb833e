"""Near duplicates: n-grams and signatures against plain loops, recall against its formula, clusters against brute
force, and the whole rule through the curated folder."""

import json
import re

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilth.curate import ngrams
from tilth.curate.curate import CurateConfig, curate
from tilth.curate.minhash import agreement, band_keys, best_bands, recall, signatures
from tilth.curate.near_duplicates import CHOSEN, NearDuplicates, equal_keys, merge
from tilth.curate.ngrams import blocks
from tilth.data.records import SCHEMA
from tilth.recipe import BadInput, parse
from tilth.recipe.files import read_json

ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
SINGLE = re.compile("[\u3400-\u4db5\u4e00-\u9fd5\u3041-\u3096\u30a1-\u30fa\u0e01-\u0e2e]")


def words(text: str) -> list[tuple[str, int, int]]:
    """Words of simple text with their places, by a loop."""
    found, start = [], None
    for at, sign in enumerate(text + " "):
        if SINGLE.match(sign) or not (sign.isalnum() or sign == "_"):
            if start is not None:
                found.append((text[start:at].lower(), start, at))
            start = None
            if SINGLE.match(sign):
                found.append((sign, at, at + 1))
        elif start is None:
            start = at
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("aB é1_.\n日本ก", max_size=30), max_size=8), st.sampled_from([1, 7, 1 << 17]))
def test_words_and_their_places_agree_with_a_loop(texts, block):
    series = pl.Series(texts, dtype=pl.String)
    seen: dict[int, tuple[str, int, int]] = {}
    for part in blocks(series, "word", block):
        for index, document in enumerate(part.documents):
            mine = np.flatnonzero(part.text_of == index)
            expected = words(texts[document])
            assert [(int(part.starts[at]), int(part.ends[at])) for at in mine] == [word[1:] for word in expected]
            for at, word in zip(mine, expected, strict=True):
                assert seen.setdefault(int(part.hashes[at]), word[0]) == word[0]
    names = {word[0] for text in texts for word in words(text)}
    assert set(seen.values()) == names and len(seen) == len(names)


@settings(max_examples=40, deadline=None)
@given(st.lists(ANY, max_size=5))
def test_any_text_gives_spans_within_it(texts):
    for unit in ("word", "character"):
        for part in blocks(pl.Series(texts, dtype=pl.String), unit):
            lengths = np.array([len(texts[document]) for document in part.documents])
            assert (part.starts >= 0).all() and (part.starts < part.ends).all()
            assert (part.ends <= lengths[part.text_of]).all()


def test_ascii_and_code_points_give_the_same_hashes_and_long_texts_too():
    plain = "the Quick brown fox " * 20_000  # longer than a block
    series = pl.Series([plain, plain + "\u2026", plain[:200], "1 THE quick"])
    found = {int(part.documents[at]): part.hashes[part.text_of == at]
             for part in blocks(series) for at in range(len(part.documents))}
    assert (found[0] == found[1]).all() and (found[2] == found[0][:len(found[2])]).all()
    assert len(np.unique(found[0])) == 4 and (found[3][1:] == found[0][:2]).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abc"), max_size=9), min_size=1, max_size=6), st.integers(1, 5))
def test_windows_agree_with_slices(texts, size):
    series = pl.Series([" ".join(text) for text in texts])
    seen: dict[int, tuple[str, ...]] = {}
    for part in blocks(series):
        hashes, first, last = part.windows(size)
        for at, text in enumerate(texts[document] for document in part.documents):
            mine = np.flatnonzero(part.text_of[first] == at)
            expected = [tuple(text[i:i + size]) for i in range(max(1, len(text) - size + 1))] if text else []
            assert len(mine) == len(expected)
            for place, window in zip(mine, expected, strict=True):
                assert seen.setdefault(int(hashes[place]), window) == window
                assert last[place] - first[place] + 1 == len(window)
    assert len(set(seen.values())) == len(seen)


def pairs(random: np.random.Generator, size: int, common: int, number: int) -> tuple[pl.Series, float]:
    """Pairs of texts (one after the other) of `size` words that share `common`, and their Jaccard similarity."""
    texts = []
    for _ in range(number):
        drawn = random.integers(0, 1 << 40, 2 * size - common)
        texts += [" ".join(map(str, drawn[:size])), " ".join(map(str, drawn[size - common:]))]
    return pl.Series(texts), common / (2 * size - common)


@pytest.mark.parametrize("size, common", [(20, 9), (100, 67), (400, 356)])
def test_estimated_jaccard_is_unbiased_and_recall_follows_its_curve(size, common):
    number = 400
    series, jaccard = pairs(np.random.default_rng(size), size, common, number)
    values, known = signatures(series, 1, "word", 112, 3)
    assert known.all()
    estimates = agreement(values, np.arange(0, 2 * number, 2), np.arange(1, 2 * number, 2))
    deviation = (jaccard * (1 - jaccard) / 112 / number) ** 0.5
    assert abs(estimates.mean() - jaccard) < 3 * deviation
    assert 0.75 < estimates.var() / (jaccard * (1 - jaccard) / 112) < 1.25  # the permutations are independent
    for bands, rows in ((14, 8), (28, 4), (56, 2)):
        keys = band_keys(values, bands, rows)
        found = (keys[:, ::2] == keys[:, 1::2]).any(axis=0).mean()
        expected = float(recall(jaccard, bands, rows))
        assert abs(found - expected) < 3.3 * (expected * (1 - expected) / number) ** 0.5 + 0.01


def test_the_recall_curve():
    assert [round(float(recall(s, 14, 8)), 4) for s in (0.5, 0.7, 0.75, 0.8, 0.9)] == [
        0.0533, 0.5645, 0.7716, 0.9235, 0.9996]
    bands, rows = best_bands(0.8, 112)
    assert bands * rows <= 112 and recall(0.72, bands, rows) < 0.3 and recall(0.88, bands, rows) > 0.8
    assert best_bands(0.5, 1) == (1, 1)


def test_signatures_do_not_depend_on_the_batch_or_the_pieces(monkeypatch):
    random = np.random.default_rng(0)
    texts = pl.Series([" ".join(random.choice(["a", "b", "c", "é"], n)) for n in (0, 1, 4, 5, 300, 2000, 7)])
    whole, known = signatures(texts, 3, "word", 16, 1)
    monkeypatch.setattr("tilth.curate.minhash.PIECE", 64)
    for at, text in enumerate(texts):
        values, there = signatures(pl.Series([text]), 3, "word", 16, 1)
        assert (values[:, 0] == whole[:, at]).all() and there[0] == known[at]
    assert known.tolist() == [False, *[True] * 6]
    assert (signatures(texts, 3, "word", 16, 2)[0] != whole).any()


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(
    st.integers(0, n - 1), st.integers(0, n - 1)), max_size=40))))
def test_components_agree_with_a_loop(case):
    number, edges = case
    expected = list(range(number))
    for _ in range(number):
        for left, right in edges:
            expected[left] = expected[right] = min(expected[left], expected[right])
    parent = np.arange(number, dtype=np.uint32)
    half = len(edges) // 2
    for part in (edges[:half], edges[half:]):
        ends = np.array(part, np.int64).reshape(-1, 2)
        merge(parent, ends[:, 0], ends[:, 1])
    assert parent.tolist() == expected


def test_equal_keys():
    left, right = equal_keys(pl.Series([5, None, 3, 5, None, 3, 5, 9], dtype=pl.UInt64))
    assert sorted(zip(left.tolist(), right.tolist(), strict=True)) == [(0, 3), (0, 6), (2, 5)]


def originals(texts: list[str], **fields) -> list[int | None]:
    rule = NearDuplicates(**fields)
    frame = pl.DataFrame({"id": [f"d{at}" for at in range(len(texts))], "text": pl.Series(texts, dtype=pl.String)})
    index = rule.signature(frame).with_columns(bytes=frame["text"].str.len_bytes()).with_row_index("row")
    return rule.decide(index).to_list()


def planted(random: np.random.Generator, number: int) -> list[str]:
    """Texts of which many are copies of others with a few words changed."""
    texts: list[list[str]] = []
    for _ in range(number):
        if texts and random.random() < 0.5:
            text = list(texts[random.integers(len(texts))])
            for place in random.integers(0, len(text), random.integers(0, 4)):
                text[place] = str(random.integers(1 << 30))
        else:
            text = [str(word) for word in random.integers(0, 1 << 30, random.integers(3, 80))]
        texts.append(text)
    return [" ".join(text) for text in texts]


@pytest.mark.parametrize("unit, ngram", [("word", 3), ("character", 9)])
def test_clusters_equal_brute_force(unit, ngram):
    """All pairs that share a band, by a double loop over signatures; components by repeated spreading."""
    texts = planted(np.random.default_rng(ngram), 120)
    found = originals(texts, unit=unit, ngram=ngram, bands=5, rows=4)
    values, _ = signatures(pl.Series(texts), ngram, unit, 20, 1)
    signature = [[tuple(values[4 * band:4 * band + 4, at]) for band in range(5)] for at in range(len(texts))]
    label = list(range(len(texts)))
    for _ in range(8):
        for left in range(len(texts)):
            for right in range(left):
                if any(a == b for a, b in zip(signature[left], signature[right], strict=True)):
                    label[left] = label[right] = min(label[left], label[right])
    assert found == [None if root == at else root for at, root in enumerate(label)]
    assert 20 < sum(original is not None for original in found) < 100


def test_clusters_do_not_depend_on_the_order_of_reading():
    texts = planted(np.random.default_rng(5), 150)
    order = np.random.default_rng(6).permutation(len(texts))
    found, turned = originals(texts), originals([texts[at] for at in order])

    def clusters(original: list[int | None], name) -> set[frozenset[int]]:
        groups: dict[int, set[int]] = {}
        for at, root in enumerate(original):
            groups.setdefault(at if root is None else root, set()).add(int(name(at)))
        return {frozenset(group) for group in groups.values()}

    assert clusters(found, lambda at: at) == clusters(turned, lambda at: order[at])


def test_who_stays():
    text = " ".join(f"w{n}" for n in range(200))
    texts = ["other words", text, text + " and", "...", text + " and more", "..."]
    assert originals(texts) == [None, None, 1, None, 1, None]  # nothing to compare: both stay
    assert originals(texts, keep="longest") == [None, 4, 4, None, None, None]
    assert originals(texts, stay=["d2"]) == [None, 2, None, None, 2, None]
    assert originals(texts, stay=["d2", "d4"]) == [None, 2, None, None, None, None]
    assert originals(["...", ""]) == [None, None] and originals([]) == []


@pytest.mark.parametrize("fields, words_of_error", [
    ({"threshold": 0.8, "rows": 3}, "either `threshold`"), ({"permutations": 50}, "`bands` x `rows`"),
    ({"bands": 0}, "bands"), ({"unit": "letter"}, "unit")])
def test_fields_that_contradict_each_other_are_errors(fields, words_of_error):
    with pytest.raises(BadInput, match=re.escape(words_of_error)):
        parse(CurateConfig, {"inputs": [], "rules": [{"kind": "near_duplicates", **fields}]})


def test_in_the_curated_folder(tmp_path):
    texts = planted(np.random.default_rng(9), 200)
    (tmp_path / "in").mkdir()
    for part in range(4):
        lines = [json.dumps({"id": f"r{at}", "text": texts[at]}) for at in range(part * 50, part * 50 + 50)]
        (tmp_path / "in" / f"{part}.jsonl").write_text("\n".join(lines))
    config = parse(CurateConfig, {"inputs": [{"path": str(tmp_path / "in")}], "held_out": None, "rules": [
        {"kind": "near_duplicates"}, {"kind": "near_duplicates", "name": "looser", "bands": 40, "rows": 2}]})

    def run(folder: str, shard_bytes: int) -> dict:
        return curate(config.inputs, config.rules, (), True, None, tmp_path / folder, 0, 1, shard_bytes)

    report = run("out", 4000)
    assert run("again", 1 << 20)["rules"] == report["rules"]
    whole, cut = (pl.read_parquet(tmp_path / folder / "clusters.parquet") for folder in ("again", "out"))
    assert whole.equals(cut) and len(list((tmp_path / "out").glob("documents-*"))) == 4
    rules = {rule["name"]: rule for rule in report["rules"]}
    assert rules["near_duplicates"]["recall_at_jaccard"]["0.8"] == 0.9235 and rules["looser"]["bands"] == 40
    clusters = pl.read_parquet(tmp_path / "out" / "clusters.parquet")
    assert clusters.columns == ["rule", "cluster", "id", "kept"]
    dropped = clusters.filter(~pl.col("kept")).group_by("rule").len().rows()
    assert dict(dropped) == {name: rule["dropped"]["documents"] for name, rule in rules.items()}
    assert rules["near_duplicates"]["dropped"]["documents"] > 20 and rules["looser"]["dropped"]["documents"] > 0
    assert (clusters.group_by("rule", "cluster").agg(pl.col("kept").sum())["kept"] == 1).all()
    kept = set(pl.read_parquet(tmp_path / "out" / "documents-*.parquet")["id"])
    assert len(kept) == report["kept"]["documents"] == 200 - sum(number for _, number in dropped)
    first = clusters.group_by("rule", "cluster", maintain_order=True).first()
    assert first["kept"].all()  # in the order of reading, the first one stays
    assert read_json(tmp_path / "out" / "report.json") == report


def test_an_empty_index_and_a_tiny_table():
    assert set(SCHEMA.names) >= {"id", "text"} and CHOSEN.startswith("near_duplicates")
    assert NearDuplicates().signature(pl.DataFrame(schema={"id": pl.String, "text": pl.String})).height == 0
    assert len(ngrams._tables()[0]) == 256
