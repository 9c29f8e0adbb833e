"""Scores of a run: bits per byte beside rivals and per source, and tasks beside chance."""

from dataclasses import dataclass
from typing import Any

from tilth.report.formats import finite
from tilth.report.reading import Run, mapping

OWN = "bits_per_byte"
_BY_SOURCE = "held_out/"
_NOT_RIVALS = {OWN, "loss", "perplexity", "nats_per_token", "bits_per_token", "bits_per_character", "accuracy", "bytes",
               "documents", "tokens", "by_source", "per_source", "chance", "value", "stderr", "n", "units"}
_NAMES = {"xz": "xz -9", "xz_256k": "xz -9 (256 KiB)", "zstd": "zstd -19", "unigram": "byte unigram",
          "byte_unigram": "byte unigram", "byte_5gram": "byte 5-gram", "5gram": "byte 5-gram", "gzip": "gzip -9",
          "bzip2": "bzip2 -9"}


@dataclass(frozen=True)
class Score:
    """One measured value; `n` counts what was averaged (documents, questions)."""

    name: str
    value: float
    stderr: float | None = None
    n: float | None = None
    own: bool = False


@dataclass(frozen=True)
class TaskScore:
    task: str
    metric: str
    score: Score
    chance: float | None


@dataclass(frozen=True)
class Scores:
    """Everything measured: the model's bits per byte (None if not yet), its rivals, sources, tasks."""

    own: Score | None
    rivals: list[Score]
    by_source: list[Score]
    tasks: list[TaskScore]
    bytes: float | None

    @property
    def ranking(self) -> list[Score]:
        """Model and rivals, best first."""
        return sorted([*([self.own] if self.own else []), *self.rivals], key=lambda score: score.value)

    @property
    def beaten(self) -> list[Score]:
        return [rival for rival in self.rivals if self.own and self.own.value < rival.value]


def read_scores(run: Run, held_out_lines: list[dict[str, Any]]) -> Scores:
    results = mapping(run.json("evaluate", "results.json"))
    held_out = mapping(results.get("held_out"))
    last = mapping(held_out_lines[-1]["held_out"]) if held_out_lines else {}
    summary = run.summary("pretrain")
    own = (score("this model", held_out.get(OWN), own=True)
           or score("this model", summary.get("held_out_bits_per_byte"), own=True)
           or score("this model", last.get(OWN), own=True))
    rivals = [score(_NAMES.get(name, name.replace("_", " ")), value) for name, value in held_out.items()
              if name not in _NOT_RIVALS]
    tasks = [found for task, metrics in results.items() if task != "held_out" and not task.startswith(_BY_SOURCE)
             for found in _task(task, metrics)]
    return Scores(own, [rival for rival in rivals if rival], _sources(results, last), tasks, _bytes(held_out))


def score(name: str, value: Any, own: bool = False) -> Score | None:
    """A score from `{value, stderr, n}` or a bare number; None if there is no finite value."""
    entry = value if isinstance(value, dict) else {"value": value}
    number = finite(entry.get("value", entry.get(OWN)))
    if number is None:
        return None
    return Score(name, number, finite(entry.get("stderr")), finite(entry.get("n")), own)


def _sources(results: dict[str, Any], last: dict[str, Any]) -> list[Score]:
    """Per-source scores: tasks named held_out/SOURCE, else a `by_source` table, else the last of training."""
    held_out = mapping(results.get("held_out"))
    table = {name.removeprefix(_BY_SOURCE): mapping(value).get(OWN) for name, value in results.items()
             if name.startswith(_BY_SOURCE)}
    table = table or mapping(held_out.get("by_source")) or mapping(mapping(held_out.get(OWN)).get("by_source"))
    found = [score(str(name), value) for name, value in (table or mapping(last.get("by_source"))).items()]
    return sorted((one for one in found if one), key=lambda one: one.value)


def _task(task: str, metrics: Any) -> list[TaskScore]:
    entries = mapping(metrics)
    shared = finite(entries.get("chance", mapping(entries.get("chance")).get("value")))
    found = []
    for metric, value in entries.items():
        one = score(task, value) if metric != "chance" and isinstance(value, dict) else None
        if one:
            chance = finite(mapping(value).get("chance"))
            # Chance is the chance of being right: it says nothing about a metric that is not an accuracy.
            found.append(TaskScore(task, metric, one, chance if chance is not None else
                                   shared if "acc" in metric else None))
    return found


def _bytes(held_out: dict[str, Any]) -> float | None:
    """Size of the text that was scored; unknown before evaluation, as training may score only a part of it."""
    sizes = [finite(mapping(held_out.get(name)).get("bytes")) for name in [OWN, *held_out]]
    return next((size for size in sizes if size), None)
