"""Evaluate a model: held-out bits per byte beside its rivals, then tasks; the result is what results.json holds."""

import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from pydantic import Field
from torch import nn

from tilth.evaluate.bits import HeldOut, held_out_bits
from tilth.evaluate.continuation import HeldOutCloze
from tilth.evaluate.likelihood import Likelihood
from tilth.evaluate.rivals import TRAIN_BYTES, rivals
from tilth.evaluate.score import Scorer, TextTokenizer
from tilth.evaluate.tasks import Task, TaskChoice
from tilth.evaluate.workers import Workers
from tilth.recipe import BadInput, Config, say

Results = dict[str, dict[str, dict[str, Any]]]


class EvaluateConfig(Config):
    """What to measure, and how the model is asked."""

    tasks: list[TaskChoice] = Field(default_factory=lambda: [HeldOutCloze()])
    length: int | None = Field(default=None, ge=1, description="positions the model sees at once; None: all it takes")
    stride: int | None = Field(default=None, ge=1, description="new tokens a held-out window; None: the length")
    batch_tokens: int = Field(default=8192, ge=1)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    share: bool = Field(default=True, description="compute once what questions have in common")
    rivals: bool = Field(default=True, description="xz, zstd, unigram and byte 5-gram on the same held-out text")
    train_bytes: int = Field(default=TRAIN_BYTES, ge=1, description="training text the byte models learn from, at most")


@dataclass
class Evaluation:
    """`results` {task: {metric: {value, stderr, n, …}}} as in results.json; `items` {task: {measure: (n,)}}, the same
    by document or question, for `paired_difference`; `seconds` {task: seconds}; `positions` that went through the model
    in this process."""

    results: Results = field(default_factory=dict)
    items: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    positions: int = 0


def evaluate_model(model: nn.Module, tokenizer: TextTokenizer, *, length: int, config: EvaluateConfig | None = None,
                   held_out: HeldOut | None = None, held_out_texts: Sequence[str] | None = None,
                   train_texts: Iterable[str] | None = None, quiet: bool = False, workers: int = 1) -> Results:
    """The results of `measure` (same arguments) alone, as results.json holds them."""
    return measure(model, tokenizer, length=length, config=config, held_out=held_out, held_out_texts=held_out_texts,
                   train_texts=train_texts, quiet=quiet, workers=workers).results


def measure(model: nn.Module, tokenizer: TextTokenizer, *, length: int, config: EvaluateConfig | None = None,
            held_out: HeldOut | None = None, held_out_texts: Sequence[str] | None = None,
            train_texts: Iterable[str] | None = None, quiet: bool = False, workers: int = 1) -> Evaluation:
    """Measure everything that `config` asks for.

    `length` is the longest input the model takes (positions), `held_out` the tokenized held-out pool,
    `held_out_texts` the same documents as text (rivals and built-in tasks need them), `train_texts` what the byte
    models learn from. `held_out` in the results has bits_per_byte and one entry a rival; `held_out/SOURCE` the bits
    per byte of each source where there are several. `workers`: processes that ask the model; the numbers are the
    same. Raises BadInput where a part lacks its data.
    """
    config = config or EvaluateConfig()
    if config.length and config.length > length:
        raise BadInput(f"`length` is {config.length}; the model takes {length} positions at most.")
    tasks = [task.ready(held_out_texts) for task in config.tasks]
    names = [task.name for task in tasks]
    twice = sorted({name for name in names if names.count(name) > 1 or name.split("/")[0] == "held_out"})
    if twice:
        raise BadInput(f"Two tasks cannot have one name, nor the name of the held-out text: {', '.join(twice)}.")
    settings: dict[str, Any] = {"length": config.length or length, "batch_tokens": config.batch_tokens,
                                "dtype": config.dtype, "share": config.share}
    found = Evaluation()
    with Workers(workers, model, settings) if workers > 1 else nullcontext() as several:
        likelihood = Likelihood(model, **settings, workers=several)
        if held_out is not None:
            _held_out(found, likelihood, held_out, tokenizer.end_of_text, config, quiet)
        if config.rivals and held_out_texts is not None:
            _rivals(found, held_out_texts, train_texts, config.train_bytes)
        scorer = Scorer(likelihood, tokenizer, quiet=quiet)
        for task in tasks:
            _task(found, task, scorer)
        found.positions = likelihood.positions
    if not quiet:
        for line in summary(found.results):
            say(line)
    return found


def _held_out(found: Evaluation, likelihood: Likelihood, pool: HeldOut, end_of_text: int, config: EvaluateConfig,
              quiet: bool) -> None:
    start = time.monotonic()
    scored = held_out_bits(likelihood, pool, end_of_text, stride=config.stride, quiet=quiet)
    found.results["held_out"] = {"bits_per_byte": scored.bits_per_byte()}
    sources = scored.by_source()
    if len(sources) > 1:
        found.results |= {f"held_out/{source}": {"bits_per_byte": value} for source, value in sources.items()}
    found.items["held_out"] = {"bits": scored.bits, "bytes": scored.bytes}
    found.seconds["held_out"] = time.monotonic() - start


def _rivals(found: Evaluation, held_out_texts: Sequence[str], train_texts: Iterable[str] | None,
            train_bytes: int) -> None:
    """Raises BadInput where pool and text differ: rivals of another text would be no rivals."""
    start = time.monotonic()
    texts = [text.encode() for text in held_out_texts]
    scores = found.results.setdefault("held_out", {})
    if "bits_per_byte" in scores and scores["bits_per_byte"]["bytes"] != sum(map(len, texts)):
        raise BadInput(f"The held-out pool is of {scores['bits_per_byte']['bytes']} bytes of text, the held-out text "
                       f"has {sum(map(len, texts))}: they are not the same; tokenize the text again.")
    known = None if train_texts is None else (text.encode() for text in train_texts)
    scores |= rivals(known, texts, train_bytes)
    found.seconds["rivals"] = time.monotonic() - start


def _task(found: Evaluation, task: Task, scorer: Scorer) -> None:
    start = time.monotonic()
    result = task.run(scorer)
    if task.metric not in result.metrics:
        raise BadInput(f"The task '{task.name}' is to be quoted by `{task.metric}`, which it does not measure. "
                       f"Choose one of {', '.join(result.metrics)}.")
    # The quoted metric comes first, and every number says which version of the task it is of.
    order = [task.metric, *(name for name in result.metrics if name != task.metric)]
    found.results[task.name] = {name: result.metrics[name] | {"version": task.version} for name in order}
    found.items[task.name] = result.items
    found.seconds[task.name] = time.monotonic() - start


def summary(results: Results) -> list[str]:
    """One line a task for people: its first metric; for held-out text all, best first."""
    lines = []
    for task, metrics in results.items():
        shown = sorted(metrics.items(), key=lambda metric: metric[1]["value"]) if task == "held_out" else list(
            metrics.items())[:1]
        lines += [f"  {task}  {name}  {entry['value']:.4f}" + (
            f" ± {entry['stderr']:.4f}" if entry.get("stderr") is not None else "") + f"  (n = {entry['n']})"
            for name, entry in shown]
    return lines
