"""Balanced questions: every answer has its share, so that no constant answer looks like skill.

A character drawn evenly from a word's different characters occurs once in about 81 % of English words, so "always 1"
would beat most published models. Here the answer is drawn first, then a word and a character that give it.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tilth.evaluate.counting.words import LETTERS, count, distinct, perturb
from tilth.recipe import BadInput

Kind = Literal["occurrence", "substring", "length", "distinct"]
TEMPLATES: dict[str, str] = {
    "occurrence": 'How many {x}\'s in the word "{word}"?',
    "substring": 'Is the substring "{x}" part of the word "{word}"?',
    "length": 'How many characters in the word "{word}"?',
    "distinct": 'How many distinct characters in the word "{word}"?'}
OCCURRENCES = (0, 1, 2, 3)  # 3 stands for three and more


@dataclass(frozen=True)
class Question:
    """A question about `word` (and `x`), its answer as text, and the class of the answer for balance."""

    word: str
    x: str
    text: str
    answer: str
    label: str


def questions(kind: Kind, words: Sequence[str], n: int, *, seed: int = 0, perturbation: str = "none",
              shares: Mapping[int, float] | None = None) -> list[Question]:
    """`n` questions of one kind with balanced answers, from (words, n, seed) alone.

    Every answer class gets its share (`shares` by class, else equal ones) of n, to within one; classes are occurrences
    0, 1, 2, 3+, substring yes and no, and each length or number of different characters that the words have. A
    perturbation comes after the draw, and may move an answer to another class. BadInput where a class has no word.
    """
    rng = np.random.default_rng(seed)
    classes = _classes(kind, words)
    wanted = dict(shares) if shares is not None else dict.fromkeys(sorted(classes), 1.0)
    missing = [label for label in wanted if not classes.get(label)]
    if missing or not wanted:
        raise BadInput(f"No word gives the answer {missing[:3] or 'asked for'} in the counting task '{kind}'; take "
                       f"more words or other shares.")
    labels = list(wanted)
    ends = np.round(np.cumsum([wanted[label] for label in labels]) / sum(wanted.values()) * n).astype(int)
    drawn = np.repeat(labels, np.diff(np.r_[0, ends]))
    return [_question(kind, classes[label], label, perturbation, rng) for label in rng.permutation(drawn).tolist()]


def _classes(kind: Kind, words: Sequence[str]) -> dict[int, list[str]]:
    """Words by the answers that they can give."""
    found: dict[int, list[str]] = defaultdict(list)
    for word in words:
        if kind == "occurrence":
            for label in {0, *(min(count(word, x), 3) for x in set(word))}:
                found[label].append(word)
        elif kind == "substring":
            for label in (0, 1):
                found[label].append(word)
        else:
            found[len(word) if kind == "length" else distinct(word)].append(word)
    return found


def _question(kind: Kind, words: list[str], label: int, perturbation: str, rng: np.random.Generator) -> Question:
    word = words[int(rng.integers(len(words)))]
    x = _asked(kind, word, label, rng)
    word = perturb(word, perturbation, rng)
    answer = _answer(kind, word, x)
    return Question(word, x, TEMPLATES[kind].format(x=x, word=word), answer, str(label))


def _asked(kind: Kind, word: str, label: int, rng: np.random.Generator) -> str:
    """A character (occurrence) or substring that gives the label on the word as it is in the list."""
    if kind == "occurrence":
        able = [x for x in LETTERS if min(count(word, x), 3) == label]
        return able[int(rng.integers(len(able)))]
    if kind != "substring":
        return ""
    length = int(rng.integers(2, max(3, len(word) - 1)))
    start = int(rng.integers(0, len(word) - length + 1))
    part = word[start : start + length]
    while not label and part in word:
        # One letter is changed: near misses, so that looking for rare letters does not answer the question.
        at = int(rng.integers(length))
        part = part[:at] + LETTERS[int(rng.integers(26))] + part[at + 1:]
    return part


def _answer(kind: Kind, word: str, x: str) -> str:
    if kind == "substring":
        return "Yes" if x in word else "No"
    return str({"occurrence": count(word, x), "length": len(word), "distinct": distinct(word)}[kind])


def as_published(words: Sequence[str], n: int, seed: int = 0) -> list[Question]:
    """Occurrence questions as the paper draws them: x evenly from the different characters, answers not balanced."""
    rng = np.random.default_rng(seed)
    found = []
    for at in rng.integers(0, len(words), n):
        word = words[int(at)]
        letters = sorted(set(word))
        x = letters[int(rng.integers(len(letters)))]
        answer = str(count(word, x))
        found.append(Question(word, x, TEMPLATES["occurrence"].format(x=x, word=word), answer, answer))
    return found


def program(question: Question, kind: Kind) -> str:
    """The code arm: the question as three operations of a tiny language (load, count, answer) for `run_program`."""
    operation = {"occurrence": f"count {question.x}", "substring": f"has {question.x}", "length": "length",
                 "distinct": "distinct"}[kind]
    return f"load {question.word}\n{operation}\nanswer"


def run_program(text: str) -> str | None:
    """What a program answers; None if it is no program. Nothing but these operations can run."""
    lines = [line.split(" ", 1) for line in text.strip().split("\n")]
    if len(lines) != 3 or [line[0] for line in (lines[0], lines[2])] != ["load", "answer"] or len(lines[0]) != 2:
        return None
    word, operation, argument = lines[0][1], lines[1][0], lines[1][1] if len(lines[1]) > 1 else ""
    if operation == "count" and len(argument) == 1:
        return str(count(word, argument))
    if operation == "has" and argument:
        return "Yes" if argument in word else "No"
    return {"length": str(len(word)), "distinct": str(distinct(word))}.get(operation) if not argument else None
