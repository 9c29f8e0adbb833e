"""Runs side by side: scores, cost, and the recipe keys in which they differ. For the terminal and as a page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tilth
from tilth.recipe import BadInput
from tilth.report.formats import UNKNOWN, count, decimals, finite, seconds, short, size, visible
from tilth.report.reading import Run, mapping, read_run
from tilth.report.scores import Scores, read_scores
from tilth.report.sections import last
from tilth.report.tables import text_table
from tilth.report.templating import environment


@dataclass(frozen=True)
class CompareRow:
    """One line of a comparison: raw `values` and readable `texts`, one a run; `best` holds the indices that win."""

    group: str
    label: str
    values: list[Any]
    texts: list[str]
    best: frozenset[int] = frozenset()


@dataclass
class _Facts:
    """What is compared of one run."""

    run: Run
    scores: Scores
    train: list[dict[str, Any]]

    def figure(self, name: str) -> float | None:
        """A figure of the pretraining: from its summary, or (of a run that still trains) from its last metrics."""
        found = finite(self.run.summary("pretrain").get(name))
        return found if found is not None else last(self.train, name)

    def wall(self) -> float | None:
        """Seconds of all stages that are done."""
        spent = [wall for stage in self.run.stages if (wall := finite(stage.manifest.get("seconds"))) is not None]
        return sum(spent) if spent else None

    def held_out_hash(self) -> str | None:
        """Scores on held-out text compare only where this is the same."""
        found = mapping(mapping(self.run.json("curate", "report.json")).get("held_out")).get("sha256")
        return str(found) if found else None


_FIGURES: list[tuple[str, str, Callable[[Any], str]]] = [
    ("Parameters", "parameters", short), ("Active for a token", "parameters_active", short),
    ("Tokens", "tokens", short), ("Epochs", "epochs", lambda v: decimals(v, 2)),
    ("FLOPs", "flops", short), ("Training time", "seconds", seconds), ("CPU time", "cpu_seconds", seconds),
    ("Tokens a second", "tokens_per_second", count), ("Peak memory", "peak_memory_bytes", size),
    ("Final training loss", "final_loss", decimals)]


def compare_runs(folders: Sequence[Path | str]) -> list[CompareRow]:
    """The rows of a comparison, in groups `Run`, `Scores`, `Cost` and `Recipe` (differences only).

    Rows that no run can fill are left out. Raises BadInput for fewer than two runs or a folder that holds none.
    """
    if len(folders) < 2:
        raise BadInput("A comparison needs at least two run folders: tilth compare RUN RUN...")
    runs = [_read(folder) for folder in folders]
    rows = [CompareRow("Run", "Run", names := _names(runs), names),
            CompareRow("Run", "State", states := [one.run.status for one in runs], states)]
    rows += [*_score_rows(runs), *_cost_rows(runs), *_recipe_rows(runs)]
    return [row for row in rows if any(value is not None for value in row.values)]


def compare_text(rows: Sequence[CompareRow]) -> str:
    """The comparison for a terminal; the best of each score carries a star."""
    header = ["", *(visible(text) for text in rows[0].texts)]
    body = [[row.label, *(text + (" *" if index in row.best else "") for index, text in enumerate(row.texts))]
            for row in rows[1:]]
    return text_table(body, header, align="l" + "r" * (len(header) - 1), widest=44)


def compare_html(rows: Sequence[CompareRow]) -> str:
    """The comparison as a page of its own, under the same rules as a run's: escaped, no script, no load."""
    groups: dict[str, list[CompareRow]] = {}
    for row in rows[1:]:
        groups.setdefault(row.group, []).append(row)
    return environment().get_template("compare.html.j2").render(
        names=rows[0].texts, groups=groups, tilth_version=tilth.__version__)


def _read(folder: Path | str) -> _Facts:
    run = read_run(folder)
    train, held_out = run.metrics()
    return _Facts(run, read_scores(run, held_out), train)


def _names(runs: Sequence[_Facts]) -> list[str]:
    """Recipe names if they differ, else folder names, else paths as they were given."""
    for name in (lambda one: one.run.name, lambda one: one.run.folder.resolve().name, lambda one: str(one.run.folder)):
        names = [name(one) for one in runs]
        if len(set(names)) == len(names):
            break
    return names


def _score_rows(runs: Sequence[_Facts]) -> list[CompareRow]:
    own = [one.scores.own for one in runs]
    rows = [_scored("Bits per byte, held out", [score.value if score else None for score in own],
                    [score.stderr if score else None for score in own], less=True)]
    hashes = [one.held_out_hash() for one in runs]
    rows.append(CompareRow("Scores", "  held-out text, sha256", hashes, [(h or UNKNOWN)[:12] for h in hashes]))
    rivals = {rival.name for one in runs for rival in one.scores.rivals}
    for name in sorted(rivals):
        values = [next((r.value for r in one.scores.rivals if r.name == name), None) for one in runs]
        rows.append(CompareRow("Scores", f"  {name}", values, [decimals(value) for value in values]))
    for task, metric in dict.fromkeys((t.task, t.metric) for one in runs for t in one.scores.tasks):
        found = [next((t.score for t in one.scores.tasks if (t.task, t.metric) == (task, metric)), None)
                 for one in runs]
        rows.append(_scored(f"{task}, {metric.replace('_', ' ')}", [score.value if score else None for score in found],
                            [score.stderr if score else None for score in found], less="acc" not in metric))
    return rows


def _scored(label: str, values: list[float | None], errors: list[float | None], *, less: bool) -> CompareRow:
    known = [value for value in values if value is not None]
    best = (min if less else max)(known) if len(set(known)) > 1 else None
    texts = [decimals(value) + (f" ± {decimals(error)}" if error else "")
             for value, error in zip(values, errors, strict=True)]
    return CompareRow("Scores", label, list(values), texts,
                      frozenset(i for i, value in enumerate(values) if best is not None and value == best))


def _cost_rows(runs: Sequence[_Facts]) -> list[CompareRow]:
    rows = []
    for label, name, show in _FIGURES:
        values = [one.figure(name) for one in runs]
        rows.append(CompareRow("Cost", label, values, [show(value) for value in values]))
    whole = [one.wall() for one in runs]
    return [*rows, CompareRow("Cost", "Wall time, all stages", whole, [seconds(value) for value in whole])]


def _recipe_rows(runs: Sequence[_Facts]) -> list[CompareRow]:
    """Keys whose values are not the same in all runs; a run without the key shows a dash."""
    flat = [flatten(one.run.recipe) for one in runs]
    keys = dict.fromkeys(key for recipe in flat for key in recipe)
    different = [key for key in keys if len({repr(recipe.get(key)) for recipe in flat}) > 1]
    return [CompareRow("Recipe", key, values := [recipe.get(key) for recipe in flat],
                       [UNKNOWN if value is None else visible(value, 60) for value in values]) for key in different]


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": [1, 2]}} as {"a.b[0]": 1, "a.b[1]": 2}: the keys that a command line would use."""
    if isinstance(value, dict) and value:
        return {key: leaf for name, item in mapping(value).items()
                for key, leaf in flatten(item, f"{prefix}.{name}" if prefix else str(name)).items()}
    if isinstance(value, list) and value:
        return {key: leaf for index, item in enumerate(value)
                for key, leaf in flatten(item, f"{prefix}[{index}]").items()}
    return {prefix: value} if prefix else {}
