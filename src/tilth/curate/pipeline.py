"""Attributes and document rules applied to a batch, in the order of the recipe.

A rule sees the text as the rules before it left it. An attribute is measured when a rule first needs it; after a
rewriting rule it is measured again if a later rule needs it, and the later measurement is stored as
`attribute@rule`, the rule being the last rewriting one. Attributes that no rule needs are measured on the final text.
Everything is measured for dropped documents too, so that stored attributes serve other thresholds.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from tilth.curate.attributes import ATTRIBUTES, Attribute, check_columns, find, record_column
from tilth.curate.report import EXAMPLES, Amount, Tally
from tilth.curate.rules import DocumentRule
from tilth.data.records import COLUMNS
from tilth.recipe import BadInput

RESERVED = {*COLUMNS, "dropped_by"}


@dataclass
class Measurement:
    """One measuring step: an attribute (None for keys of metadata), its columns, and the names they are stored by."""

    attribute: Attribute | None
    columns: tuple[str, ...]
    stored: dict[str, str]


@dataclass
class State:
    """A batch on its way: `frame` has the record's columns and the attributes that are true of its present text."""

    frame: pl.DataFrame
    stored: dict[str, pl.Series] = field(default_factory=dict)


class Pipeline:
    """The steps for one recipe; `tallies` counts what each rule did over all batches it was given."""

    def __init__(self, rules: Sequence[DocumentRule], attributes: Sequence[Attribute]):
        self.rules, self.attributes = rules, attributes
        self.tallies = [Tally(rule.title()) for rule in rules]
        self.present: Counter[str] = Counter()  # records that have what rules read of records, by column
        self.plan: list[list[Measurement]] = []
        self._names: dict[str, list[str]] = {}
        self._meant = {column: attribute for attribute in attributes for column in attribute.columns()}
        _check_names(attributes)
        self._lay_out()

    def _lay_out(self) -> None:
        """Plan what is measured before each rule, and after the last one."""
        current: set[str] = set()
        rewriter = ""
        for rule in self.rules:
            brought = rule.measures()
            self.plan.append([])
            for column in rule.needs():
                self._check_same(column, brought)
                if column not in current and column not in COLUMNS:
                    self.plan[-1].append(self._measure(column, current, rewriter, brought))
            if rule.rewrites_text:
                current, rewriter = set(), rule.title()
        wanted = [column for attribute in self.attributes for column in attribute.columns()]
        self.plan.append([])
        for column in wanted:
            if column not in current:
                self.plan[-1].append(self._measure(column, current, rewriter))

    def _measure(self, column: str, current: set[str], rewriter: str,
                 brought: Sequence[Attribute] = ()) -> Measurement:
        attribute = find(column, [*brought, *self.attributes])
        columns = (column,) if attribute is None else attribute.columns()
        stored = {}
        for name in columns:
            taken = self._names.setdefault(name, [])
            taken.append(f"{name}@{rewriter}" if taken else name)
            stored[name] = taken[-1]
        current.update(columns)
        return Measurement(attribute, columns, stored)

    def _check_same(self, column: str, brought: Sequence[Attribute]) -> None:
        """Two rules, or a rule and the recipe, must not mean different things by one column."""
        for attribute in brought:
            if column in attribute.columns() and self._meant.setdefault(column, attribute) != attribute:
                raise BadInput(f"The column '{column}' is to be measured in two ways: {self._meant[column]!r} and "
                               f"{attribute!r}. Give one of the rules another `prefix`.")

    def apply(self, records: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The records with rewritten text, and their attributes (`id`, one column each, `dropped_by`), all rows."""
        state = State(records)
        dropped_by = pl.Series("dropped_by", [None] * records.height, pl.String)
        for rule, tally, measurements in zip(self.rules, self.tallies, self.plan, strict=False):
            self._take(state, measurements)
            alive = dropped_by.is_null().to_numpy()
            tally.seen.add(Amount.of(_sizes(state.frame), alive))
            self._count(state, rule, tally, alive)
            self._rewrite(state, rule, tally, alive)
            dropped = self._drop(state, rule, tally, alive)
            name = pl.when(pl.Series(dropped)).then(pl.lit(tally.name)).otherwise(dropped_by)
            dropped_by = pl.select(name.alias("dropped_by")).to_series()
        self._take(state, self.plan[-1])
        attributes = pl.DataFrame([records["id"], *state.stored.values(), dropped_by])
        return state.frame.select(COLUMNS), attributes

    def _take(self, state: State, measurements: list[Measurement]) -> None:
        for step in measurements:
            if not all(name in state.frame.columns for name in step.columns):
                measured = (state.frame.select(record_column(name) for name in step.columns) if step.attribute is None
                            else step.attribute.measure(state.frame.select(COLUMNS)))
                if step.attribute is not None:
                    check_columns(step.attribute, measured, state.frame.height)
                if step.attribute is None or step.attribute.of_records:
                    self.present.update({name: measured[name].count() for name in step.columns})
                state.frame = state.frame.with_columns(measured)
            for name, stored in step.stored.items():
                state.stored[stored] = state.frame[name].alias(stored)

    def _count(self, state: State, rule: DocumentRule, tally: Tally, alive: np.ndarray) -> None:
        for name, expression in rule.counts().items():
            tally.found[name] += int(state.frame.filter(alive).select(expression.cast(pl.Int64).sum()).item() or 0)

    def _rewrite(self, state: State, rule: DocumentRule, tally: Tally, alive: np.ndarray) -> None:
        expression = rule.rewrites()
        if expression is None:
            return
        before = state.frame
        text = before.select(pl.coalesce(expression, pl.col("text")).alias("text")).to_series()
        changed = (text != before["text"]).to_numpy()
        if not changed.any():
            return  # what was measured is still true
        tally.rewritten.add(Amount.of(_sizes(before), changed & alive))
        state.frame = before.select(COLUMNS).with_columns(text)
        if not tally.full():
            _add_rewritten(tally, before, text, changed & alive)

    def _drop(self, state: State, rule: DocumentRule, tally: Tally, alive: np.ndarray) -> np.ndarray:
        expression = rule.drops()
        if expression is None:
            return np.zeros(state.frame.height, bool)
        fires = state.frame.select(expression.fill_null(False).alias("fires")).to_series().to_numpy()
        dropped = fires & alive
        tally.dropped.add(Amount.of(_sizes(state.frame), dropped))
        if not tally.full() and dropped.any():
            first = np.flatnonzero(dropped)[:EXAMPLES]
            shown = state.frame[first]
            add_examples(tally, shown, np.ones(len(first), bool), shown.select(rule.why().alias("why")).to_series())
        return dropped


def _check_names(attributes: Sequence[Attribute]) -> None:
    seen: set[str] = set()
    for attribute in attributes:
        for column in attribute.columns():
            if column in seen or column in RESERVED:
                raise BadInput(f"`attributes`: the column '{column}' of '{attribute.kind}' is "
                               f"{'computed twice' if column in seen else 'a column of the record'}. Take one out. "
                               f"Built in are {', '.join(ATTRIBUTES)}.")
            seen.add(column)


def _sizes(frame: pl.DataFrame) -> np.ndarray:
    return frame["text"].str.len_bytes().to_numpy()


def add_examples(tally: Tally, records: pl.DataFrame, chosen: np.ndarray, whys: pl.Series) -> None:
    """Show the first chosen records, while the tally has room."""
    for at in np.flatnonzero(chosen)[:EXAMPLES].tolist():
        # A literal of one value stands for all rows.
        tally.example(records["id"][at], records["text"][at], whys[at if len(whys) > 1 else 0])


def _add_rewritten(tally: Tally, before: pl.DataFrame, text: pl.Series, changed: np.ndarray) -> None:
    """Examples of a rewrite: the text around its first change, as it was."""
    for at in np.flatnonzero(changed)[:EXAMPLES].tolist():
        old, new = before["text"][at], text[at]
        place = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
        tally.example(before["id"][at], old[max(0, place - 100):place + 800], f"rewritten from character {place} on")
