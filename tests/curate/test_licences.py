"""Licences: their names, the rule that keeps what is listed, and credit that reaches the card of a model."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.curate.sets.peers import records
from tilth.curate.curate import CurateConfig
from tilth.curate.licences import allowed, family, needs_credit, spdx
from tilth.curate.pipeline import Pipeline
from tilth.curate.rules import expanded
from tilth.data.records import SCHEMA
from tilth.data.tokenize import tokenize_documents
from tilth.data.tokenizer import BpeTokenizer
from tilth.models.card import model_card
from tilth.recipe import BadInput, parse
from tilth.stages.export import _sources

NAMES = {
    "CC-BY-4.0": ["CC BY 4.0", "cc-by-4.0", "Creative Commons Attribution 4.0 International",
                  "https://creativecommons.org/licenses/by/4.0/", "CC BY 4.0 (Free Ebook Foundation)"],
    "CC-BY-SA-3.0": ["CC BY-SA 3.0", "Creative Commons Attribution-Share Alike 3.0 Unported License"],
    "CC-BY-NC-4.0": ["CC BY-NC 4.0", "http://creativecommons.org/licenses/by-nc/4.0/deed.de"],
    "CC-BY": ["CC BY", "cc-by"], "CC-BY-NC": ["CC-BY-NC"],
    "CC0-1.0": ["CC0", "CC0 1.0 Universal", "https://creativecommons.org/publicdomain/zero/1.0/"],
    "Apache-2.0": ["Apache License, Version 2.0", "apache 2", "https://www.apache.org/licenses/LICENSE-2.0.txt"],
    "MIT": ["MIT", "The MIT License", "https://opensource.org/licenses/MIT"], "BSD-3-Clause": ["BSD 3-Clause License"],
    "MIT OR Apache-2.0": ["MIT or Apache-2.0", "(MIT OR Apache-2.0)"], "MIT AND CC-BY-4.0": ["MIT and CC BY 4.0"],
    "GPL-3.0-only": ["GPLv3", "GNU General Public License v3.0", "GPL-3.0-only"], "LGPL-2.1-only": ["LGPL 2.1"],
    "GFDL-1.2-or-later": ["GFDL 1.2+", "GNU FDL 1.2 or later", "GFDL-1.2-or-later"],
    "LicenseRef-public-domain": ["public domain", "Public Domain (US government work)", "LicenseRef-public-domain"],
    "LicenseRef-public-domain AND CC0-1.0": ["public domain / CC0 1.0"], "OGL-UK-2.0": ["Open Government Licence v2.0"],
}


def test_names():
    for name, spellings in NAMES.items():
        for spelling in [name, *spellings]:
            assert spdx(spelling) == name, spelling


@pytest.mark.parametrize("said", ["", "unknown", "proprietary", "CC", "CC BY XX", "MASC open licence", "MIT-like",
                                  "public domain in Japan", "(MIT OR Apache-2.0) AND BSD-3-Clause", "see website",
                                  "Apache-2.0 WITH LLVM-exception", "MIT AND whatever"])
def test_nothing_is_inferred(said):
    assert spdx(said) is None


@given(st.text(max_size=40))
def test_any_text_is_a_name_or_none_and_names_stay(said):
    name = spdx(said)
    assert name is None or spdx(name) == name


def test_what_a_list_allows():
    assert family("CC-BY-4.0") == "CC-BY" and family("GPL-3.0-or-later") == "GPL" and family("MIT") == "MIT"
    assert allowed("CC-BY-4.0", {"CC-BY"}) and not allowed("CC-BY-NC-4.0", {"CC-BY"})
    assert not allowed("CC-BY", {"CC-BY-4.0"})
    assert allowed("MIT OR GPL-3.0-only", {"MIT"}) and not allowed("MIT AND GPL-3.0-only", {"MIT"})
    assert needs_credit("CC-BY-4.0") and not needs_credit("CC0-1.0") and not needs_credit("MIT OR CC0-1.0")


def applied(said, credit, **rule):
    config = parse(CurateConfig, {"inputs": [], "rules": [{"kind": "licences", **rule}]})
    pipeline = Pipeline(expanded(config.rules), [])
    _, measured = pipeline.apply(records(["text"] * len(said), license=said, attribution=credit))
    return measured["dropped_by"].is_null().to_list(), measured["spdx_licence"].to_list(), pipeline


def test_only_listed_licences_stay():
    said = ["CC BY 4.0", "CC-BY-NC", None, "", "who knows", "cc0", "House rules"]
    kept, names, pipeline = applied(said, None, licences=["cc by", "CC0"], others=["House rules"])
    assert kept == [True, False, False, False, False, True, True]
    assert names == ["CC-BY-4.0", "CC-BY-NC", None, None, None, "CC0-1.0", None]
    tally = pipeline.tallies[0]
    assert tally.seen.documents == sum(kept) + tally.dropped.documents
    assert {example["why"].partition(",")[0] for example in tally.examples} == {
        "licence CC-BY-NC", "licence missing", "licence ", "licence who knows"}
    assert pipeline.rules[0].licences == ["CC-BY", "CC0-1.0"]
    credit = ["A. Author", None, None, None, None, None, " "]
    assert applied(said, credit, licences=["CC-BY", "CC0-1.0"], others=["House rules"], attribution="required")[0] == [
        True, False, False, False, False, True, False]
    for wrong in ({"licences": ["CC-BYE"]}, {"licences": []}):
        with pytest.raises(BadInput):
            applied(["MIT"], None, **wrong)


def test_credit_reaches_the_card(tmp_path):
    frame = records(["one text", "two texts", "three texts", "four"], license=["CC BY 4.0"] * 3 + ["CC0"],
                    source=["wiki", "wiki", "wiki", "laws"], attribution=["B. Both", "A. <Author>", "B. Both", None])
    frame.select(SCHEMA.names).write_parquet(tmp_path / "documents.parquet")
    pool = tmp_path / "run" / "tokenize"
    tokenizer = BpeTokenizer(vocab_size=257).build(frame["text"].to_list())
    tokenize_documents([tmp_path / "documents.parquet"], tokenizer, pool, 64)
    report = json.loads((pool / "report.json").read_text())
    by_name = {one["source"]: one for one in report["sources"]}
    assert by_name["wiki"]["attributions"] == ["B. Both", "A. <Author>"] and by_name["wiki"]["attributed"] == 3
    assert "attributions" not in by_name["laws"]
    drawn = {name: {"license": one["license"], "tokens": one["tokens"]} for name, one in by_name.items()}
    sources = _sources(tmp_path / "run" / "pretrain", {"fields": {"input": "tokenize"}, "summary": {"sources": drawn}})
    card = model_card(name="m", model={}, parameters=1, sources=sources)
    assert "### Attribution" in card and "- wiki: B. Both; A. &#60;Author&#62;" in card
    many = [{"source": "s", "license": "x", "attributions": [f"n{at}" for at in range(130)]}]
    assert "; n99; and 30 more" in model_card(name="m", model={}, parameters=1, sources=many)
    assert "Attribution" not in model_card(name="m", model={}, parameters=1, sources=[{"source": "s"}])
