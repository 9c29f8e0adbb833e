"""Tasks on what a model represents rather than writes: a linear probe for classes, and retrieval by similarity.

A text's feature is the mean of its hidden states after the last block. `N` texts, `D` width, `C` classes.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from pydantic import Field

from tilth.evaluate.likelihood import Likelihood
from tilth.evaluate.score import Scorer, TaskResult
from tilth.evaluate.statistics import mean
from tilth.evaluate.tasks import Task
from tilth.recipe import BadInput

PENALTIES = np.geomspace(1e-3, 1e3, 7)
FOLDS = 5


def features(scorer: Scorer, texts: Sequence[str]) -> np.ndarray:
    """(N, D) float64: mean hidden states, in batches by length; a text keeps its first tokens if it is too long."""
    model: Any = scorer.likelihood.model
    if not hasattr(model, "hidden"):
        raise BadInput("This model offers no hidden states, so nothing can be probed or retrieved with it.")
    end, length = scorer.tokenizer.end_of_text, scorer.likelihood.length
    tokens = [np.concatenate([[end], ids])[:length] for ids in scorer.tokenizer.encode_batch(list(texts))]
    order = sorted(range(len(tokens)), key=lambda row: -len(tokens[row]))
    parts = []
    while order:
        rows = max(1, scorer.likelihood.batch_tokens // len(tokens[order[0]]))
        parts.append(order[:rows])
        order = order[rows:]
    jobs = [partial(_means, tokens=[tokens[row] for row in part]) for part in parts]
    found: list[Any] = [None] * len(tokens)
    for part, means in zip(parts, scorer.likelihood.each(jobs), strict=True):
        for row, one in zip(part, means, strict=True):
            found[row] = one
    return np.stack(found)


def _means(likelihood: Likelihood, tokens: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The mean hidden state of each row of one batch, (D,) float64; the longest row comes first."""
    model: Any = likelihood.model
    batch = np.zeros((len(tokens), len(tokens[0])), np.int64)
    for row, ids in enumerate(tokens):
        batch[row, : len(ids)] = ids
    likelihood.positions += batch.size
    with likelihood.autocast():
        hidden = model.hidden(torch.from_numpy(batch).to(likelihood.device)).double().cpu().numpy()
    return [hidden[row, : len(ids)].mean(axis=0) for row, ids in enumerate(tokens)]


class Classification(Task):
    """A linear probe: ridge regression from features to classes, trained on a share of the rows, tested on the rest.

    Rows have `text` and `label`. The penalty is chosen by cross-validation inside the training part. Chance is the
    share of the commonest class among the tested rows. `spell` is put between the characters of every text: whether
    what a model reads in words it can still read letter by letter.
    """

    kind: str = "classification"
    train_share: float = Field(default=0.5, gt=0, lt=1)
    seed: int = 0
    spell: str | None = None

    def run(self, scorer: Scorer) -> TaskResult:
        rows = self.some_rows()
        texts = [self.field(row, "text", str, f"task '{self.name}', row {at}") for at, row in enumerate(rows, 1)]
        names = [str(self.field(row, "label", object, f"task '{self.name}', row {at}"))
                 for at, row in enumerate(rows, 1)]
        texts = texts if self.spell is None else [self.spell.join(text) for text in texts]
        labels = np.unique(names, return_inverse=True)[1]
        order = np.random.default_rng(self.seed).permutation(len(rows))
        train, test = np.split(order, [int(self.train_share * len(rows))])
        if len(np.unique(labels[train])) < 2 or not len(test):
            raise BadInput(f"The task '{self.name}' needs rows of two classes to learn from, and others to test on.")
        right = probe(features(scorer, texts), labels, train, test)
        chance = float(np.bincount(labels[test]).max() / len(test))
        return TaskResult({"accuracy": mean(right) | {"chance": chance}}, {"accuracy": right})


def probe(x: np.ndarray, labels: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Whether each test row is classified rightly, (test,) 0 or 1."""
    x = (x - x[train].mean(axis=0)) / (x[train].std(axis=0) + 1e-8)
    folds = np.arange(len(train)) % FOLDS

    def errors(penalty: float) -> float:
        return sum(float((_classify(x, labels, train[folds != fold], train[folds == fold], penalty)
                          != labels[train[folds == fold]]).sum()) for fold in range(FOLDS))

    best = min(PENALTIES, key=errors)
    return (_classify(x, labels, train, test, best) == labels[test]).astype(np.float64)


def _classify(x: np.ndarray, labels: np.ndarray, train: np.ndarray, test: np.ndarray, penalty: float) -> np.ndarray:
    """argmax of x_test W + b, W = (X'X + n penalty I)^-1 X' Y of centred one-hot Y."""
    y = np.eye(labels.max() + 1)[labels[train]]
    centre, middle = x[train].mean(axis=0), y.mean(axis=0)
    a = x[train] - centre
    weights = np.linalg.solve(a.T @ a + len(train) * penalty * np.eye(x.shape[1]), a.T @ (y - middle))
    return ((x[test] - centre) @ weights + middle).argmax(axis=1)


class Retrieval(Task):
    """Which passage belongs to a query, by the cosine of their features among all passages of the task.

    Rows have `query` and `passage`; equal passages are one. Measured: recall at 1 and 10, and mean reciprocal rank.
    """

    kind: str = "retrieval"
    metric: str = "reciprocal_rank"

    def run(self, scorer: Scorer) -> TaskResult:
        rows = self.some_rows()
        pairs = [(self.field(row, "query", str, f"task '{self.name}', row {at}"),
                  self.field(row, "passage", str, f"task '{self.name}', row {at}")) for at, row in enumerate(rows, 1)]
        passages = list(dict.fromkeys(passage for _, passage in pairs))
        found = features(scorer, [query for query, _ in pairs] + passages)
        found = found - found[len(pairs):].mean(axis=0)
        found /= np.linalg.norm(found, axis=1, keepdims=True) + 1e-12
        ranks = rank_of(found[: len(pairs)] @ found[len(pairs):].T,
                        np.array([passages.index(passage) for _, passage in pairs]))
        arrays = {"recall_at_1": ranks <= 1, "recall_at_10": ranks <= 10, "reciprocal_rank": 1 / ranks}
        arrays = {name: np.asarray(values, np.float64) for name, values in arrays.items()}
        return TaskResult({name: mean(values) for name, values in arrays.items()}, arrays)


def rank_of(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(queries,) rank of the right passage, from 1; ties count half against it."""
    own = scores[np.arange(len(right)), right][:, None]
    return 1 + (scores > own).sum(axis=1) + 0.5 * ((scores == own).sum(axis=1) - 1)
