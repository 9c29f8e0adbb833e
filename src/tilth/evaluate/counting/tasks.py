"""The counting questions as a task: written answers, scored leniently and strictly, beside what a constant scores."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from tilth.evaluate.answers import number_match, word_match
from tilth.evaluate.counting.items import Question, questions
from tilth.evaluate.counting.ways import ASK, CHECK, STOPS, Way, final, majority, said, worked
from tilth.evaluate.counting.words import PERTURBATIONS, distinct, usable
from tilth.evaluate.generation import Sampling, write, write_tokens
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

    Remedies: `way`; `few_shot.count` demonstrations, worked in that way on other words; `samples` of which the majority
    answers; `refine` rounds in which the model checks its own answer. Conjectures: `perturbation`; `characters`, the
    word as tokens of one character each; `length` or `distinct`, words with so many characters or different ones; `by`,
    the accuracy apart for each length or number of different characters.
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
    way: Way = "open"
    samples: int = Field(default=1, ge=1)
    temperature: float = Field(default=0.7, gt=0)
    top_k: int = Field(default=40, ge=1)
    refine: int = Field(default=0, ge=0)
    characters: bool = False
    length: int | None = Field(default=None, ge=3)
    distinct: int | None = Field(default=None, ge=1)
    by: Literal["length", "distinct"] | None = None

    def drawn(self) -> list[Question]:
        """The questions; BadInput where there are no usable words or no such perturbation."""
        if self.perturbation not in PERTURBATIONS:
            raise BadInput(f"'{self.perturbation}' is no perturbation; there are {', '.join(PERTURBATIONS)}.")
        return questions(self.question, self._words(), min(self.n, self.limit or self.n), seed=self.seed,
                         perturbation=self.perturbation)

    def _words(self) -> list[str]:
        given = self.words if self.words is not None else [
            str(row.get("word", "")) for row in read_rows(self.data)] if self.data else []
        found = [word for word in usable(given) if self.length in (None, len(word))
                 and self.distinct in (None, distinct(word))]
        if not found:
            raise BadInput(f"The task '{self.name}' needs words (lower-case letters only, and of the length and number "
                           f"of different characters that it asks for): set `words`, or `data` to rows with a field "
                           f"`word`.")
        return found

    def demonstrations(self, asked: Sequence[Question]) -> str:
        """`few_shot.count` worked questions about words that are not asked about."""
        shots = self.few_shot
        if shots.source or shots.within:
            raise BadInput(f"The task '{self.name}' makes its own examples; only `few_shot.count`, `seed` and "
                           f"`separator` apply.")
        if not shots.count:
            return ""
        others = sorted(set(self._words()) - {one.word for one in asked})
        if not others:
            raise BadInput(f"The task '{self.name}' asks about all of its words; give it more words for examples.")
        # Classes that these few words cannot give are left out: demonstrations need not be balanced.
        drawn = questions(self.question, others, shots.count, seed=shots.seed + 1, perturbation=self.perturbation)
        return "".join(f"{self.context(one)} {worked(one, self.question, self.way)}{shots.separator}" for one in drawn)

    def context(self, question: Question) -> str:
        return f"{self.before}{question.text}{ASK[self.way]}{self.after}"

    def run(self, scorer: Scorer) -> TaskResult:
        asked = self.drawn()
        shown = self.demonstrations(asked)
        items = [Item([self.option("", "")._replace(context=shown + self.context(one), continuation=f" {right}",
                                                    bytes=len(right.encode()))], 0)
                 for one in asked for right in [worked(one, self.question, self.way)]]
        written = self._written(scorer, asked, [item.options[0].context for item in items])
        result = cloze_result([scores[0] for scores in scorer.score(items, self.name)])
        metrics, arrays = score(asked, written, self.question, self.way)
        metrics |= self._apart(asked, arrays["accuracy"])
        return TaskResult({key: value for key, value in result.metrics.items() if key != "accuracy"} | metrics,
                          result.items | arrays)

    def _written(self, scorer: Scorer, asked: Sequence[Question], contexts: Sequence[str]) -> list[str]:
        """An answer a question: the only one, or that of the majority; then checked by the model, if it is to."""
        def once(texts: Sequence[str], sampling: Sampling | None) -> list[str]:
            if self.characters:
                tokens = [spelled(scorer.tokenizer, text, one.word) for text, one in zip(texts, asked, strict=True)]
                return write_tokens(scorer, tokens, self.max_tokens, STOPS[self.way], sampling)
            return write(scorer, texts, self.max_tokens, STOPS[self.way], sampling)

        tries = [once(contexts, None if self.samples == 1 else Sampling(self.temperature, self.top_k, number))
                 for number in range(self.samples)]
        written = [majority(texts, self.question, self.way) for texts in zip(*tries, strict=True)]
        for _ in range(self.refine):
            contexts = [f"{context} {text.strip()}{CHECK}{self.after}"
                        for context, text in zip(contexts, written, strict=True)]
            written = once(contexts, None)
        return written

    def _apart(self, asked: Sequence[Question], right: np.ndarray) -> dict[str, Any]:
        """Accuracy by length or by different characters of the words asked about."""
        if self.by is None:
            return {}
        values = np.array([len(one.word) if self.by == "length" else distinct(one.word) for one in asked])
        return {f"accuracy_{self.by}_{value}": mean(right[values == value]) for value in np.unique(values)}


def spelled(tokenizer: Any, text: str, word: str) -> np.ndarray:
    """The tokens of a text whose last `word` is cut into single characters, whatever the tokenizer would make of it."""
    before, found, behind = text.rpartition(word)
    parts = tokenizer.encode_batch([before, *found, behind])
    return np.concatenate([[tokenizer.end_of_text], *parts]).astype(np.int64)


def score(asked: Sequence[Question], written: Sequence[str], kind: Any = "occurrence",
          way: Way = "open") -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metrics and (n,) arrays of written answers; `accuracy` carries the table of confusions."""
    told = [said(text, kind, way) for text in written]
    right = np.array([gave == one.answer if way == "code" else matches(final(text), one.answer)
                      for one, text, gave in zip(asked, written, told, strict=True)], np.float64)
    strict = np.array([(gave or "").lower() == one.answer.lower() if way == "code"
                       else final(text).strip().rstrip(".").lower() == one.answer.lower()
                       for one, text, gave in zip(asked, written, told, strict=True)], np.float64)
    answers = np.array([one.answer for one in asked])
    constant = Counter(answers.tolist()).most_common(1)[0][1] / len(answers)
    balanced = float(np.mean([right[answers == answer].mean() for answer in np.unique(answers)]))
    accuracy = mean(right) | {"chance": constant, "interval": list(wilson(int(right.sum()), len(right))),
                              "confusion": confusion(asked, [one or "none" for one in told])}
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
