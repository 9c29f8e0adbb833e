"""Gopher's rules: worked examples, the peers' decisions rule by rule, and any text at all."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.curate.sets.peers import PeersWords, applied, cases, fires, jaccard, records
from tilth.curate.curate import CurateConfig
from tilth.curate.pipeline import Pipeline
from tilth.curate.rules import expanded
from tilth.curate.sets.gopher import GopherQuality
from tilth.curate.sets.repeats import repeats
from tilth.curate.sets.repetition import GopherRepetition
from tilth.curate.sets.words import SPLITTERS, Splitter
from tilth.recipe import BadInput, parse

CARD = "- the cat sat\n- the cat sat\nto be \u2026\nwe have 42 # dogs"
PROFILES = ("default", "dolma-1.2.1", "datatrove-0.10.1")
DATATROVE = {"minimum_words": "quality.min_doc_words", "maximum_words": "quality.max_doc_words",
             "minimum_word_length": "quality.min_avg_word_length",
             "maximum_word_length": "quality.max_avg_word_length",
             "maximum_symbols": "quality.max_symbol_word_ratio",
             "maximum_bullet_lines": "quality.max_bullet_lines_ratio",
             "maximum_ellipsis_lines": "quality.max_ellipsis_lines_ratio",
             "minimum_alphabetic_words": "quality.max_non_alpha_words_ratio",
             "minimum_stop_words": "quality.min_stop_words", "maximum_duplicate_lines": "repetition.dup_line_frac",
             "maximum_duplicate_line_characters": "repetition.dup_line_char_frac",
             "maximum_duplicate_paragraphs": "repetition.dup_para_frac",
             "maximum_duplicate_paragraph_characters": "repetition.dup_para_char_frac",
             **{f"maximum_top_{n}_gram": f"repetition.top_{n}" for n in range(2, 5)},
             **{f"maximum_duplicated_{n}_grams": f"repetition.duplicated_{n}" for n in range(5, 11)}}
DOLMA = {"words": "word_count", "word_length": "median_word_length", "symbols": "symbol_to_word_ratio",
         "bullet_lines": "fraction_of_lines_starting_with_bullet_point",
         "ellipsis_lines": "fraction_of_lines_ending_with_ellipsis",
         "alphabetic_words": "fraction_of_words_with_alpha_character", "stop_words": "required_word_count",
         "duplicate_lines": "fraction_of_duplicate_lines",
         "duplicate_line_characters": "fraction_of_characters_in_duplicate_lines",
         **{f"top_{n}_gram": f"fraction_of_characters_in_most_common_{n}grams" for n in range(2, 5)},
         **{f"duplicated_{n}_grams": f"fraction_of_characters_in_duplicate_{n}grams" for n in range(5, 11)}}


def measure(made, *texts):
    attribute = made.attribute()
    measured = attribute.measure(records(texts))
    return {name.rpartition("gopher_")[2]: measured[name].to_list() for name in measured.columns}


def test_dolmas_worked_example():
    quality = measure(GopherQuality(profile="dolma-1.2.1"), CARD)
    assert {name: value[0] for name, value in quality.items()} == {
        "words": 16, "word_length": 2.5, "symbols": 0.125, "alphabetic_words": 0.6875, "stop_words": 5,
        "bullet_lines": 0.5, "ellipsis_lines": 0.25}
    found = measure(GopherRepetition(profile="dolma-1.2.1"), CARD, "a b c a b c", "a b\na b")
    assert [found[name][0] for name in ("duplicate_lines", "duplicate_line_characters", "top_2_gram", "top_3_gram",
                                        "top_4_gram")] == pytest.approx([0.5, 26 / 38, 8 / 38, 14 / 38, 20 / 38])
    assert [found[f"top_{n}_gram"][1] for n in (2, 3, 4)] == pytest.approx([4 / 6, 1, 4 / 6])
    assert [found[f"duplicated_{n}_grams"][1] for n in (5, 6)] == [0, 0]
    assert found["duplicate_line_characters"][2] == 1.5  # a fault of the peer: spaces above, none below


def test_the_default_does_it_right():
    quality = measure(GopherQuality(), CARD, "To Be! (that)", "-5 degrees\n* x\n\n \n**bold**\nso...", "")
    assert quality["stop_words"] == [4, 3, 0, 0]  # different ones, in any case, without punctuation
    assert quality["bullet_lines"] == [0.5, 0, 0.25, 0] and quality["ellipsis_lines"] == [0.25, 0, 0.25, 0]
    assert quality["word_length"][0] == 38 / 16 and quality["symbols"][0] == 1 / 16
    found = measure(GopherRepetition(), "a b\na b", "a b c d e", "x x x x", "p\n\nq\n\n p ", "")
    assert found["duplicate_line_characters"] == [0.5, 0, 0, 1 / 3, 0]
    assert found["top_2_gram"] == [1, 0, 1, 0, 0]  # once is no repetition, and no share is above 1
    assert found["duplicate_paragraphs"] == [0, 0, 0, 1 / 3, 0]


def test_all_decisions_of_datatrove_on_its_own_words():
    texts = [case["text"] for case in cases()]
    quality = GopherQuality(profile="datatrove-0.10.1", splitter=PeersWords())
    kept = np.array(measure(quality, *texts)["words"]) > 0  # without words it divides by nothing
    for made in (quality, GopherRepetition(profile="datatrove-0.10.1", splitter=PeersWords())):
        for field, found in fires(made, texts).items():
            theirs = np.array([DATATROVE[field] in case["datatrove"]["fires"] for case in cases()])
            assert jaccard(found & kept, theirs & kept) >= 0.99, field


def test_the_splitter_like_datatroves_decides_nearly_the_same():
    samples = cases()[-56:]
    made = GopherQuality(profile="datatrove-0.10.1")
    for field, found in fires(made, [case["text"] for case in samples]).items():
        theirs = np.array([DATATROVE[field] in case["datatrove"]["fires"] for case in samples])
        assert (found != theirs).sum() <= 1, field
    words = made.splitter.split(records([case["text"] for case in samples])["text"])
    theirs = sum(len(case["datatrove"]["words"]) for case in samples)
    assert abs(words.counts().sum() - theirs) / theirs < 0.005


def test_all_measures_of_dolma():
    texts = [case["text"] for case in cases()]
    for made in (GopherQuality(profile="dolma-1.2.1"), GopherRepetition(profile="dolma-1.2.1")):
        for name, values in measure(made, *texts).items():
            theirs = [case["dolma"]["gopher_v1"].get(DOLMA[name], 0) for case in cases()]
            assert values == pytest.approx(theirs), name


def test_repeats_are_those_of_a_count_by_hand():
    random = np.random.default_rng(3)
    texts = [" ".join(random.choice(list("abcde"), size)) for size in random.integers(0, 60, 40)]
    words = Splitter().split(records(texts)["text"])
    for at, n in enumerate(range(2, 6)):
        expected = Counter()
        for document, text in enumerate(texts):
            split = text.split()
            counted = Counter(zip(*[split[k:] for k in range(n)], strict=False))
            expected[document] += sum(count for count in counted.values() if count > 1)
        places = np.concatenate([chunk[at].places for chunk in repeats(words, range(2, 6))])
        assert Counter(words.document()[places].tolist()) == +expected


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=80), max_size=5))
def test_any_text_is_measured(texts):
    for profile in PROFILES:
        for made in (GopherQuality(profile=profile), GopherRepetition(profile=profile)):
            measured = made.attribute().measure(records(texts))
            assert measured.height == len(texts) and sum(measured.null_count().row(0)) == 0
            if profile == "default":
                shares = measured.select(name for name in measured.columns if name.rpartition("_")[2] in (
                    "lines", "characters", "gram", "grams", "paragraphs"))
                assert all(0 <= value <= 1 for row in shares.rows() for value in row)


def test_a_very_long_line_and_nul():
    for profile in PROFILES:
        for made in (GopherQuality(profile=profile), GopherRepetition(profile=profile)):
            assert made.attribute().measure(records(["ab" * 200_000, "\0" * 1000, "a " * 50_000])).height == 3


def test_a_set_in_a_recipe_is_one_line_and_shows_its_thresholds():
    config = parse(CurateConfig, {"inputs": [], "rules": [{"kind": "gopher_quality", "minimum_words": 3,
                                                           "minimum_stop_words": None}, "gopher_repetition"]})
    assert config.rules[0].model_dump()["maximum_words"] == 100_000
    titles = [rule.title() for rule in expanded(config.rules)]
    assert "gopher_quality minimum_words" in titles and "gopher_quality minimum_stop_words" not in titles
    assert "gopher_repetition maximum_top_2_gram" in titles
    _, dropped = applied(config.rules, records(["a b", "one two three. and more", "one two three " * 20]))
    assert dropped == ["gopher_quality minimum_words", None, "gopher_repetition maximum_top_2_gram"]
    dolma = parse(CurateConfig, {"inputs": [], "rules": [{"kind": "gopher_repetition", "profile": "dolma-1.2.1"}]})
    assert dolma.rules[0].maximum_duplicate_line_characters == 0.3 and dolma.rules[0].splitter.kind == "python"
    with pytest.raises(BadInput, match="has no measure"):
        expanded([GopherRepetition(profile="dolma-1.2.1", maximum_duplicate_paragraphs=0.3)])
    with pytest.raises(BadInput, match="measured in two ways"):
        Pipeline(expanded([GopherQuality(), GopherQuality(name="again", splitter=SPLITTERS["tokens"]())]), [])
