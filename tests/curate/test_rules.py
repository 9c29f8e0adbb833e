"""Attributes and rules on worked cases: what they measure, drop and rewrite, and what they refuse."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilth.curate.attributes import ATTRIBUTES, BUILT_IN, Attribute
from tilth.curate.curate import CurateConfig
from tilth.curate.pipeline import Pipeline
from tilth.curate.rules import DocumentRule
from tilth.data.records import SCHEMA
from tilth.recipe import BadInput, parse


def records(*texts: str, **columns) -> pl.DataFrame:
    filled = {"id": [f"d{at}" for at in range(len(texts))], "text": list(texts), "source": ["s"] * len(texts),
              "license": None, "attribution": None, "metadata": None, **columns}
    return pl.DataFrame(filled, schema=dict.fromkeys(SCHEMA.names, pl.String))


def configured(rules=(), attributes=()) -> CurateConfig:
    return parse(CurateConfig, {"inputs": [], "rules": list(rules), "attributes": list(attributes)})


def apply(frame: pl.DataFrame, *rules, attributes=()):
    config = configured(rules, attributes)
    pipeline = Pipeline(config.rules, config.attributes)
    texts, measured = pipeline.apply(frame)
    return texts["text"].to_list(), measured, pipeline.tallies


NAMES = [name for name, known in ATTRIBUTES.items() if known in BUILT_IN]
MEASURED = [  # text, then the attributes in the order of BUILT_IN
    ("", 0, 0, 0, 0, 0, 0, 0, 0, 0, 1),
    ("ab c1\n", 6, 6, 2, 1, 2.0, 3 / 6, 1 / 6, 0, 2 / 6, 1),
    ("é, é\n\n é, é", 11, 15, 4, 3, 1.5, 4 / 11, 0, 2 / 11, 5 / 11, 1 / 2),
    (" \n\t", 3, 3, 0, 2, 0, 0, 0, 0, 1, 1),
    ("日本٣", 3, 8, 1, 1, 3, 2 / 3, 1 / 3, 0, 0, 1),
]


@pytest.mark.parametrize("text, values", [(row[0], row[1:]) for row in MEASURED])
def test_attributes(text, values):
    assert NAMES == ["characters", "bytes", "words", "lines", "mean_word_length", "alphabetic_share",
                                "digit_share", "symbol_share", "whitespace_share", "unique_line_share"]
    for attribute, value in zip(BUILT_IN, values, strict=True):
        measured = attribute().measure(records(text))
        assert measured.item() == pytest.approx(value), attribute


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), max_size=5))
def test_attributes_of_any_text(texts):
    _, measured, _ = apply(records(*texts), attributes=NAMES)
    assert measured["characters"].to_list() == [len(text) for text in texts]
    assert measured["bytes"].to_list() == [len(text.encode()) for text in texts]
    for name in NAMES:
        assert measured[name].null_count() == 0
        if name.endswith("share"):
            assert measured[name].is_between(0, 1).all()


def test_keep_and_drop_are_opposites_and_count_missing_as_neither():
    frame = records("aa", "aaaa", "aaaaaa", metadata=['{"lang":"de","n":1.0}', '{"lang":"en","n":"x"}', None])
    for test in ({"attribute": "characters", "minimum": 3, "maximum": 5},
                 {"attribute": "characters", "one_of": [4, 9]}, {"attribute": "id", "one_of": ["d1"]},
                 {"attribute": "characters", "not_one_of": [2, 6.0]}):
        assert apply(frame, {"kind": "keep", **test})[1]["dropped_by"].is_null().to_list() == [False, True, False]
        assert apply(frame, {"kind": "drop", **test})[1]["dropped_by"].is_null().to_list() == [True, False, True]
    for test, kept in (({"one_of": ["de"]}, [True, False, False]), ({"not_one_of": ["de"]}, [False, True, False])):
        _, measured, _ = apply(frame, {"kind": "keep", "attribute": "metadata.lang", **test})
        assert measured["dropped_by"].is_null().to_list() == kept
        assert measured["metadata.lang"].to_list() == ["de", "en", None]
    number = apply(frame, {"kind": "keep", "attribute": "metadata.n", "minimum": 0})[1]
    assert number["dropped_by"].is_null().to_list() == [True, False, False]


class Hollow(Attribute):
    """Gives NaN, which must pass no minimum."""

    kind: str = "hollow"

    def expression(self) -> pl.Expr:
        return pl.col("text").str.len_chars() * float("nan")


def test_nan_passes_no_minimum():
    outside = f"{__name__}:Hollow"
    rule = {"kind": "keep", "attribute": "hollow", "minimum": 0}
    config = configured([rule], [{"kind": outside}])
    config.attributes[0].kind = "hollow"
    _, measured = Pipeline(config.rules, config.attributes).apply(records("a"))
    assert measured["dropped_by"].to_list() == ["keep hollow >= 0"]


def test_rules_act_in_order_and_report_what_they_saw():
    _, measured, (first, second) = apply(
        records("short", "a long enough text", "spam spam spam"), {"kind": "keep", "attribute": "words", "minimum": 2},
        {"kind": "drop_matching", "pattern": "(?i)SPAM", "minimum": 3, "name": "spam"})
    assert measured["dropped_by"].to_list() == ["keep words >= 2", None, "spam"]
    assert (first.seen.documents, first.dropped.documents, first.dropped.bytes) == (3, 1, 5)
    assert (second.seen.documents, second.dropped.documents) == (2, 1)
    assert first.examples == [{"id": "d0", "text": "short", "why": "words is 1"}]
    assert second.examples[0]["why"] == "matches at byte 0"


def test_an_attribute_is_measured_on_the_text_that_its_rule_sees():
    texts, measured, tallies = apply(
        records("a b  c", "abc"), {"kind": "keep", "attribute": "words", "minimum": 2, "name": "first"},
        {"kind": "rewrite", "pattern": " +", "replacement": "", "name": "join"},
        {"kind": "keep", "attribute": "words", "maximum": 1, "name": "second"}, attributes=["characters", "words"])
    assert texts == ["abc", "abc"]
    assert measured.columns == ["id", "words", "words@join", "characters", "dropped_by"]
    assert measured.drop("id", "dropped_by").rows() == [(3, 1, 3), (1, 1, 3)]
    assert measured["dropped_by"].to_list() == [None, "first"]
    assert (tallies[1].rewritten.documents, tallies[1].rewritten.bytes) == (1, 6)


def test_normalize():
    texts, _, (tally,) = apply(records("e\u0301\r\nx\ry\0", "same\n", "\u00e9"), {"kind": "normalize"})
    assert texts == ["é\nx\ny", "same\n", "\u00e9"] and tally.rewritten.documents == 1
    assert apply(records("e\u0301\r\n\0"), {"kind": "normalize", "unicode": False, "newlines": False})[0] == [
        "e\u0301\r\n"]


def test_rewrite_with_groups():
    texts, _, (tally,) = apply(records("a=1, b=2", "none"),
                               {"kind": "rewrite", "pattern": r"(?P<key>\w)=(\d)", "replacement": "${key}-$2$$"})
    assert texts == ["a-1$, b-2$", "none"]
    assert tally.examples[0]["why"] == "rewritten from character 1 on"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), max_size=4))
def test_text_that_no_rule_touches_stays_as_it_is(texts):
    out, measured, _ = apply(records(*texts), {"kind": "rewrite", "pattern": "never in here: [^\\s\\S]"},
                             {"kind": "keep", "attribute": "characters", "minimum": 5})
    assert out == texts
    assert measured["dropped_by"].is_null().to_list() == [len(text) >= 5 for text in texts]


@pytest.mark.parametrize("rule, says", [
    ({"kind": "keep", "attribute": "wrods", "minimum": 1}, "'wrods', which nothing computes; did you mean 'words'"),
    ({"kind": "drop_matching", "pattern": "("}, r"`rules\[0\].pattern`: not a valid regular .*unclosed group"),
    ({"kind": "drop_matching", "pattern": r"(a)\1"}, "backreferences are not supported"),
    ({"kind": "rewrite", "pattern": "(?=a)"}, "look-around"),
    ({"kind": "rewrite", "pattern": "(a)", "replacement": "$1b"}, "names the group '1b'"),
    ({"kind": "rewrite", "pattern": "a", "replacement": "$1"}, "names the group '1'"),
    ({"kind": "keep", "attribute": "words"}, "give at least one of minimum, maximum"),
    ({"kind": "keep", "attribute": "words", "minimum": 3, "maximum": 1}, "minimum 3.0 is above maximum 1.0"),
    ({"kind": "keep", "attribute": "words", "minimun": 3}, r"`rules\[0\].minimun`; did you mean 'minimum'"),
    ({"kind": "kep", "attribute": "words"}, "did you mean 'keep'"),
    ({"kind": "tests.nothing:Here"}, "cannot be imported"),
])
def test_bad_rules_name_the_key(rule, says):
    with pytest.raises(BadInput, match=says):
        config = configured([rule])
        Pipeline(config.rules, config.attributes)


class Two(Attribute):
    """An outside attribute: two columns at once, by a function over the frame."""

    kind: str = "two"
    wrong: bool = False

    def columns(self) -> tuple[str, ...]:
        return ("first", "last")

    def measure(self, frame: pl.DataFrame) -> pl.DataFrame:
        text = frame["text"]
        return pl.DataFrame({"first": text.str.head(1), "other" if self.wrong else "last": text.str.tail(1)})


class Quiet(DocumentRule):
    """An outside rule: drops texts that begin as they end."""

    kind: str = "quiet"

    def needs(self) -> tuple[str, ...]:
        return ("first", "last")

    def drops(self) -> pl.Expr:
        return pl.col("first") == pl.col("last")


def test_attributes_and_rules_from_outside():
    here = __name__
    _, measured, (tally,) = apply(records("aba", "abc", ""), {"kind": f"{here}:Quiet", "name": "mirror"},
                                  attributes=[f"{here}:Two"])
    assert measured.columns == ["id", "first", "last", "dropped_by"]
    assert measured["dropped_by"].to_list() == ["mirror", None, "mirror"] and tally.dropped.documents == 2
    with pytest.raises(BadInput, match=r"returned columns.*promised"):
        apply(records("a"), attributes=[{"kind": f"{here}:Two", "wrong": True}])
    with pytest.raises(BadInput, match=r"'words' of 'words' is computed twice"):
        apply(records("a"), attributes=["words", "words"])
    with pytest.raises(BadInput, match=r"does not derive from tilth\.curate\.attributes\.Attribute"):
        configured([], [f"{here}:Quiet"])


def test_examples_mask_personal_data():
    _, _, (tally,) = apply(records("call +49 (170) 123-4567 89 or mail jo.doe@mail.example.org, 10.0.0.1, v1.2.3"),
                           {"kind": "drop", "attribute": "words", "minimum": 1})
    assert tally.examples[0]["text"] == "call [phone number] or mail [e-mail], [IP address], v1.2.3"
