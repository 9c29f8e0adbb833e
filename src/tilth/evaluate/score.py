"""From text to likelihood: continuations scored after their contexts, and what is measured about the answers.

How text is cut: context and continuation are tokenized as one string, as they would stand in training text, and the
continuation's tokens are those after the longest prefix that the tokens of the context alone share. A token that
spans the border (a space that joins the word after it, say) thus belongs to the continuation whole, whether a task
puts the space at the end of the context or at the beginning of the continuation. Every sequence starts with the
end-of-text token; a context too long for the model keeps its right end after it, and a continuation too long is scored
in windows.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from tilth.evaluate.likelihood import Likelihood, Request, windows
from tilth.evaluate.statistics import mean, ratio
from tilth.recipe import BadInput, Progress


class TextTokenizer(Protocol):
    """What is asked of a tokenizer (tilth.data.tokenizer.Tokenizer)."""

    end_of_text: int

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]: ...


class Option(NamedTuple):
    """One continuation after its context; `bytes` (None: those of the continuation) is what scores are divided by."""

    context: str
    continuation: str
    bytes: int | None = None


class OptionScore(NamedTuple):
    """Natural log-probability of a continuation, its tokens and bytes, and whether greedy decoding would write it."""

    log_probability: float
    tokens: int
    bytes: int
    greedy: bool


@dataclass(frozen=True)
class Item:
    """One question of a task: its options, and the index of the right one."""

    options: list[Option]
    gold: int


@dataclass(frozen=True)
class TaskResult:
    """`metrics` {name: {value, stderr, n}}, and for paired comparisons `items` {name: (n,)}, in the task's order."""

    metrics: dict[str, dict[str, Any]]
    items: dict[str, np.ndarray]


class Scorer:
    """Answers tasks with a model: `likelihood` asks it, `tokenizer` cuts the text. `quiet` shows no progress."""

    def __init__(self, likelihood: Likelihood, tokenizer: TextTokenizer, *, quiet: bool = False):
        self.likelihood, self.tokenizer, self.quiet = likelihood, tokenizer, quiet

    def score(self, items: Sequence[Item], what: str) -> list[list[OptionScore]]:
        """The scores of every option of every item, in order; equal options are scored once. `what` is shown."""
        options = list(dict.fromkeys(option for item in items for option in item.options))
        scores = dict(zip(options, self._options(options, what), strict=True))
        return [[scores[option] for option in item.options] for item in items]

    def _options(self, options: list[Option], what: str) -> list[OptionScore]:
        requests: list[Request] = []
        ends = []
        for sequence, first in self.sequences(options):
            requests += self._requests(sequence, first)
            ends.append(len(requests))
        total = sum(request.inputs for request in requests)
        scored = self.likelihood.score(requests, None if self.quiet else Progress(what, total, "tokens").update)
        found = []
        for option, start, end in zip(options, [0, *ends], ends, strict=False):
            nats = np.concatenate([piece.nats for piece in scored[start:end]])
            greedy = all(piece.top.all() for piece in scored[start:end])
            size = len(option.continuation.encode()) if option.bytes is None else option.bytes
            found.append(OptionScore(-float(nats.sum()), len(nats), max(size, 1), greedy))
        return found

    def sequences(self, options: Sequence[Option]) -> Iterable[tuple[np.ndarray, int]]:
        """For each option the whole token sequence (int64) and the index of the first token to score in it."""
        contexts = list(dict.fromkeys(option.context for option in options))
        alone = dict(zip(contexts, self.tokenizer.encode_batch(contexts), strict=True))
        joint = self.tokenizer.encode_batch([option.context + option.continuation for option in options])
        for option, tokens in zip(options, joint, strict=True):
            shared = common_prefix(alone[option.context], tokens)
            if shared == len(tokens):
                raise BadInput(f"The continuation {option.continuation[:80]!r} has no tokens of its own after its "
                               f"context; a task needs something to score.")
            yield np.concatenate([[self.tokenizer.end_of_text], tokens]).astype(np.int64), 1 + shared

    def _requests(self, sequence: np.ndarray, first: int) -> list[Request]:
        length, new = self.likelihood.length, len(sequence) - first
        return windows(sequence, first, length, new if new <= length else max(1, length // 2))


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """How many leading tokens two sequences share."""
    size = min(len(a), len(b))
    differ = np.flatnonzero(a[:size] != b[:size])
    return int(differ[0]) if len(differ) else size


def choice_result(items: Sequence[Item], scores: Sequence[Sequence[OptionScore]], normalisation: str) -> TaskResult:
    """Which option is likeliest, and how likely the right one is.

    `accuracy` is by the task's `normalisation`, beside it all three: by the whole log-probability, by byte and by
    token. Options that tie share the credit, so that a model that knows nothing scores chance. `brier` is the squared
    distance of the softmax over whole log-probabilities from the truth (0 best, 2 worst).
    """
    right = {name: np.array([credit(per(option), item.gold) for item, option in zip(items, scores, strict=True)])
             for name, per in NORMALISED.items()}
    arrays = {"accuracy": right[normalisation], "accuracy_sum": right["sum"], "accuracy_per_byte": right["byte"],
              "accuracy_per_token": right["token"],
              "brier": np.array([brier(NORMALISED["sum"](option), item.gold)
                                 for item, option in zip(items, scores, strict=True)])}
    result = _result(arrays, [option[item.gold] for item, option in zip(items, scores, strict=True)])
    chance = float(np.mean([1 / len(option) for option in scores]))
    for name, metric in result.metrics.items():
        if name.startswith("accuracy"):
            metric["chance"] = chance
    return result


def cloze_result(scores: Sequence[OptionScore]) -> TaskResult:
    """`accuracy`: the share of continuations that greedy decoding would write, token for token."""
    return _result({"accuracy": np.array([float(score.greedy) for score in scores])}, scores)


def _result(arrays: dict[str, np.ndarray], gold: Sequence[OptionScore]) -> TaskResult:
    """Add what is known about the right answers: mean log-probability (nats), bits per byte over all of them."""
    arrays = arrays | {"gold_log_probability": np.array([score.log_probability for score in gold])}
    metrics = {name: mean(values) for name, values in arrays.items()}
    bits = -arrays["gold_log_probability"] / np.log(2)
    sizes = np.array([score.bytes for score in gold], np.float64)
    metrics["gold_bits_per_byte"] = ratio(bits, sizes)
    return TaskResult(metrics, arrays | {"gold_bits": bits, "gold_bytes": sizes})


NORMALISED: dict[str, Callable[[Sequence[OptionScore]], np.ndarray]] = {
    "sum": lambda options: np.array([option.log_probability for option in options]),
    "byte": lambda options: np.array([option.log_probability / option.bytes for option in options]),
    "token": lambda options: np.array([option.log_probability / option.tokens for option in options]),
}


def credit(values: np.ndarray, gold: int) -> float:
    """1 if `gold` has the highest value, 0 if not, its share where several do."""
    best = values == values.max()
    return float(best[gold] / best.sum())


def brier(log_probabilities: np.ndarray, gold: int) -> float:
    shares = np.exp(log_probabilities - log_probabilities.max())
    shares /= shares.sum()
    shares[gold] -= 1
    return float(shares @ shares)
