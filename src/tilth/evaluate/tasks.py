"""Tasks as data: a task is a small YAML or JSON file, without code or templates.

    kind: multiple_choice        # or cloze, minimal_pair, generation, answer_bits, classification, retrieval
    name: arc_easy
    version: 1
    data: arc_easy.jsonl.zst     # beside this file; or `rows:` with the rows themselves
    fields: {query: question}    # our name: the name in the rows, or a list of names, put together line by line
                                 # (a.b reaches into a group, a.0 into a list); the same name by default
    before: ""                   # put before and after the query or context
    after: "\\nAnswer:"
    few_shot: {count: 5, source: arc_train.jsonl}
    normalisation: byte          # of `accuracy`: sum, byte or token

Rows have one of the forms `query, choices, gold` (index, letter or text of the right choice), `context_options,
continuation, gold`, `context, continuation`, or `sentence_good, sentence_bad`. A kind written outside this package
derives from Task and implements `item`, or `run` where likelihoods are not enough.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from tilth.evaluate.rows import beside, read_folder, read_mapping, read_rows, shipped_tasks
from tilth.evaluate.score import Item, Option, Scorer, TaskResult, choice_result, cloze_result
from tilth.recipe import BadInput, Config, one_of, parse
from tilth.recipe.frame import OneOf


class FewShot(Config):
    """Solved examples before each question: the first `count` of the source's rows in an order drawn by `seed`.

    All questions see the same examples (a question that is one of them sees the next one instead), so that what a
    model computes for them can be shared.
    """

    count: int = Field(default=0, ge=0)
    source: str | None = Field(default=None, description="rows to draw from; None: the task's own")
    within: str | None = Field(default=None, description="a field that question and examples must share (subject)")
    seed: int = 0
    separator: str = "\n\n"


class Task(Config):
    """What all kinds share; `run` turns rows into items, asks the scorer, and measures the answers."""

    kind: str = "multiple_choice"
    name: str
    version: str | int = 1
    data: str | None = Field(default=None, description="JSONL file, plain, .gz or .zst")
    rows: list[dict[str, Any]] | None = Field(default=None, description="the rows themselves, in place of `data`")
    fields: dict[str, str | list[str]] = Field(
        default_factory=dict, description="our field: the rows' field, or several, joined line by line")
    before: str = ""
    after: str = ""
    separator: str = Field(default=" ", description="between context and continuation, unless white space stands there")
    few_shot: FewShot = Field(default_factory=lambda: FewShot())
    normalisation: Literal["sum", "byte", "token"] = "byte"
    metric: str = Field(default="accuracy", description="the one number to quote")
    limit: int | None = Field(default=None, ge=1, description="only this many rows, evenly spaced")

    def ready(self, held_out_texts: Sequence[str] | None) -> "Task":
        """The task that runs: itself, unless it has to be loaded or made first."""
        return self

    def files(self) -> list[str]:
        """What the task reads, so that a stage can notice when it changes."""
        return [path for path in (self.data, self.few_shot.source if self.few_shot.count else None) if path]

    def item(self, row: dict[str, Any], where: str) -> Item:
        raise NotImplementedError(f"{type(self).__name__} must say what a row asks.")

    def run(self, scorer: Scorer) -> TaskResult:
        """All items scored; raises BadInput naming the row that cannot be used."""
        items = self.items()
        return self.measure(items, scorer.score(items, self.name))

    def measure(self, items: Sequence[Item], scores: Sequence[Sequence[Any]]) -> TaskResult:
        return choice_result(items, scores, self.normalisation)

    def items(self) -> list[Item]:
        """What the rows ask, examples before it."""
        return self.chosen()[1]

    def some_rows(self) -> list[dict[str, Any]]:
        """The rows, or `limit` of them."""
        rows = self._rows()
        if not rows:
            raise BadInput(f"The task '{self.name}' has no rows.")
        if not self.limit or self.limit >= len(rows):
            return rows
        return [rows[number * len(rows) // self.limit] for number in range(self.limit)]

    def chosen(self) -> tuple[list[dict[str, Any]], list[Item]]:
        """The rows that are asked, and what they ask. All rows are read, so that a bad one shows in any case."""
        rows = self._rows()
        if not rows:
            raise BadInput(f"The task '{self.name}' has no rows.")
        made = [self.item(row, f"task '{self.name}', row {number}") for number, row in enumerate(rows, 1)]
        solved = self._solved(rows)
        if self.limit and self.limit < len(rows):
            kept = [number * len(rows) // self.limit for number in range(self.limit)]
            rows, made = [rows[number] for number in kept], [made[number] for number in kept]
        shots = {group: self._shots(solved, group) for group in dict.fromkeys(self._group(row) for row in rows)}
        return rows, [self._after_shots(row, item, shots[self._group(row)])
                      for row, item in zip(rows, made, strict=True)]

    def _group(self, row: dict[str, Any]) -> Any:
        """What the examples of a row must share with it; None where all rows see the same examples."""
        return None if self.few_shot.within is None else str(reach(row, self.few_shot.within))

    def _rows(self) -> list[dict[str, Any]]:
        if (self.data is None) == (self.rows is None):
            raise BadInput(f"The task '{self.name}' needs either `data` (a file) or `rows`.")
        return self.rows if self.rows is not None else read_rows(str(self.data))

    def _solved(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows that examples are drawn from."""
        source = self.few_shot.source if self.few_shot.count else None
        return rows if source is None else read_rows(source)

    def _shots(self, solved: list[dict[str, Any]], group: Any) -> list[tuple[dict[str, Any], str]]:
        """One example more than is asked for (a question skips itself): its row and its text."""
        count, source = self.few_shot.count, self.few_shot.source
        if not count:
            return []
        known = [row for row in solved if self._group(row) == group]
        order = np.random.default_rng(self.few_shot.seed).permutation(len(known))[: count + 1]
        if len(known) < count + (source is None):
            raise BadInput(f"The task '{self.name}' asks for {count} examples; there are only {len(known)} rows"
                           f"{'' if group is None else f' of {group}'}.")
        drawn = [(known[at], self.item(known[at], f"{source or self.name}, row {at + 1}")) for at in order]
        return [(row, "".join(item.options[item.gold][:2])) for row, item in drawn]

    def _after_shots(self, row: dict[str, Any], item: Item, shots: list[tuple[dict[str, Any], str]]) -> Item:
        others = [text for example, text in shots if example != row][: self.few_shot.count]
        prefix = "".join(text + self.few_shot.separator for text in others)
        return Item([option._replace(context=prefix + option.context) for option in item.options], item.gold)

    def field(self, row: dict[str, Any], name: str, kind: type, where: str) -> Any:
        """The value of our field `name`; BadInput where it is missing or not of `kind` (a list: of texts)."""
        names = self.fields.get(name, name)
        found = [reach(row, one) for one in (names if isinstance(names, list) else [names])]
        value = found[0] if not isinstance(names, list) else None if None in found else "\n".join(map(str, found))
        texts = not isinstance(value, list) or (value and all(isinstance(part, str) for part in value))
        if value is None or not isinstance(value, kind) or not texts:
            wanted = "text" if kind is str else "list of texts" if kind is list else "value"
            raise BadInput(f"{where}: `{names}` should be a {wanted}, not {str(value)[:60]!r}; map the rows' names in "
                           f"`fields`.")
        return value

    def has(self, row: dict[str, Any], name: str) -> bool:
        names = self.fields.get(name, name)
        return (names[0] if isinstance(names, list) else names).split(".")[0] in row

    def option(self, context: str, continuation: str) -> Option:
        """The two with `before` and `after` around the context and, where no white space stands, the separator."""
        context = f"{self.before}{context}{self.after}"
        apart = not context or context[-1].isspace() or continuation[:1].isspace()
        return Option(context, continuation if apart else self.separator + continuation, len(continuation.encode()))


