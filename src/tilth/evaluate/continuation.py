"""A task that needs no outside data: which line comes next in the held-out text.

Each item shows the lines before a place in a held-out document and four lines that could follow: the one that does,
and three from elsewhere in the held-out text that differ from it, indented alike wherever enough such lines exist, so
that the indentation alone gives little away. Made from (texts, seed, n) alone; the right answer's place is drawn too.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from tilth.evaluate.tasks import FewShot, MultipleChoice, Task
from tilth.recipe import BadInput

CHOICES = 4
MIN_CHARACTERS = 15
MIN_LINES_BEFORE = 5


@dataclass(frozen=True)
class Place:
    """Line `line` of document `document` of the held-out text."""

    document: int
    line: int


class HeldOutCloze(Task):
    """Which line comes next in the held-out text: the built-in task, made from that text by `continuation_task`."""

    kind: str = "held_out_cloze"
    name: str = "held_out_cloze"
    seed: int = 0
    n: int = Field(default=400, ge=1)
    lines_before: int = Field(default=30, ge=1, description="lines of context at most")

    def ready(self, held_out_texts: Sequence[str] | None) -> Task:
        if held_out_texts is None:
            raise BadInput(f"The task '{self.name}' is made from held-out text, and there is none here; "
                           f"leave it out of `tasks`.")
        n = min(self.n, self.limit or self.n)
        return continuation_task(held_out_texts, self.seed, n, name=self.name, lines_before=self.lines_before)


def continuation_task(held_out_texts: Sequence[str], seed: int, n: int, *, name: str = "held_out_cloze",
                      lines_before: int = 30) -> Task:
    """A multiple-choice task of at most `n` items (fewer where the text has fewer places); no two at one place.

    Raises BadInput where the text has no place with enough context and three other lines.
    """
    lines = [text.splitlines(keepends=True) for text in held_out_texts]
    places = [Place(document, line) for document, document_lines in enumerate(lines)
              for line in range(MIN_LINES_BEFORE, len(document_lines))
              if len(document_lines[line].strip()) >= MIN_CHARACTERS]
    rng = np.random.default_rng(seed)
    alike: dict[str, list[str]] = defaultdict(list)
    for line in dict.fromkeys(lines[place.document][place.line] for place in places):
        alike[indentation(line)].append(line)
    everything = [line for group in alike.values() for line in group]
    if len(everything) < CHOICES:
        raise BadInput(f"The held-out text is too small for the task '{name}': it has {len(everything)} different "
                       f"lines of {MIN_CHARACTERS} characters with {MIN_LINES_BEFORE} lines before them.")
    rows = [_row(lines[places[at].document], places[at].line, lines_before, alike, everything, rng)
            for at in rng.permutation(len(places))[:n]]
    return MultipleChoice(name=name, version=1, rows=rows, separator="", normalisation="byte", few_shot=FewShot())


def _row(document: list[str], line: int, lines_before: int, alike: dict[str, list[str]], everything: list[str],
         rng: np.random.Generator) -> dict[str, object]:
    right = document[line]
    group = alike[indentation(right)]
    choices = others(right, group if len(group) >= CHOICES else everything, rng)
    gold = int(rng.integers(CHOICES))
    choices.insert(gold, right)
    return {"query": "".join(document[max(0, line - lines_before) : line]), "choices": choices, "gold": gold}


def others(right: str, lines: list[str], rng: np.random.Generator) -> list[str]:
    """Three different lines that are not `right`; `lines` are different and at least four."""
    drawn = rng.choice(len(lines), CHOICES, replace=False)
    return [lines[at] for at in drawn if lines[at] != right][: CHOICES - 1]


def indentation(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]
