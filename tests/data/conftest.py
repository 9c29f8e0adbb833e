"""Small pools for the tests of this room."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tilth.data.pool import Field, Pool, PoolWriter, token_field

END = 0


def make_pool(folder: Path, records: list[int], unit_tokens: int = 10, sources: int = 2) -> Pool:
    """A pool of records of so many tokens (with the end-of-text token), every token of the pool a different one."""
    vocab_size = sum(records) + 1
    rest = iter(range(1, vocab_size))
    with PoolWriter(folder, {"tokens": token_field(vocab_size), "bytes": Field("int64")}, vocab_size=vocab_size,
                    end_of_text=END) as writer:
        for number, length in enumerate(records):
            ids = np.array([next(rest) for _ in range(length)], np.int64)
            parts = [ids[at:at + unit_tokens] for at in range(0, length, unit_tokens)]
            count = len(parts)
            start = np.arange(count) * unit_tokens
            writer.append({"tokens": parts, "bytes": np.array([len(part) for part in parts])}, {
                "unit_id": [f"r{number}#{k}" for k in range(count)], "record_id": [f"r{number}"] * count,
                "source": [f"s{number % sources}"] * count, "license": ["CC0"] * count,
                "start": start.tolist(), "end": [int(a) + len(part) for a, part in zip(start, parts, strict=True)]})
    return Pool.open(folder)


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    lengths = np.random.default_rng(0).integers(1, 45, 60).tolist()
    return make_pool(tmp_path_factory.mktemp("pool"), lengths)


@pytest.fixture
def new_pool(tmp_path: Path) -> Callable[..., Pool]:
    return lambda records, **more: make_pool(tmp_path / "pool", records, **more)


class InOrder:
    """A policy: all units in order, `size` a stretch, each of weight two; remembers what it is told."""

    def __init__(self, units, size=7, needs_losses=False):
        self.units, self.size, self.needs_losses = units, size, needs_losses
        self.at, self.told = 0, []

    def draw(self, stretch):
        drawn = np.arange(self.at, min(self.at + self.size, self.units))
        self.at = (int(drawn[-1]) + 1) % self.units
        return drawn

    def weights(self, batch, losses):
        return torch.full_like(batch["weight"], 2.0)

    def bind(self, probe):
        self.probe = probe

    def observe(self, unit_id, loss):
        self.told.append((unit_id.tolist(), loss.tolist()))

    def state_dict(self):
        return {"at": self.at, "told": len(self.told)}

    def load_state_dict(self, state):
        self.at = state["at"]


@pytest.fixture(scope="session")
def in_order() -> type[InOrder]:
    return InOrder
