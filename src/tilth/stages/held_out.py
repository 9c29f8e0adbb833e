"""Held-out text while training: bits per byte of a fixed part, whole and by source."""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch

from tilth.data.held_out import EvalRows
from tilth.data.pool import Pool
from tilth.objectives import Batch, sum_by_unit
from tilth.train.device import autocast
from tilth.train.learner import Learner
from tilth.train.loop import Loop, LoopSettings, seeded
from tilth.train.processes import Processes


class HeldOutHook:
    """A loop hook: nats and bits per byte on about `tokens` tokens of whole held-out documents, always the same."""

    def __init__(self, pool: Pool, length: int, tokens: int):
        self.pool, self.rows = pool, EvalRows(pool, length, limit_tokens=tokens)
        self.learner: Learner | None = None
        self.name = "held_out"
        self.score: float | None = None  # bits per byte, as last measured

    def of(self, learner: Learner, name: str) -> "HeldOutHook":
        """The same text read by another learner than the loop's, told under another name."""
        other = copy.copy(self)
        other.learner, other.name = learner, name
        return other

    def __call__(self, loop: Loop) -> dict[str, Any]:
        found = self._figures(self._sums(self.learner or loop.learner, loop.settings, loop.processes,
                                         loop.parallel.positions_of))
        if self.learner is None:  # the best checkpoint is that of the model in training
            self.score = found["bits_per_byte"]
        return {self.name: found}

    def measure(self, learner: Learner, settings: LoopSettings) -> dict[str, Any]:
        """The same figures for a learner that this process holds whole."""
        return self._figures(self._sums(learner, settings, Processes(), lambda batch: batch))

    def _figures(self, sums: torch.Tensor) -> dict[str, Any]:
        size = self.rows.bytes_by_source
        bits = {name: total / math.log(2) / count
                for name, total, count in zip(self.pool.sources, sums.tolist(), size.tolist(), strict=True) if count}
        nats = float(sums.sum())
        return {"loss": nats / self.rows.tokens, "bits_per_byte": nats / math.log(2) / float(size.sum()),
                "by_source": bits}

    @torch.no_grad()
    def _sums(self, learner: Learner, settings: LoopSettings, processes: Processes,
              positions_of: Callable[[Batch], Batch]) -> torch.Tensor:
        """(sources,) nats of the text of each source, float64. Each process takes its share of the batches, and all of
        them equally many, since a spread model answers to all together: where one has none left, its last counts 0."""
        device = settings.device
        sums = torch.zeros(len(self.pool.sources), dtype=torch.float64)
        batches = list(self.rows.batches(settings.micro_rows))
        learner.modules.eval()
        for first in range(0, len(batches), processes.data_world):
            place = first + processes.data_rank
            batch = {name: tensor.to(device) for name, tensor in batches[min(place, len(batches) - 1)].items()}
            batch = positions_of(batch)
            with autocast(settings.precision, device):
                loss = learner.loss(learner.updates[0], batch, seeded("held_out", device=device))
            if place < len(batches):
                sums += sum_by_unit(loss.total.double().cpu(), batch["source"].cpu(), len(sums))
        learner.modules.train()
        return torch.tensor(processes.total(sums.tolist()), dtype=torch.float64)
