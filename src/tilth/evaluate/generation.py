"""Tasks that are answered in writing: greedy text after the question, matched as text or as a number.

Beside the match stand the smooth measures of the right answer (its log-probability and bits per byte), which tell
models apart long before one of them writes an answer.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from tilth.evaluate.answers import exact_match, number_match
from tilth.evaluate.likelihood import Likelihood
from tilth.evaluate.score import Item, Option, Scorer, TaskResult, cloze_result
from tilth.evaluate.statistics import mean
from tilth.evaluate.tasks import Task, reach
from tilth.recipe import BadInput

LOOK = 8  # tokens between looks for a stop text


class Generation(Task):
    """Greedy text up to a stop; right if it matches the answer (or an alias), as text or by its last number.

    `marker`: what stands before the final answer in `answer` (such as ####), and in what the model writes.
    """

    kind: str = "generation"
    match: Literal["text", "number"] = "text"
    stop: list[str] = Field(default_factory=lambda: ["\n"])
    max_tokens: int = Field(default=32, ge=1)
    marker: str | None = None

    def item(self, row: dict[str, Any], where: str) -> Item:
        name = next((name for name in ("query", "context", "question") if self.has(row, name)), "query")
        return Item([self.option(self.field(row, name, str, where), self._answers(row, where)[0])], 0)

    def run(self, scorer: Scorer) -> TaskResult:
        rows, items = self.chosen()
        written = write(scorer, [item.options[0].context for item in items], self.max_tokens, self.stop)
        right = [self._right(text, self._answers(row, f"task '{self.name}'"))
                 for text, row in zip(written, rows, strict=True)]
        result = cloze_result([scores[0] for scores in scorer.score(items, self.name)])
        match = np.array(right, np.float64)
        return TaskResult(result.metrics | {"greedy_answer": result.metrics["accuracy"], "accuracy": mean(match)},
                          result.items | {"accuracy": match})

    def _right(self, text: str, answers: Sequence[str]) -> bool:
        if self.marker is not None:
            text = text.rpartition(self.marker)[2]
            answers = [answer.rpartition(self.marker)[2] for answer in answers]
        return number_match(text, answers) if self.match == "number" else exact_match(text, answers)

    def _answers(self, row: dict[str, Any], where: str) -> list[str]:
        """The right answer first, then its aliases."""
        given = self.field(row, "answer", object, where)
        found = [str(one) for one in (given if isinstance(given, list) else [given])]
        if reach(row, str(self.fields.get("aliases", "aliases"))):
            found += [str(one) for one in self.field(row, "aliases", list, where)]
        if not found:
            raise BadInput(f"{where}: there is no right answer.")
        return found


@dataclass(frozen=True)
class Sampling:
    """Temperature and the number of likeliest tokens to draw from; `seed` and the prompt decide the draw, not the
    batch."""

    temperature: float
    top_k: int
    seed: int = 0

    def draw(self, logits: torch.Tensor, generators: Sequence[np.random.Generator]) -> torch.Tensor:
        """(B, V) -> (B,): Gumbel noise from each row's own generator, over its likeliest tokens."""
        best, which = logits.double().cpu().topk(min(self.top_k, logits.shape[-1]), dim=-1)
        noise = np.stack([one.gumbel(size=best.shape[-1]) for one in generators])
        return which.gather(1, (best / self.temperature + torch.from_numpy(noise)).argmax(-1)[:, None])[:, 0]


def write(scorer: Scorer, prompts: Sequence[str], max_tokens: int, stop: Sequence[str],
          sampling: Sampling | None = None) -> list[str]:
    """Continuations of the prompts (greedy without `sampling`), in order, each cut before its first stop text."""
    tokenizer: Any = scorer.tokenizer
    tokens = [np.concatenate([[tokenizer.end_of_text], ids]) for ids in tokenizer.encode_batch(list(prompts))]
    return write_tokens(scorer, tokens, max_tokens, stop, sampling)


def write_tokens(scorer: Scorer, prompts: Sequence[np.ndarray], max_tokens: int, stop: Sequence[str],
                 sampling: Sampling | None = None) -> list[str]:
    """The same after prompts of token ids that begin with the end-of-text token; too long ones keep their right end."""
    room = scorer.likelihood.length - max_tokens
    if room < 1:
        raise BadInput(f"An answer of {max_tokens} tokens leaves no room in the model's {scorer.likelihood.length} "
                       f"positions; lower `max_tokens`.")
    tokens = [np.concatenate([ids[:1], ids[1:][-(room - 1):] if room > 1 else ids[:0]]).astype(np.int64)
              for ids in prompts]
    return write_after(scorer.likelihood, scorer.tokenizer, tokens, max_tokens, stop, sampling)


def write_after(likelihood: Likelihood, tokenizer: Any, prompts: Sequence[np.ndarray], max_tokens: int,
                stop: Sequence[str], sampling: Sampling | None = None) -> list[str]:
    """What is written after each prompt of token ids, in batches of prompts of one length."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for number, ids in enumerate(prompts):
        by_length[len(ids)].append(number)
    parts = []
    for length, numbers in sorted(by_length.items(), reverse=True):
        rows = max(1, likelihood.batch_tokens // (length + max_tokens))
        parts += [numbers[start : start + rows] for start in range(0, len(numbers), rows)]
    jobs = [partial(_written, tokenizer=tokenizer, prompts=np.stack([prompts[one] for one in part]),
                    max_tokens=max_tokens, stop=stop, sampling=sampling, numbers=part) for part in parts]
    written = [""] * len(prompts)
    for part, texts in zip(parts, likelihood.each(jobs), strict=True):
        for number, text in zip(part, texts, strict=True):
            written[number] = text
    return written


def _written(likelihood: Likelihood, tokenizer: Any, prompts: np.ndarray, max_tokens: int, stop: Sequence[str],
             sampling: Sampling | None, numbers: Sequence[int]) -> list[str]:
    """Token after token, for prompts (B, L) of one length, until every row has stopped; `numbers` tell rows apart."""
    model: Any = likelihood.model
    new = torch.from_numpy(prompts).to(likelihood.device)
    so_far = np.zeros((len(prompts), 0), np.int64)
    generators = [] if sampling is None else [np.random.default_rng([sampling.seed, number]) for number in numbers]
    with likelihood.autocast():
        cache = model.new_cache(prompts.shape[1] + max_tokens)
        for step in range(max_tokens):
            likelihood.positions += new.numel()
            logits = model.head(model.hidden(new, cache=cache)[:, -1])
            chosen = logits.argmax(-1) if sampling is None else sampling.draw(logits, generators)
            new = chosen[:, None].to(likelihood.device)
            so_far = np.concatenate([so_far, new.cpu().numpy()], axis=1)
            if step % LOOK == LOOK - 1 and all(_cut(tokenizer, row, stop)[1] for row in so_far):
                break
    return [_cut(tokenizer, row, stop)[0] for row in so_far]


def _cut(tokenizer: Any, tokens: np.ndarray, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the end-of-text token or the first stop text, and whether there was one."""
    ends = np.flatnonzero(tokens == tokenizer.end_of_text)
    text = tokenizer.decode(tokens[: ends[0]].tolist() if len(ends) else tokens.tolist())
    places = [place for one in stop if (place := text.find(one)) >= 0]
    return (text[: min(places)] if places else text), bool(places) or bool(len(ends))


class AnswerBits(Task):
    """Bits per byte of the right answer after its question, and whether greedy decoding would write it."""

    kind: str = "answer_bits"
    metric: str = "gold_bits_per_byte"

    def item(self, row: dict[str, Any], where: str) -> Item:
        name = next((name for name in ("query", "context", "question") if self.has(row, name)), "query")
        answer: Option = self.option(self.field(row, name, str, where), str(self.field(row, "answer", object, where)))
        return Item([answer], 0)

    def measure(self, items: Sequence[Item], scores: Sequence[Sequence[Any]]) -> TaskResult:
        return cloze_result([options[0] for options in scores])
