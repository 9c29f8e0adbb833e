"""The corpus page: the whole and what stayed, escaped, with the figures that the files hold."""

import json

import numpy as np
import polars as pl
import pytest

from tilth.recipe import BadInput
from tilth.report.corpus import bin_edges, clusters, columns, histogram, write_corpus_page


def curated(folder, script: str = "<script>alert(1)</script>"):
    stage = folder / "curate"
    stage.mkdir(parents=True)
    (folder / "recipe.yaml").write_text("name: web\nstages: {}\n")
    amount = {"documents": 4, "bytes": 400}
    (stage / "report.json").write_text(json.dumps({
        "read": amount, "kept": {"documents": 2, "bytes": 200}, "held_out": None,
        "quarantined": {"documents": 1, "by_reason": {script: 1}},
        "rules": [{"name": script, "seen": amount, "dropped": {"documents": 2, "bytes": 200}, "rewritten": {},
                   "examples": [{"id": script, "text": script, "why": "short"}]}],
        "sources": [{"source": script, "license": None, "documents": 2, "bytes": 200}]}))
    (stage / "manifest.json").write_text(json.dumps({"kind": "curate", "summary": {}}))
    pl.DataFrame({"id": list("abcd"), "characters": [1, 10, 100, 100_000], "share": [0.5, None, 0.5, 0.5],
                  "language": ["en", "en", script, None], "empty": [None] * 4,
                  "dropped_by": [None, "keep", None, "keep"]},
                 schema_overrides={"empty": pl.Float64}).write_parquet(stage / "attributes-00000.parquet")
    pl.DataFrame({"rule": ["near"] * 3, "cluster": [1, 1, 1], "id": [script, "b", "c"], "kept": [True, False, False]},
                 ).write_parquet(stage / "clusters.parquet")
    return folder


def test_page_shows_before_and_after_and_escapes_the_corpus(tmp_path):
    path = write_corpus_page(curated(tmp_path / "run"))
    page = path.read_text()
    assert path == tmp_path / "run" / "corpus.html"
    assert "2 of 4 documents stay" in page
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "default-src 'none'" in page


def test_columns_hold_shares_of_all_and_of_those_that_stayed(tmp_path):
    found = {column.name: column for column in columns(curated(tmp_path / "run", "x") / "curate")}
    assert list(found) == ["characters", "share", "language"], "a column without a value has no chart"
    assert found["language"].shares == [("en", "50.0 %", "50.0 %"), ("x", "25.0 %", "50.0 %"),
                                        ("none", "25.0 %", "0.0 %")]
    assert "25.0 % have none" in str(found["share"].chart)
    assert "median 55 before, 50.5 after" in str(found["characters"].chart)


def test_clusters_are_counted_by_rule(tmp_path):
    found = clusters(curated(tmp_path / "run", "x") / "curate")
    assert found["rules"] == [{"rule": "near", "clusters": 1, "documents": 3, "largest": 3, "dropped": 2}]
    assert found["largest"][0]["ids"] == ["x", "b", "c"]


@pytest.mark.parametrize(("values", "log"), [([0.0, 1.0, 2.0], False), ([1.0, 2.0, 3.0, 4000.0], True),
                                             ([5.0], False), ([-1.0, 1e9], False)])
def test_edges_rise_and_hold_the_values(values, log):
    edges, logarithmic = bin_edges(np.array(values))
    assert logarithmic is log and len(edges) == 33 and (np.diff(edges) > 0).all()
    clipped = np.clip(values, edges[0], edges[-1])
    assert np.histogram(clipped, edges)[0].sum() == len(values)
    assert "documents" in str(histogram("a", edges, np.histogram(clipped, edges)[0], np.zeros(32, int), log=log))


def test_a_run_that_curated_nothing_is_refused(tmp_path):
    (tmp_path / "recipe.yaml").write_text("name: web\nstages: {}\n")
    with pytest.raises(BadInput, match="no curated corpus yet"):
        write_corpus_page(tmp_path)
