"""The counting questions as a task: written answers, scored leniently and strictly, beside what a constant scores."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from tilth.evaluate.answers import number_match, word_match
from tilth.evaluate.counting.items import Question, questions
from tilth.evaluate.counting.words import PERTURBATIONS, usable
from tilth.evaluate.generation import write
from tilth.evaluate.rows import read_rows
from tilth.evaluate.score import Item, Scorer, TaskResult, cloze_result
from tilth.evaluate.statistics import mean, wilson
from tilth.evaluate.tasks import Task
from tilth.recipe import BadInput


class WordCounting(Task):
    """One of the four counting tasks on the words of `data` (rows with `word`) or `words`, answers balanced.

    The same seed asks every model the same questions, so compare them in pairs. `accuracy` takes the last number of the
    answer (or its first word, yes or no); `strict` wants nothing but the answer. `balanced_accuracy` is the mean over
    answer classes; `constant` what always giving the commonest answer scores.
    """

    kind: str = "word_counting"
    name: str = "word_counting"
    question: Literal["occurrence", "substring", "length", "distinct"] = "occurrence"
    perturbation: str = "none"
    words: list[str] | None = None
    n: int = Field(default=500, ge=1)
    seed: int = 0
    max_tokens: int = Field(default=16, ge=1)
    after: str = "\nAnswer:"

    def drawn(self) -> list[Question]:
        """The questions; BadInput where there are no usable words or no such perturbation."""
        if self.perturbation not in PERTURBATIONS:
            raise BadInput(f"'{self.perturbation}' is no perturbation; there are {', '.join(PERTURBATIONS)}.")
        given = self.words if self.words is not None else [
            str(row.get("word", "")) for row in read_rows(self.data)] if self.data else []
        words = usable(given)
        if not words:
            raise BadInput(f"The task '{self.name}' needs words (lower-case letters only): set `words`, or `data` to "
                           f"rows with a field `word`.")
        return questions(self.question, words, min(self.n, self.limit or self.n), seed=self.seed,
                         perturbation=self.perturbation)

    def item(self, row: dict[str, Any], where: str) -> Item:
        return Item([self.option(str(row["text"]), str(row["answer"]))], 0)

    def run(self, scorer: Scorer) -> TaskResult:
        asked = self.drawn()
        items = [self.item({"text": one.text, "answer": one.answer}, self.name) for one in asked]
        written = write(scorer, [item.options[0].context for item in items], self.max_tokens, ["\n"])
        result = cloze_result([scores[0] for scores in scorer.score(items, self.name)])
        metrics, arrays = score(asked, written)
        return TaskResult({key: value for key, value in result.metrics.items() if key != "accuracy"} | metrics,
                          result.items | arrays)


def score(asked: Sequence[Question], written: Sequence[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metrics and (n,) arrays of written answers."""
    right = np.array([matches(text, one.answer) for one, text in zip(asked, written, strict=True)], np.float64)
    strict = np.array([text.strip().rstrip(".").lower() == one.answer.lower()
                       for one, text in zip(asked, written, strict=True)], np.float64)
    answers = np.array([one.answer for one in asked])
    constant = Counter(answers.tolist()).most_common(1)[0][1] / len(answers)
    balanced = float(np.mean([right[answers == answer].mean() for answer in np.unique(answers)]))
    accuracy = mean(right) | {"chance": constant, "interval": list(wilson(int(right.sum()), len(right)))}
    return ({"accuracy": accuracy, "strict": mean(strict), "balanced_accuracy": {"value": balanced, "n": len(right)},
             "constant": {"value": constant, "n": len(right)}}, {"accuracy": right, "strict": strict})


def matches(text: str, answer: str) -> bool:
    """Whether a written answer gives the right number, or the right one of yes and no."""
    if answer in ("Yes", "No"):
        return word_match(text, answer, ["No" if answer == "Yes" else "Yes"])
    return number_match(text, [answer])


def confusion(asked: Sequence[Question], said: Sequence[str]) -> dict[str, dict[str, int]]:
    """{right answer: {given answer: times}}: what a wrong answer was."""
    found: dict[str, dict[str, int]] = {}
    for one, given in zip(asked, said, strict=True):
        row = found.setdefault(one.answer, {})
        row[given] = row.get(given, 0) + 1
    return found
