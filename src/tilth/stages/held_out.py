"""Held-out text while training: bits per byte of a fixed part, whole and by source."""

import math
from typing import Any

import torch

from tilth.data.held_out import EvalRows
from tilth.data.pool import Pool
from tilth.objectives import sum_by_unit
from tilth.train.device import autocast
from tilth.train.learner import Learner
from tilth.train.loop import Loop, seeded


class HeldOutHook:
    """A loop hook: nats and bits per byte on about `tokens` tokens of whole held-out documents, always the same."""

    def __init__(self, pool: Pool, length: int, tokens: int):
        self.pool, self.rows = pool, EvalRows(pool, length, limit_tokens=tokens)

    def __call__(self, loop: Loop) -> dict[str, Any]:
        sums = self._sums(loop.learner, loop.settings.precision, loop.settings.device, loop.settings.micro_rows)
        size = self.rows.bytes_by_source
        bits = {name: total / math.log(2) / count
                for name, total, count in zip(self.pool.sources, sums.tolist(), size.tolist(), strict=True) if count}
        nats = float(sums.sum())
        return {"held_out": {"loss": nats / self.rows.tokens, "bits_per_byte": nats / math.log(2) / float(size.sum()),
                             "by_source": bits}}

    @torch.no_grad()
    def _sums(self, learner: Learner, precision: str, device: torch.device, rows: int) -> torch.Tensor:
        """(sources,) nats of the text of each source, float64."""
        sums = torch.zeros(len(self.pool.sources), dtype=torch.float64)
        learner.modules.eval()
        for batch in self.rows.batches(rows):
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            with autocast(precision, device):
                loss = learner.loss(learner.updates[0], batch, seeded("held_out", device=device))
            sums += sum_by_unit(loss.total.double().cpu(), batch["source"].cpu(), len(sums))
        learner.modules.train()
        return sums
