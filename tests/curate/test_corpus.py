"""Decisions over the corpus: exact duplicates, the held-out choice, near copies."""

import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilth.curate.exact import ExactDuplicates, digests
from tilth.curate.held_out import HeldOut, choose, draw
from tilth.curate.shingles import ShingleSet, shingles
from tilth.recipe import BadInput

ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def originals(texts: list[str]) -> list[int | None]:
    rule, frame = ExactDuplicates(), pl.DataFrame({"text": texts}, schema={"text": pl.String})
    index = rule.signature(frame).with_row_index("row")
    return rule.decide(index).to_list()


def test_first_of_a_text_stays():
    assert originals(["a b", "c", " a\n\tb ", "c", "A b", "e\u0301", "\u00e9", ""]) == [
        None, None, 0, 1, None, None, 5, None]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(ANY, st.sampled_from(["a", "b c"])), max_size=12))
def test_duplicates_agree_with_a_plain_loop(texts):
    import unicodedata
    seen: dict[str, int] = {}
    expected = []
    for at, text in enumerate(texts):
        # White space as the engine's \s has it: Unicode's property, which is not quite str.split's.
        spaces = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000"
        spaces += "".join(map(chr, range(0x2000, 0x200b)))
        key = unicodedata.normalize("NFC", " ".join(
            "".join(" " if sign in spaces else sign for sign in text).split(" ")))
        while "  " in key:
            key = key.replace("  ", " ")
        key = key.strip(" ")
        expected.append(seen.get(key))
        seen.setdefault(key, at)
    assert originals(texts) == expected


def test_digests_are_blake2b():
    from hashlib import blake2b
    found = digests(pl.Series(["", "é", "x" * 100]))
    assert found.tobytes() == b"".join(blake2b(text.encode(), digest_size=16).digest() for text in ("", "é", "x" * 100))


def corpus(**sizes: list[int]) -> pl.DataFrame:
    rows = [(source, size, f"{source}{at}") for source, items in sizes.items() for at, size in enumerate(items)]
    return pl.DataFrame({"source": [row[0] for row in rows], "bytes": [row[1] for row in rows],
                         "draw": draw(7, [row[2] for row in rows])},
                        schema={"source": pl.String, "bytes": pl.Int64, "draw": pl.UInt64})


def test_every_source_with_enough_text_is_represented():
    index = corpus(big=[1000] * 500, small=[500] * 40, tiny=[100, 100])
    chosen = choose(index, HeldOut(minimum_bytes=20_000, share=0.1))
    by_source = index.filter(pl.Series(chosen)).group_by("source").agg(pl.col("bytes").sum())
    assert dict(by_source.rows()) == {"big": pytest.approx(20_000, abs=1000), "small": pytest.approx(1000, abs=500)}


def test_the_choice_hangs_on_seed_and_id_alone():
    index = corpus(a=[100] * 300)
    options = HeldOut(minimum_bytes=2000)
    chosen = choose(index, options)
    turned = choose(index.reverse(), options)
    assert (chosen == turned[::-1]).all()
    assert (draw(1, ["x"]) != draw(2, ["x"])).all() and draw(1, ["x"]).tolist() == draw(1, ["x"]).tolist()


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.sampled_from("abc"), st.lists(st.integers(1, 500), min_size=1, max_size=60), min_size=1),
       st.integers(1, 2000), st.sampled_from([0.05, 0.2, 0.5]))
def test_held_out_is_within_its_bounds_or_an_error(sizes, minimum, share):
    index = corpus(**sizes)
    total = index["bytes"].sum()
    try:
        held = index["bytes"].filter(pl.Series(choose(index, HeldOut(minimum_bytes=minimum, share=share)))).sum()
    except BadInput as error:
        assert "held_out.minimum_bytes" in str(error)
        assert total * share < minimum + 500
        return
    assert minimum <= held <= total * share


def test_shingles_of_few_words_and_none():
    hashes, text_of = shingles(pl.Series(["", "one two", "One, TWO!", "a b c d", "日本語", "..."]), 3)
    assert text_of.tolist() == [1, 2, 3, 3, 4] and hashes[0] == hashes[1] and len(set(hashes.tolist())) == 4


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcd"), max_size=12), max_size=5),
       st.lists(st.lists(st.sampled_from("abcd"), max_size=12), max_size=5), st.integers(1, 4))
def test_overlap_agrees_with_sets(known, asked, size):
    def windows(words: list[str]) -> list[tuple[str, ...]]:
        return [tuple(words[at:at + size]) for at in range(max(1, len(words) - size + 1))] if words else []

    def expected(words: list[str]) -> float:
        own, everything = windows(words), {window for text in known for window in windows(text)}
        inside = sum(window in everything for window in own) / len(own) if own else 0.0
        quotes = [len(set(windows(text)) & set(own)) / len(set(windows(text))) for text in known if text]
        return max([inside, *quotes])

    series = [pl.Series([" ".join(words) for words in texts], dtype=pl.String) for texts in (known, asked)]
    overlap = ShingleSet.of(series[0], size).overlap(series[1])
    assert overlap.tolist() == pytest.approx([expected(words) for words in asked])


def test_a_long_text_that_quotes_a_short_one_whole_is_found():
    short = " ".join(f"w{n}" for n in range(30))
    long = " ".join(f"x{n}" for n in range(5000)) + " " + short.upper()
    overlap = ShingleSet.of(pl.Series([short]), 8).overlap(pl.Series([long, "nothing of it"]))
    assert overlap.tolist() == [1.0, 0.0]


def test_shingles_are_saved_and_the_same_in_another_process(tmp_path):
    known = ShingleSet.of(pl.Series(["a b c d", "b c d e"]), 2)
    known.save(tmp_path / "s.npy")
    again = ShingleSet.load(tmp_path / "s.npy")
    assert again.size == 2 and (again.hashes == known.hashes).all() and (again.text_of == known.text_of).all()
    code = ("import polars as pl; from tilth.curate.shingles import shingles;"
            "print(shingles(pl.Series(['a b c d', 'b c d e']), 2)[0].tolist())")
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert sorted(set(eval(printed))) == sorted(set(known.hashes.tolist()))
    assert known.overlap(pl.Series([], dtype=pl.String)).shape == (0,)
    assert np.array_equal(ShingleSet.of(pl.Series([], dtype=pl.String), 2).overlap(pl.Series(["a b"])), [0.0])
