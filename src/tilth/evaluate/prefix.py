"""What requests have in common is computed once: the few-shot examples of a task, the question of several answers.

Requests form a tree. A *trunk* is a run of tokens that many contexts begin with (the solved examples); a *question* is
one context, the trunk and a stem of its own; its *leaves* are the continuations scored after it. The key-value cache
of the trunk is filled once, copied for each question of a batch, and copied again for each leaf, so that a task with n
examples of q tokens and m answers of c tokens costs (q + c m) positions a question instead of m (n q + q + c).
Questions of one batch have stems of equal length and equally many leaves, as a cache holds rows of equal length.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

SHORTEST_TRUNK = 16


@dataclass(frozen=True)
class Question:
    """A context (int array) and the requests (row numbers) that share it."""

    context: np.ndarray
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Bunch:
    """Questions that go through the model together after the trunk, their first `trunk` tokens (0: none)."""

    trunk: int
    questions: tuple[Question, ...]


def plan(contexts: Sequence[np.ndarray], lengths: Sequence[int], positions: int) -> tuple[list[list[Bunch]], list[int]]:
    """Bunches by trunk, and the rows that share nothing and are better off in plain batches.

    lengths: inputs of each request after its context; positions: how many a bunch's caches may hold in all rows.
    """
    rows: dict[bytes, list[int]] = defaultdict(list)
    for row, context in enumerate(contexts):
        rows[context.tobytes()].append(row)
    questions = [Question(contexts[found[0]], tuple(found)) for found in rows.values()]
    found = list(trunks(questions))
    groups = [list(_bunches(trunk, members, lengths, positions)) for trunk, members in found if trunk]
    # Questions that begin differently still go side by side; only a question asked once gains nothing from a cache.
    own = [question for trunk, members in found if not trunk for question in members]
    several = [question for question in own if len(question.rows) > 1]
    if several:
        groups.append(list(_bunches(0, several, lengths, positions)))
    return groups, sorted(row for question in own if len(question.rows) == 1 for row in question.rows)


def trunks(questions: Sequence[Question]) -> Iterator[tuple[int, list[Question]]]:
    """Neighbours in the order of their tokens that begin alike: (tokens of the trunk, its questions).

    A trunk is left when the next context shares less than half of it, or fewer than `SHORTEST_TRUNK` tokens; every
    context keeps at least one token of its own, so that the model has something to read.
    """
    ordered = sorted(questions, key=lambda question: question.context.tolist())
    group: list[Question] = []
    trunk = 0
    for question in ordered:
        shared = common(group[-1].context, question.context, trunk or None) if group else 0
        shared = min(shared, len(question.context) - 1)
        if group and shared >= max(SHORTEST_TRUNK, trunk // 2):
            group.append(question)
            trunk = shared
            continue
        if group:
            yield (trunk if len(group) > 1 else 0), group
        group, trunk = [question], 0
    if group:
        yield (trunk if len(group) > 1 else 0), group


def common(a: np.ndarray, b: np.ndarray, most: int | None = None) -> int:
    """How many leading tokens two arrays share, `most` at most; always fewer than the first has."""
    size = min(len(a) - 1, len(b), most if most is not None else len(b))
    differ = np.flatnonzero(a[:size] != b[:size])
    return int(differ[0]) if len(differ) else size


def _bunches(trunk: int, questions: Sequence[Question], lengths: Sequence[int], positions: int) -> Iterator[Bunch]:
    """Questions with equal stems and equally many leaves, longest first, cut to what the caches may hold."""
    alike: dict[tuple[int, int], list[Question]] = defaultdict(list)
    for question in questions:
        alike[len(question.context), len(question.rows)].append(question)
    for (context, leaves), members in sorted(alike.items(), reverse=True):
        members = sorted(members, key=lambda question: -max(lengths[row] for row in question.rows))
        while members:
            longest = max(lengths[row] for row in members[0].rows)
            count = max(1, positions // (leaves * (context + longest)))
            yield Bunch(trunk, tuple(members[:count]))
            members = members[count:]