def reach(row: Any, path: str) -> Any:
    """The value at a.b.0 of nested groups and lists, or None."""
    for part in path.split("."):
        if isinstance(row, list) and part.isdigit() and int(part) < len(row):
            row = row[int(part)]
        else:
            row = row.get(part) if isinstance(row, dict) else None
    return row


class MultipleChoice(Task):
    """The likeliest of several continuations of one context, or of one continuation after several contexts.

    `options`: the same choices for every row, in place of the rows' own.
    """

    kind: str = "multiple_choice"
    options: list[str] | None = Field(default=None, min_length=2)

    def item(self, row: dict[str, Any], where: str) -> Item:
        if self.has(row, "context_options"):
            contexts = self.field(row, "context_options", list, where)
            end = self.field(row, "continuation", str, where)
            options = [self.option(context, end) for context in contexts]
            return Item(options, self._gold(row, contexts, where))
        query = self.field(row, "query", str, where)
        choices = self.options or self.field(row, "choices", list, where)
        return Item([self.option(query, choice) for choice in choices], self._gold(row, choices, where))

    def _gold(self, row: dict[str, Any], choices: list[str], where: str) -> int:
        given = self.field(row, "gold", object, where)
        if given in choices:
            return choices.index(given)
        if isinstance(given, str) and len(given) == 1 and given.isalpha():
            given = ord(given.upper()) - ord("A")
        index = int(given) if isinstance(given, int) or (isinstance(given, str) and given.isdigit()) else -1
        if not 0 <= index < len(choices):
            raise BadInput(f"{where}: the right answer is {given!r}, which is none of the {len(choices)} choices.")
        return index


