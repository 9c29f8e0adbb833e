"""Weighers: how much each unit of a batch counts."""

import torch

from tilth.data.batch import Batch
from tilth.data.pool import Pool
from tilth.recipe import Config
from tilth.select.protocols import Weigher, WeigherConfig


class Ones(Weigher):
    """Every unit counts the same."""

    def weights(self, batch: Batch, losses: torch.Tensor | None) -> torch.Tensor:
        return torch.ones_like(batch["weight"])


class Uniform(WeigherConfig):
    """No reweighting: plain maximum likelihood."""

    kind: str = "uniform"

    def build(self, pool: Pool, seed: int) -> Weigher:
        return Ones()


WEIGHERS: dict[str, type[Config] | str] = {"uniform": Uniform}
