"""Held-out text while training: bits per byte of a fixed part, whole and by source."""

import math
from typing import Any

import torch

from tilth.data.held_out import EvalRows
from tilth.data.pool import Pool
from tilth.objectives import sum_by_unit
from tilth.train.device import autocast
from tilth.train.loop import Loop, seeded


class HeldOutHook:
    """A loop hook: nats and bits per byte on about `tokens` tokens of whole held-out documents, always the same."""

    def __init__(self, pool: Pool, length: int, tokens: int):
        self.pool, self.rows = pool, EvalRows(pool, length, limit_tokens=tokens)
        self.score: float | None = None  # bits per byte, as last measured

    def __call__(self, loop: Loop) -> dict[str, Any]:
        sums = self._sums(loop)
        size = self.rows.bytes_by_source
        bits = {name: total / math.log(2) / count
                for name, total, count in zip(self.pool.sources, sums.tolist(), size.tolist(), strict=True) if count}
        nats = float(sums.sum())
        self.score = nats / math.log(2) / float(size.sum())
        return {"held_out": {"loss": nats / self.rows.tokens, "bits_per_byte": self.score, "by_source": bits}}

    @torch.no_grad()
    def _sums(self, loop: Loop) -> torch.Tensor:
        """(sources,) nats of the text of each source, float64. Each process takes its share of the batches, and all of
        them equally many, since a spread model answers to all together: where one has none left, its last counts 0."""
        learner, device, processes = loop.learner, loop.settings.device, loop.processes
        sums = torch.zeros(len(self.pool.sources), dtype=torch.float64)
        batches = list(self.rows.batches(loop.settings.micro_rows))
        learner.modules.eval()
        for first in range(0, len(batches), processes.data_world):
            place = first + processes.data_rank
            batch = {name: tensor.to(device) for name, tensor in batches[min(place, len(batches) - 1)].items()}
            batch = loop.parallel.positions_of(batch)
            with autocast(loop.settings.precision, device):
                loss = learner.loss(learner.updates[0], batch, seeded("held_out", device=device))
            if place < len(batches):
                sums += sum_by_unit(loss.total.double().cpu(), batch["source"].cpu(), len(sums))
        learner.modules.train()
        return torch.tensor(processes.total(sums.tolist()), dtype=torch.float64)
