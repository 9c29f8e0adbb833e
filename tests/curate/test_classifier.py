"""Classifiers: the bags they read, that training is exact and honest, and what rules do with their scores."""

import json
import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.curate.sets.peers import records
from tilth.cli import app
from tilth.curate.classifier import Classifier, Features
from tilth.curate.classifier_rules import ClassifierScore
from tilth.curate.curate import CurateConfig
from tilth.curate.pipeline import Pipeline
from tilth.curate.rules import expanded
from tilth.curate.train_classifier import Training, auc, draw, log_loss, read_labelled, train
from tilth.recipe import BadInput, parse

GOOD = ["calm", "river", "reads", "slowly", "under", "green", "hills"]
BAD = ["spam", "offer", "click", "now", "cheap", "pills", "win"]


def sample(count: int, seed: int = 0) -> tuple[pl.Series, pl.Series]:
    """Texts of either kind, of different lengths, with a fifth of the words from the other side."""
    rng, texts, labels = np.random.default_rng(seed), [], []
    for at in range(count):
        own, other = (BAD, GOOD) if at % 2 else (GOOD, BAD)
        words = [str(rng.choice(own if rng.random() < 0.8 else other)) for _ in range(rng.integers(8, 40))]
        texts.append(" ".join([*words, f"n{at}"]))
        labels.append("bad" if at % 2 else "good")
    return pl.Series(texts), pl.Series(labels)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier") / "bad"
    made = train(*sample(300), Training(positive="bad", features=Features(bits=14)))
    made.save(folder)
    return folder, made


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.sampled_from("ab é日1 .\n"), max_size=12), max_size=6),
       st.sampled_from(["word", "character"]), st.integers(1, 2), st.integers(2, 3))
def test_scores_are_the_means_of_the_bags(texts, unit, smallest, order):
    features = Features(unit=unit, smallest=smallest, order=order, bits=10)
    series, weights = pl.Series(texts, dtype=pl.String), np.random.default_rng(0).normal(size=1024).astype(np.float32)
    places, bags = features.bags(series)
    expected = np.full(len(texts), 0.25)
    expected[places] += bags.times(weights)
    assert np.allclose(features.scores(series, weights, 0.25), expected, atol=1e-5)


def test_a_bag_holds_the_ngrams_of_its_text_alone():
    features = Features(order=2, bits=20)
    places, bags = features.bags(pl.Series(["A b c", "...", "c d", "b"]))
    assert places.tolist() == [0, 2, 3] and bags.counts.tolist() == [5, 3, 1]
    first = bags.features[:5]
    assert np.isin(bags.features[8:], first).all() and np.isin(bags.features[5:8], first).sum() == 1
    assert features.bags(pl.Series(["a B c"]))[1].features.tolist() == first.tolist()  # case does not matter


def test_training_finds_what_is_there_and_is_exact(trained):
    folder, made = trained
    assert made.facts["auc"] > 0.98 and made.facts["log_loss"] < made.facts["log_loss_of_share"] / 2
    again = train(*sample(300), Training(positive="bad", features=Features(bits=14)))
    assert np.array_equal(again.weights, made.weights) and again.facts == made.facts
    texts, labels = sample(200, seed=1)
    assert auc(made.probabilities(texts), (labels == "bad").to_numpy().astype(float)) > 0.98
    read = Classifier.load(folder)
    assert np.array_equal(read.probabilities(texts), made.probabilities(texts)) and read.facts == made.facts


def test_labels_without_meaning_are_not_learnt():
    texts, labels = sample(400)
    made = train(texts, labels.shuffle(seed=3), Training(positive="bad", features=Features(bits=14), held_out=0.5))
    assert 0.35 < made.facts["auc"] < 0.65  # while what it was trained on it knows by heart
    assert made.facts["auc_trained"] > 0.8


def test_equal_texts_are_never_on_both_sides():
    texts, labels = sample(60)
    made = train(pl.concat([texts, texts, texts]), pl.concat([labels, labels, labels]), Training(positive="bad"))
    assert made.facts["repeated"] == 120 and made.facts["trained_on"] + made.facts["held_out"] == 60
    held = draw(np.array([0.0] * 50 + [1.0] * 10), 0.1, 0)
    assert held[:50].sum() == 5 and held[50:].sum() == 1
    assert (held != draw(np.array([0.0] * 50 + [1.0] * 10), 0.1, 1)).any()


