"""The one place that asks a model how likely tokens are: batches by length, one forward pass a batch.

`B` rows, `L` positions, `V` vocabulary, `P` scored positions.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tilth.evaluate.prefix import Bunch, plan
from tilth.evaluate.workers import Job, Workers
from tilth.recipe import BadInput

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LOGITS_BYTES = 256 * 1024 * 1024
# A position that is only held in a cache takes far less memory than one that goes through the model.
CACHED = 4


@dataclass(frozen=True)
class Request:
    """Tokens to score after tokens that are only seen: both int arrays, neither empty."""

    context: np.ndarray
    continuation: np.ndarray

    @property
    def inputs(self) -> int:
        """Positions that the model sees: all tokens but the last."""
        return len(self.context) + len(self.continuation) - 1


@dataclass(frozen=True)
class Scored:
    """For each token of a continuation its nats, float64 (n,), and whether it was the first choice, bool (n,)."""

    nats: np.ndarray
    top: np.ndarray


class Likelihood:
    """Scores requests with `model(tokens (B, L)) -> logits (B, L, V)`, on the device where the model's weights are.

    A model that also offers `hidden(tokens) -> (B, L, D)` and `head(hidden) -> logits` is asked for logits at scored
    positions only. `dtype` is the autocast type (float32: none). Rows of a batch are filled up on the right, which a
    causal model cannot see from the left; a batch holds at most `batch_tokens` positions (or one row). `length` is the
    longest input the model takes. `share`: what contexts have in common is computed once, in a model with `new_cache`
    (tilth.evaluate.prefix); the same numbers to rounding, for a fraction of the work. `workers`: processes that hold
    the model and do the batches in its place.
    """

    def __init__(self, model: nn.Module, *, length: int, batch_tokens: int = 8192, dtype: str = "float32",
                 share: bool = True, workers: Workers | None = None):
        if dtype not in DTYPES:
            raise BadInput(f"`dtype` is '{dtype}', which is not known. Choose one of {', '.join(DTYPES)}.")
        self.model, self.length, self.batch_tokens, self.dtype = model, length, batch_tokens, DTYPES[dtype]
        pattern = getattr(getattr(model, "config", None), "attention", "causal")
        self.share = share and hasattr(model, "new_cache") and pattern == "causal"
        weight = next(iter(model.parameters()), None)
        self.device = weight.device if weight is not None else torch.device("cpu")
        self.workers = workers
        self.positions = 0  # that went through the model in this process, for what an evaluation costs
        self._calls = 0
        self._filled: tuple[Any, Any] = (None, None)

    def each(self, jobs: Iterable[Job]) -> Iterator[Any]:
        """What each picklable `job(likelihood)` returns, in order, from the workers or from this process."""
        return map(self.do, jobs) if self.workers is None else self.workers.each(jobs)

    def do(self, job: Job) -> Any:
        """One job here, without gradients and in evaluation mode."""
        with torch.inference_mode(), evaluating(self.model):
            return job(self)

    def score(self, requests: Sequence[Request], progress: Callable[[int], Any] | None = None) -> list[Scored]:
        """One Scored a request, in the order given. `progress` is called with the positions done so far."""
        self._check(requests)
        self._calls += 1  # weights may have changed since the last call, and what was cached with them
        scored: list[Scored | None] = [None] * len(requests)
        done = 0
        rows, jobs = zip(*self._jobs(requests), strict=True) if requests else ((), ())
        for which, found in zip(rows, self.each(jobs), strict=True):
            for row, one in zip(which, found, strict=True):
                scored[row] = one
            done += sum(requests[row].inputs for row in which)
            if progress is not None:
                progress(done)
        return [found for found in scored if found is not None]

    def _jobs(self, requests: Sequence[Request]) -> Iterator[tuple[list[int], Job]]:
        """Row numbers and the job that scores them, shared parts first."""
        groups: list[list[Bunch]] = []
        alone = list(range(len(requests)))
        if self.share:
            groups, alone = plan([request.context for request in requests],
                                 [len(request.continuation) - 1 for request in requests], CACHED * self.batch_tokens)
        for bunch in (bunch for bunches in groups for bunch in bunches):
            rows = [row for question in bunch.questions for row in question.rows]
            leaves = [requests[row].continuation for row in rows]
            yield rows, partial(Likelihood._bunch, bunch=bunch, leaves=leaves, call=self._calls)
        for rows in self._batches(requests, alone):
            yield rows, partial(Likelihood._batch, batch=[requests[row] for row in rows])

    def _check(self, requests: Sequence[Request]) -> None:
        for request in requests:
            if not len(request.context) or not len(request.continuation):
                raise ValueError("a request needs at least one token of context and one to score")
            if request.inputs > self.length:
                raise ValueError(f"a request of {request.inputs} positions does not fit the model's {self.length}")

    def _batches(self, requests: Sequence[Request], which: Sequence[int]) -> Iterator[list[int]]:
        """Row numbers, longest rows first: a batch too big for the memory shows at once, and little is padding."""
        order = sorted(which, key=lambda row: -requests[row].inputs)
        while order:
            rows = max(1, self.batch_tokens // requests[order[0]].inputs)
            yield order[:rows]
            order = order[rows:]

    def _batch(self, batch: list[Request]) -> list[Scored]:
        tokens = np.zeros((len(batch), max(request.inputs for request in batch)), np.int64)
        scored = np.zeros(tokens.shape, bool)
        for row, request in enumerate(batch):
            tokens[row, : request.inputs] = np.concatenate([request.context, request.continuation[:-1]])
            scored[row, len(request.context) - 1 : request.inputs] = True
        targets = torch.from_numpy(np.concatenate([request.continuation for request in batch]).astype(np.int64))
        nats, top = self._forward(torch.from_numpy(tokens), torch.from_numpy(scored), targets)
        ends = np.cumsum([len(request.continuation) for request in batch])[:-1]
        return [Scored(*pair) for pair in zip(np.split(nats, ends), np.split(top, ends), strict=True)]

    def _forward(self, tokens: Tensor, scored: Tensor, targets: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """tokens (B, L), scored (B, L) bool, targets (P,) -> nats (P,) float64 and top (P,) bool."""
        tokens, scored, targets = (part.to(self.device) for part in (tokens, scored, targets))
        self.positions += tokens.numel()
        with self.autocast():
            model: Any = self.model
            if not (hasattr(model, "hidden") and hasattr(model, "head")):
                return _nats_of(model(tokens)[scored], targets)
            return self._nats(model.hidden(tokens)[scored], targets)

    def _nats(self, hidden: Tensor, targets: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """hidden (P, D), targets (P,) -> nats and top, as many rows at once as the memory set aside holds."""
        model: Any = self.model
        step = max(1, LOGITS_BYTES // (4 * model.head(hidden[:1]).shape[-1]))
        parts = [_nats_of(model.head(hidden[start : start + step]), targets[start : start + step])
                 for start in range(0, len(hidden), step)]
        nats, top = zip(*parts, strict=True)
        return np.concatenate(nats), np.concatenate(top)

    def _trunk(self, tokens: np.ndarray, call: int) -> Any:
        """The filled cache of what all questions of a group begin with; the last one made in this call is kept."""
        key = call, tokens.tobytes()
        if self._filled[0] != key:
            model: Any = self.model
            cache = model.new_cache(len(tokens))
            self.positions += len(tokens)
            with self.autocast():
                model.hidden(torch.from_numpy(tokens[None].astype(np.int64)).to(self.device), cache=cache)
            self._filled = key, cache
        return self._filled[1]

    def _bunch(self, bunch: Bunch, leaves: Sequence[np.ndarray], call: int) -> list[Scored]:
        """Stems after the trunk, leaves after the stems: Q questions of n leaves, Q n = R rows."""
        model: Any = self.model
        stems = np.stack([question.context[bunch.trunk :] for question in bunch.questions]).astype(np.int64)
        trunk = bunch.questions[0].context[: bunch.trunk]
        cache = self._trunk(trunk, call).expand(len(stems)) if bunch.trunk else model.new_cache()
        rows, longest = len(leaves), max(len(leaf) for leaf in leaves) - 1
        self.positions += stems.size + rows * longest
        each = rows // len(stems)
        with self.autocast():
            ends = model.hidden(torch.from_numpy(stems).to(self.device), cache=cache)[:, -1]
            hidden = [ends.repeat_interleave(each, 0)[:, None]]
            if longest:
                tokens = np.zeros((rows, longest), np.int64)
                for row, leaf in enumerate(leaves):
                    tokens[row, : len(leaf) - 1] = leaf[:-1]
                hidden.append(model.hidden(torch.from_numpy(tokens).to(self.device), cache=cache.expand(each)))
            scored = np.arange(longest + 1) < np.array([len(leaf) for leaf in leaves])[:, None]
            targets = torch.from_numpy(np.concatenate(leaves).astype(np.int64)).to(self.device)
            nats, top = self._nats(torch.cat(hidden, 1)[torch.from_numpy(scored).to(self.device)], targets)
        cuts = np.cumsum([len(leaf) for leaf in leaves])[:-1]
        return [Scored(*pair) for pair in zip(np.split(nats, cuts), np.split(top, cuts), strict=True)]

    def autocast(self) -> AbstractContextManager[Any]:
        """The arithmetic of `dtype`, for a block."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, self.dtype)


