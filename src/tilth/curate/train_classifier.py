"""Training a classifier from labelled text, and how good it is on labelled text that it did not see."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pydantic import Field

from tilth.curate.attributes import record_column
from tilth.curate.classifier import Classifier, Features
from tilth.curate.linear import Bags, fit_logistic
from tilth.data.inputs import INPUTS, Input
from tilth.data.records import Quarantine
from tilth.data.seeding import generator
from tilth.recipe import BadInput, Config, one_of, parse, say

LEAST = 10  # examples of each class


class Training(Config):
    """How to train. `label`: a column of the records or `metadata.KEY`; `positive`: its value whose probability is
    wanted (all others are negative; of two values the one that sorts last if not given). `penalty` weighs the squares
    of the weights. `held_out`: the share, drawn with `seed`, that is scored and not trained on."""

    label: str = "metadata.label"
    positive: str | None = None
    features: Features = Field(default_factory=Features)
    penalty: float = Field(default=0.01, gt=0)
    held_out: float = Field(default=0.1, gt=0, lt=1)
    seed: int = Field(default=0, ge=0)


class _Inputs(Config):
    inputs: list[one_of(Input, INPUTS)]  # type: ignore[valid-type]


def train_files(inputs: Sequence[str], output: Path, training: Training) -> dict[str, Any]:
    """Train from labelled files of any input into the folder `output`; the figures, which are also printed."""
    texts, labels = read_labelled(inputs, training.label)
    made = train(texts, labels, training)
    made.save(output)
    facts = made.facts
    say(f"  {facts['trained_on']} texts, {facts['positives']} of them {training.label} = {made.positive}; "
        f"{facts['repeated']} repeated and {facts['without_words']} without words left out")
    say(f"  held out: {facts['held_out']} texts, AUC {facts['auc']:.4f}, log loss {facts['log_loss']:.4f} nats "
        f"(share of positives alone: {facts['log_loss_of_share']:.4f}); on what it was trained on: AUC "
        f"{facts['auc_trained']:.4f}")
    say(f"classifier.json and weights.safetensors are in {output}")
    return {"folder": str(output), **facts}


def read_labelled(inputs: Sequence[str], label: str) -> tuple[pl.Series, pl.Series]:
    """Texts and labels (as text) of all records that have both."""
    parts = []
    quarantine = Quarantine()
    for source in parse(_Inputs, {"inputs": [{"kind": "auto", "path": path} for path in inputs]}, "labelled").inputs:
        for batch in source.read(quarantine):
            frame = pl.DataFrame(pl.from_arrow(batch))
            if not label.startswith("metadata.") and label not in frame.columns:
                raise BadInput(f"Records have no column '{label}'; give one of {', '.join(frame.columns)}, or "
                               f"metadata.KEY.")
            parts.append(frame.select("text", label=record_column(label).cast(pl.String)).drop_nulls())
    found = pl.concat(parts) if parts else pl.DataFrame(schema={"text": pl.String, "label": pl.String})
    if not found.height:
        raise BadInput(f"None of the records of {', '.join(inputs)} has a label at '{label}'. Name another with "
                       f"--label ({quarantine.total} records could not be read at all).")
    return found["text"], found["label"]


def train(texts: pl.Series, labels: pl.Series, training: Training) -> Classifier:
    """Fit on all but the held-out share; equal texts count once, so that none is on both sides."""
    values = labels.unique().sort().to_list()
    positive = training.positive if training.positive is not None else values[-1]
    if positive not in values or len(values) < 2 or (training.positive is None and len(values) > 2):
        shown = ", ".join(map(str, values[:10])) + (" ..." if len(values) > 10 else "")
        raise BadInput(f"The labels are {shown}. At least two are needed, and `positive` (--positive) must be one of "
                       f"them; with more than two it must be given.")
    once = texts.is_first_distinct()
    target = (labels.filter(once) == positive).to_numpy().astype(np.float64)
    places, bags = training.features.bags(texts.filter(once))
    target = target[places]
    if min(target.sum(), len(target) - target.sum()) < LEAST:
        raise BadInput(f"There are {int(target.sum())} different texts of '{positive}' and "
                       f"{int(len(target) - target.sum())} of the rest; give at least {LEAST} of each.")
    held = draw(target, training.held_out, training.seed)
    weights, bias = _fit(_of(bags, ~held), target[~held], training)
    scores = bias + bags.times(weights)
    share = np.full(int(held.sum()), target[~held].mean())
    facts = {"label": training.label, "penalty": training.penalty, "seed": training.seed,
             "trained_on": int((~held).sum()), "positives": int(target[~held].sum()), "held_out": int(held.sum()),
             "repeated": int((~once).sum()), "without_words": int(once.sum()) - len(places),
             "auc": auc(scores[held], target[held]), "auc_trained": auc(scores[~held], target[~held]),
             "log_loss": log_loss(1 / (1 + np.exp(-scores[held])), target[held]),
             "log_loss_of_share": log_loss(share, target[held])}
    return Classifier(training.features, weights, bias, positive, facts)


def draw(target: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Which texts are held out, bool: the share of either class, at least one and not all."""
    held = np.zeros(len(target), bool)
    for label in (0.0, 1.0):
        places = generator(seed, f"classifier held out {label:g}").permutation(np.flatnonzero(target == label))
        held[places[:min(max(round(share * len(places)), 1), len(places) - 1)]] = True
    return held


def _fit(bags: Bags, target: np.ndarray, training: Training) -> tuple[np.ndarray, float]:
    """Weights float32 (2^bits,) and bias. Only buckets that occur are solved for; the others' weight is 0."""
    seen, features = np.unique(bags.features, return_inverse=True)
    model = fit_logistic(Bags(features.astype(np.int32), bags.starts, bags.counts), target, len(seen),
                         training.penalty)
    weights = np.zeros(1 << training.features.bits, np.float32)
    weights[seen] = model.weights
    return weights, model.bias


def _of(bags: Bags, chosen: np.ndarray) -> Bags:
    """The bags of the chosen items."""
    counts = bags.counts[chosen]
    return Bags(bags.features[np.repeat(chosen, bags.counts)], np.cumsum(counts) - counts, counts)


def auc(scores: np.ndarray, target: np.ndarray) -> float:
    """Probability that a positive scores above a negative, ties counted half (Mann-Whitney)."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[place]
    positives, negatives = target.sum(), (1 - target).sum()
    return float((rank[target == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def log_loss(probability: np.ndarray, target: np.ndarray) -> float:
    """Mean negative log-likelihood, nats."""
    clipped = np.clip(probability, 1e-12, 1 - 1e-12)
    return float(-np.mean(np.where(target == 1, np.log(clipped), np.log(1 - clipped))))
