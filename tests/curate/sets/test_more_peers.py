"""Addresses, token repetition and StarCoder's XML test against what the peers decided (benchmarks/peers/more_rules.py).

Every difference that is not in these tests' conditions would fail them: those are the ones that the docs explain.
"""

import gzip
import json
from functools import cache

import numpy as np
import polars as pl
import pytest

from tests.curate.sets.peers import FIXTURE, applied, jaccard, records
from tilth.curate.sets.code import Code
from tilth.curate.sets.starcoder import Starcoder
from tilth.curate.sets.token_repetition import TokenRepetition
from tilth.curate.sets.urls import DropUrls


@cache
def known() -> dict:
    with gzip.open(FIXTURE.with_name("peers_more.json.gz"), "rt", encoding="utf-8") as file:
        return json.load(file)


def gone(**lists) -> np.ndarray:
    urls = known()["urls"]
    frame = records(["t"] * len(urls), metadata=[json.dumps({"url": url}) for url in urls])
    return np.array([by is not None for by in applied([DropUrls(**lists)], frame)[1]])


def hosts() -> list[str]:
    return [url.partition("://")[2].partition("/")[0].partition(":")[0] for url in known()["urls"]]


def test_addresses_as_datatrove():
    says = np.array([one or "" for one in known()["datatrove"]["urls"]])
    domains = gone(domains=known()["domains"])
    lower = np.array([host == host.lower() for host in hosts()])  # it takes BAD.com for another host than bad.com
    by_domain = np.isin(says, ["domain", "subdomain"])
    assert jaccard(domains & lower, by_domain) >= 0.99 and by_domain.sum() > 100
    assert not (by_domain & ~lower).any()
    rest = ~by_domain
    hard = says == "hard_blacklisted"
    assert jaccard(gone(words=known()["adult"]) & rest, hard) >= 0.99 and hard.sum() > 50
    rest &= ~hard
    soft = says == "soft_blacklisted"
    assert jaccard(gone(words=known()["soft"], minimum_words=2) & rest, soft) >= 0.99 and soft.sum() > 50
    rest &= ~soft
    parts = says == "blacklisted_subword"  # it looks for them in the address without its signs: pro-git holds progit
    split = np.array(["pro-git" in url for url in known()["urls"]])
    assert jaccard(gone(parts=known()["parts"]) & rest & ~split, parts & ~split) >= 0.99 and (parts & ~split).sum() > 20


def test_domains_as_dolma():
    listed = set(known()["domains"])
    itself = np.array([host.lower().removeprefix("www.") in listed for host in hosts()])  # it knows no parent domains
    theirs = np.array(known()["dolma"]["domains"])
    assert jaccard(gone(domains=known()["domains"]) & itself, theirs) >= 0.99 and theirs.sum() > 100


def test_token_repetition_as_dolma():
    measured = TokenRepetition().attribute().measure(records(known()["repeated"]))
    characters, times = np.array(known()["dolma"]["repeated"]).T
    assert measured["token_repetition_characters"].to_list() == characters.tolist()
    assert measured["token_repetition_times"].to_list() == times.tolist()
    assert 50 < (characters > 99).sum() < 300


def test_xml_as_dolmas_starcoder_tagger():
    found = Code().attribute().measure(records(known()["code"]))["code_xml"].to_numpy()
    assert found.tolist() == known()["dolma"]["xml"] and 20 < found.sum() < 180


def programs(cases) -> pl.DataFrame:
    frame = records([text for _, text in cases])
    return frame.with_columns(pl.Series("id", [f"file{at}.{ending}" for at, (ending, _) in enumerate(cases)]))


def test_starcoders_ratios_as_dolma():
    cases = known()["programs"]
    measured = Starcoder(profile="dolma-1.2.1").attribute().measure(programs(cases))
    theirs = np.array(known()["dolma"]["programs"])
    for ending, column, limits in (("py", 0, [0.01, -0.8]), ("java", 0, [0.01, -0.8]), ("js", 0, [0.01, -0.8]),
                                   ("html", 1, [0.2])):
        of = np.array([one == ending for one, _ in cases])
        ours, others = measured.to_series(column).to_numpy()[of], theirs[of, column]
        assert np.isclose(ours, others, atol=1e-9).mean() > 0.9  # lexers of other versions; odd references in HTML
        for limit in limits:
            fires = [(one < limit if limit > 0 else one > -limit) for one in (ours, others)]
            assert jaccard(*fires) >= 0.99


def test_starcoders_ratios_are_right():
    page = "<style>p { margin: 0 }</style><p>" + "word &amp; " * 20 + "</p><!-- none --><script>'<b>'</script>"
    cases = [["py", '"""Doc."""\nx = 1  # five\ns = "# no"\n'], ["js", "/* a */ f();\n"], ["java", "int a;\n"],
             ["html", page], ["html", "<p>too short</p>"], ["c", "// none of them\n"], ["py", ""]]
    found = Starcoder().attribute().measure(programs(cases))
    assert found["starcoder_comments"].to_list() == [
        pytest.approx(16 / 36), pytest.approx(7 / 13), 0, None, None, None, None]
    assert found["starcoder_html_text"].to_list() == [
        *[None] * 3, pytest.approx(140 / len(page)), 0, None, None]
    dropped = applied([Starcoder()], programs(cases))[1]
    assert dropped == [None, None, "starcoder minimum_comments", None, "starcoder minimum_html_text", None, None]
    frame = records(["int a;"] * 2, metadata=['{"ext": "java"}', '{"ext": "c"}'])
    assert applied([Starcoder(path="metadata.ext")], frame)[1] == ["starcoder minimum_comments", None]