def _nats_of(logits: Tensor, targets: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """logits (P, V), targets (P,) -> nats (P,) float64, top (P,) bool."""
    logits = logits.float()
    nats = functional.cross_entropy(logits, targets, reduction="none")
    return nats.double().cpu().numpy(), (logits.argmax(-1) == targets).cpu().numpy()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the block; every module is put back as it was, so that training can go on."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def windows(sequence: np.ndarray, first: int, length: int, stride: int) -> list[Request]:
    """Cut `sequence` into requests of at most `length` positions that score each token from `first` on exactly once.

    Each request scores `stride` new tokens and shows as much before them as fits; the first one scores more where its
    context leaves room, the last one reaches back as far as it can. The sequence's first token (end of text) is never
    scored, and stands at the beginning of every window, as it does in training wherever a document was cut.
    """
    if not 1 <= stride <= length:
        raise BadInput(f"The stride of held-out windows is {stride}; it must be between 1 and the length, {length}.")
    if not 1 <= first < len(sequence):
        raise ValueError(f"nothing to score from token {first} of {len(sequence)}")
    found, at = [], first
    while at < len(sequence):
        end = min(max(at + stride, length + 1), len(sequence))
        start = max(0, end - length - 1)
        found.append(Request(np.concatenate([sequence[:1], sequence[start + 1 : at]]), sequence[at:end]))
        at = end
    return found