class Cloze(Task):
    """Would the model write this continuation, greedily, token for token; and how likely is it."""

    kind: str = "cloze"

    def item(self, row: dict[str, Any], where: str) -> Item:
        return Item([self.option(self.field(row, "context", str, where),
                                 self.field(row, "continuation", str, where))], 0)

    def measure(self, items: Sequence[Item], scores: Sequence[Sequence[Any]]) -> TaskResult:
        return cloze_result([options[0] for options in scores])


class MinimalPair(Task):
    """Is the good sentence likelier than the bad one, whole sentences compared."""

    kind: str = "minimal_pair"
    normalisation: Literal["sum", "byte", "token"] = "sum"

    def item(self, row: dict[str, Any], where: str) -> Item:
        return Item([self.option("", self.field(row, name, str, where)) for name in
                     ("sentence_good", "sentence_bad")], 0)


class TaskFile(Task):
    """A task kept in a file of its own, or one of the shipped files by its name (arc_easy)."""

    kind: str = "file"
    name: str = ""
    path: str

    def ready(self, held_out_texts: Sequence[str] | None) -> Task:
        task = load_task(self.path)
        return (task.model_copy(update={"limit": self.limit}) if self.limit else task).ready(held_out_texts)

    def files(self) -> list[str]:
        """The task file, unless it is the package's own (whose version the results carry), and what it reads."""
        own = [] if self.path in shipped_tasks() and not Path(self.path).exists() else [self.path]
        return [*own, *load_task(self.path).files()]


TASKS: dict[str, type[Config] | str] = {
    "multiple_choice": MultipleChoice, "cloze": Cloze, "minimal_pair": MinimalPair, "file": TaskFile,
    "held_out_cloze": "tilth.evaluate.continuation:HeldOutCloze",
    "generation": "tilth.evaluate.generation:Generation", "answer_bits": "tilth.evaluate.generation:AnswerBits",
    "classification": "tilth.evaluate.features:Classification", "retrieval": "tilth.evaluate.features:Retrieval",
    "lm_eval": "tilth.evaluate.harness:HarnessTask",
    "word_counting": "tilth.evaluate.counting.tasks:WordCounting"}
TaskChoice = one_of(Task, TASKS)


def load_task(path: Path | str) -> Task:
    """The task of a YAML or JSON file, or the shipped one of that name.

    Its `data` and few-shot `source` are looked up beside the file; those of shipped tasks in the folder TILTH_DATA.
    """
    shipped = shipped_tasks().get(str(path)) if not Path(path).exists() else None
    path = shipped or path
    place = read_folder(str(path)) if shipped else None
    values = read_mapping(path)
    few_shot = values.get("few_shot")
    if isinstance(values.get("data"), str):
        values["data"] = beside(path, values["data"], place)
    if isinstance(few_shot, dict) and isinstance(few_shot.get("source"), str):
        values["few_shot"] = few_shot | {"source": beside(path, few_shot["source"], place)}
    where = Path(path).name
    return parse(OneOf(Task, TASKS).resolve(values, where), values, where)
