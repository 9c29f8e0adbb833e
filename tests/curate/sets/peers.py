"""What the peers decided on boundary cases and public-domain samples (see benchmarks/peers)."""

import gzip
import json
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl

from tilth.curate.pipeline import Pipeline
from tilth.curate.rules import DocumentRule, RuleSet, expanded
from tilth.curate.sets.words import Splitter, Words
from tilth.data.records import SCHEMA

FIXTURE = Path(__file__).parents[1] / "fixtures" / "peers.jsonl.gz"


@cache
def cases() -> list[dict]:
    with gzip.open(FIXTURE, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def records(texts, **columns) -> pl.DataFrame:
    filled = {"id": [f"d{at}" for at in range(len(texts))], "text": list(texts), "source": ["s"] * len(texts),
              "license": None, "attribution": None, "metadata": None, **columns}
    return pl.DataFrame(filled, schema=dict.fromkeys(SCHEMA.names, pl.String))


class PeersWords(Splitter):
    """The words that datatrove's own splitter found in the fixture's texts."""

    kind: str = "tests.curate.sets.peers:PeersWords"

    def split(self, texts: pl.Series) -> Words:
        known = {case["text"]: case["datatrove"]["words"] for case in cases()}
        return Words.of_lists(pl.Series([known[text] for text in texts], dtype=pl.List(pl.String)))


def fires(made: RuleSet, texts: list[str]) -> dict[str, np.ndarray]:
    """For each rule of a set (by its field) the documents that it drops, each rule alone on the untouched text."""
    frame, found = records(texts), {}
    for rule in expanded([made]):
        assert isinstance(rule, DocumentRule)
        measured = frame
        for attribute in rule.measures():
            if not set(attribute.columns()) <= set(measured.columns):
                frame = measured = measured.with_columns(attribute.measure(frame.select(SCHEMA.names)))
        found[rule.title().rpartition(" ")[2]] = measured.select(rule.drops().fill_null(False)).to_series().to_numpy()
    return found


def jaccard(ours: np.ndarray, theirs: np.ndarray) -> float:
    either = (ours | theirs).sum()
    return float((ours & theirs).sum() / either) if either else 1.0


def applied(rules, frame: pl.DataFrame) -> tuple[list[str], list[str | None]]:
    """The texts and `dropped_by` after a whole pipeline."""
    texts, measured = Pipeline(expanded(rules), []).apply(frame)
    return texts["text"].to_list(), measured["dropped_by"].to_list()