def test_auc_and_log_loss():
    assert auc(np.array([1.0, 2, 3, 4]), np.array([0.0, 0, 1, 1])) == 1
    assert auc(np.array([1.0, 1, 1, 1]), np.array([0.0, 1, 0, 1])) == 0.5
    assert auc(np.array([1.0, 3, 2, 4]), np.array([0.0, 0, 1, 1])) == 0.75
    assert log_loss(np.array([0.5, 0.25]), np.array([1.0, 0.0])) == pytest.approx(-(math.log(0.5) + math.log(0.75)) / 2)


def test_what_cannot_be_trained_on():
    texts, labels = sample(40)
    for wrong, training in ((labels, Training(positive="evil")), (pl.Series(["x"] * 40), Training()),
                            (pl.Series(["x", "y", "z", "z"] * 10), Training()),
                            (pl.Series(["x"] * 35 + ["y"] * 5), Training())):
        with pytest.raises(BadInput):
            train(texts, wrong, training)


def test_a_folder_that_holds_none(tmp_path, trained):
    with pytest.raises(BadInput, match="tilth classifier train"):
        ClassifierScore(path=str(tmp_path)).measure(records(["a"]))
    folder, _ = trained
    (tmp_path / "classifier.json").write_text((folder / "classifier.json").read_text().replace("14", "15"))
    (tmp_path / "weights.safetensors").write_bytes((folder / "weights.safetensors").read_bytes())
    with pytest.raises(BadInput, match="15 bits"):
        ClassifierScore(path=str(tmp_path)).measure(records(["a"]))


def applied(texts, *rules):
    config = parse(CurateConfig, {"inputs": [], "rules": list(rules)})
    pipeline = Pipeline(expanded(config.rules), [])
    left, measured = pipeline.apply(records(texts))
    return left["text"].to_list(), measured, pipeline


def test_rules_by_document_line_and_sentence(trained):
    folder, made = trained
    good, bad = " ".join(GOOD * 3), " ".join(BAD * 3)
    rule = {"kind": "classified", "path": str(folder), "maximum": 0.7, "column": "spam"}
    texts, measured, pipeline = applied([good, bad, ""], rule)
    assert measured["dropped_by"].is_null().to_list() == [True, False, True] and texts == [good, bad, ""]
    assert measured["spam"].to_list() == made.probabilities(pl.Series([good, bad, ""])).tolist()
    assert pipeline.tallies[0].examples[0]["why"].startswith("spam is ")
    assert pipeline.rules[0].about()["classifier"]["positive"] == "bad"
    lines = f"{good}\n{bad}\n\n{good}"
    texts, measured, _ = applied([lines, bad, good], {**rule, "unit": "line"})
    assert texts == [f"{good}\n\n{good}", "", good]
    assert measured["dropped_by"].is_null().to_list() == [True, False, True]
    assert [len(one) for one in measured["spam_pieces"]] == [3, 1, 1]
    assert measured["spam"][0] == pytest.approx(max(one["probability"] for one in measured["spam_pieces"][0]))
    texts, _, _ = applied([f"{good}. {bad}! {good}."], {**rule, "unit": "sentence"})
    assert texts == [f"{good}. {good}."]
    kept = applied([good, bad], {"kind": "classified", "path": str(folder), "minimum": 0.5})[1]
    assert kept["dropped_by"].is_null().to_list() == [False, True]
    with pytest.raises(BadInput, match="minimum"):
        applied([good], {"kind": "classified", "path": str(folder)})


def test_the_command(tmp_path):
    texts, labels = sample(100)
    rows = [json.dumps({"id": str(at), "text": text, "label": label})
            for at, (text, label) in enumerate(zip(texts, labels, strict=True))]
    (tmp_path / "data.jsonl").write_text("\n".join(rows))
    (tmp_path / "training.yaml").write_text("features: {bits: 12}\nseed: 3\n")
    done = CliRunner().invoke(app, ["classifier", "train", str(tmp_path / "data.jsonl"), "-o", str(tmp_path / "made"),
                                    "--positive", "bad", "--training", str(tmp_path / "training.yaml"), "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["auc"] > 0.9 and result["seed"] == 3
    assert Classifier.load(tmp_path / "made").weights.shape == (4096,)
    with pytest.raises(BadInput, match="has a label at"):
        read_labelled([str(tmp_path / "data.jsonl")], "metadata.other")
