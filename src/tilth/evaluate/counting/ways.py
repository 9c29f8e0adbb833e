"""Ways to ask a counting question: at once, openly, with reasoning first, or as a program that is then run.

They are remedies that Xu and Ma (2024, arXiv 2410.14166) compare, in one fixed wording each, since another wording
moves a model by tens of points. Reasoning is shown in demonstrations by a worked line; a program has the three
operations of `items.run_program`, so that nothing a model writes can do more than count.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from tilth.evaluate.answers import last_number, word_match
from tilth.evaluate.counting.items import Kind, Question, program, run_program

Way = Literal["direct", "open", "reason", "code"]
ASK: dict[str, str] = {
    "direct": "\nGive the answer alone.", "open": "",
    "reason": "\nGo through the word letter by letter, then end with: The answer is",
    "code": "\nWrite three lines: load WORD, then one of count LETTER, has PART, length, distinct, then answer."}
STOPS: dict[str, list[str]] = {"direct": ["\n"], "open": ["\n"], "reason": ["\n"], "code": ["\n\n"]}
CHECK = "\n\nCheck that letter by letter, and correct it if it is wrong."
FINAL = "answer is"


def worked(question: Question, kind: Kind, way: Way) -> str:
    """The right answer as a demonstration gives it."""
    if way == "code":
        return program(question, kind)
    if way != "reason":
        return question.answer
    return f"{_trace(question, kind)}. The {FINAL} {question.answer}."


def _trace(question: Question, kind: Kind) -> str:
    """The word letter by letter, with the running count behind each letter that counts."""
    if kind == "substring":
        return f"{'-'.join(question.word)}, and in it {'-'.join(question.x)}"
    parts, count, seen = [], 0, set()
    for letter in question.word:
        counts = kind == "length" or (kind == "occurrence" and letter == question.x) or (
            kind == "distinct" and letter not in seen)
        seen.add(letter)
        count += counts
        parts.append(f"{letter} ({count})" if counts else letter)
    return ", ".join(parts)


def final(text: str) -> str:
    """What stands after the last "answer is", or all of it."""
    return text.rpartition(FINAL)[2] if FINAL in text else text


def said(text: str, kind: Kind, way: Way) -> str | None:
    """The answer that a text gives, None where it gives none."""
    if way == "code":
        return run_program(text)
    text = final(text)
    if kind == "substring":
        return next((one for one, other in (("Yes", "No"), ("No", "Yes")) if word_match(text, one, [other])), None)
    number = last_number(text)
    return None if number is None or number != int(number) else str(int(number))


def majority(texts: Sequence[str], kind: Kind, way: Way) -> str:
    """Self-consistency (Wang et al. 2022, arXiv 2203.11171): the first text with the commonest answer; without any
    answer the first text."""
    answers = [said(text, kind, way) for text in texts]
    votes = Counter(one for one in answers if one is not None)
    return texts[answers.index(votes.most_common(1)[0][0])] if votes else texts[0]
