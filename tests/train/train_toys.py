"""Small streams, learners and loops for the tests of this room."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from tilth.data.pool import Pool, PoolWriter, token_field
from tilth.data.stream import PackedStream
from tilth.models import TransformerConfig
from tilth.objectives import Causal, Loss
from tilth.optim import AdamW, Constant, Cosine
from tilth.optim.optimizers import ParameterGroup
from tilth.recipe.files import read_json_lines
from tilth.select.policy import PolicyConfig
from tilth.train import Checkpoints, Learner, Loop, LoopSettings, MetricsLog, seeded

VOCABULARY, LENGTH = 17, 12


class RowStream:
    """A stream whose row r depends on (seed, r) alone: derive and define `row(r, rng) -> dict of one unit's tensors`.
    Each row is one unit; `told` keeps what the loop observed."""

    def __init__(self, seed: int = 0):
        self.seed, self.at, self.told = seed, 0, []

    def row(self, number: int, rng: torch.Generator) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def next(self, rows: int):
        numbers = range(self.at, self.at + rows)
        parts = [self.row(number, seeded("row", self.seed, number)) for number in numbers]
        self.at += rows
        batch = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
        return {"unit_id": torch.tensor(list(numbers)), "source": torch.zeros(rows, dtype=torch.int64),
                "weight": torch.ones(rows), **batch}

    def observe(self, unit_id, loss):
        self.told.append((unit_id, loss))

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


class PackedRows(RowStream):
    """Rows of one to four units of unequal length with padding, weights unequal too."""

    def next(self, rows: int):
        batch = {name: torch.full((rows, LENGTH), value) for name, value in
                 (("tokens", 0), ("targets", -100), ("unit_index", -1), ("positions", 0))}
        units = []
        for row in range(rows):
            rng = seeded("packed", self.seed, self.at + row)
            at = 0
            for place in range(int(torch.randint(1, 5, (), generator=rng))):
                size = int(torch.randint(1, 5, (), generator=rng))
                size = min(size, LENGTH - at)
                if size <= 0:
                    break
                ids = torch.randint(1, VOCABULARY, (size,), generator=rng)
                part = slice(at, at + size)
                batch["tokens"][row, part] = torch.cat([torch.zeros(1, dtype=torch.int64), ids[:-1]])
                batch["targets"][row, part] = ids
                batch["unit_index"][row, part] = len(units)
                batch["positions"][row, part] = torch.arange(size)
                weight = int(torch.randint(0, 192, (), generator=rng)) / 64  # sums of these are exact in float32
                units.append(((self.at + row) * 10 + place, weight))
                at += size
        self.at += rows
        ids, weights = zip(*units, strict=True)
        return batch | {"unit_id": torch.tensor(ids), "source": torch.zeros(len(ids), dtype=torch.int64),
                        "weight": torch.tensor(weights)}


def text_learner(dtype=torch.float32, z_loss=0.0, vocabulary=VOCABULARY) -> Learner:
    config = TransformerConfig(vocab_size=vocabulary, layers=1, width=16, heads=2, feed_forward=24, context=LENGTH)
    return Learner(config.build().initialize(0).to(dtype), Causal(z_loss=z_loss), flops_per_row=10.0)


def pool_stream(folder: Path, seed: int = 0, stretch_units: int = 13, **policy) -> PackedStream:
    """A packed stream over a pool of 40 units, drawn and shuffled in small stretches so that runs cross several."""
    if not folder.exists():
        rng = np.random.default_rng(0)
        with PoolWriter(folder, {"tokens": token_field(VOCABULARY)}, vocab_size=VOCABULARY, end_of_text=0) as writer:
            writer.append({"tokens": [rng.integers(1, VOCABULARY, rng.integers(1, LENGTH + 1)) for _ in range(40)]},
                          {"unit_id": [f"u{number}" for number in range(40)],
                           "record_id": [f"r{number}" for number in range(40)],
                           "source": [f"s{number % 2}" for number in range(40)]})
    pool = Pool.open(folder)
    return PackedStream(pool, PolicyConfig(**policy).build(pool, seed, stretch_units), LENGTH, seed)


class PlainSGD(AdamW):
    """Gradient descent, so that weights tell the gradients."""

    def build(self, groups):
        return torch.optim.SGD(self.settings(list(groups)), lr=self.lr)


def make_loop(folder: Path, learner: Learner, stream, *, steps=3, rows=8, micro_rows=8, optimizer=None, schedule=None,
              hooks=None, first_passes=None, keep=2, identity=None, **settings) -> Loop:
    optimizer = optimizer or AdamW(lr=1e-2)
    return Loop(learner, stream, {name: optimizer.build(learner.parameter_groups(name)) for name in learner.updates},
                schedule or Cosine(), LoopSettings(steps=steps, rows=rows, micro_rows=micro_rows, **settings),
                Checkpoints(folder / "checkpoints", identity or {"recipe": 1}, keep),
                MetricsLog(folder / "metrics.jsonl"), hooks, first_passes)


def plain_descent(folder: Path, learner: Learner, stream, lr=1.0, **more) -> Loop:
    """A loop of gradient descent at a constant rate without clipping."""
    return make_loop(folder, learner, stream, optimizer=PlainSGD(lr=lr, weight_decay=0.0),
                     schedule=Constant(warmup=0), clip=None, **more)


EXACT = ("step", "tokens", "flops", "loss", "lr", "gradient_norm", "padded", "held_out")


def curve(folder: Path) -> list[dict]:
    """The metrics that do not depend on the clock."""
    return [{key: value for key, value in line.items() if key in EXACT or key.endswith(("_loss", "_norm"))}
            for line in read_json_lines(folder / "metrics.jsonl")]


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    named = {**learner.modules.state_dict(), **{f"state.{key}": value for key, value in learner.state.items()}}
    return {name: tensor.detach().clone() for name, tensor in named.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Pairs(RowStream):
    """Pairs of views of one latent: `left` (6,) and `right` (4,) are fixed linear maps of 3 hidden numbers."""

    def row(self, number, rng):
        fixed = seeded("maps")
        to_left, to_right = torch.randn(6, 3, generator=fixed), torch.randn(4, 3, generator=fixed)
        hidden = torch.randn(3, generator=rng)
        return {"left": to_left @ hidden, "right": to_right @ hidden,
                "weight": torch.randint(32, 128, (), generator=rng) / 64 if self.seed else torch.ones(())}


class Towers(Learner):
    """Two linear towers under a contrastive loss over the batch: each left against every right."""

    def __init__(self, width: int = 8):
        super().__init__(nn.Linear(6, width, bias=False), Causal())
        self.modules["right"] = nn.Linear(4, width, bias=False)
        for index, parameter in enumerate(self.modules.parameters()):
            nn.init.normal_(parameter, std=0.3, generator=seeded("towers", index))

    def parameter_groups(self, update):
        return [ParameterGroup("matrices", list(self.modules.parameters()))]

    def embed(self, batch):
        kind = self.modules["model"].weight.dtype
        return self.modules["model"](batch["left"].to(kind)), self.modules["right"](batch["right"].to(kind))

    def count(self, update, batch):
        return torch.ones(len(batch["unit_id"]))

    def loss(self, update, batch, rng):
        left, right = self.embed(batch)
        return Loss(contrast(left, right), self.count(update, batch), couples="batch")


def contrast(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """(U,) cross-entropy of each left's own right among all."""
    return nn.functional.cross_entropy(left @ right.T, torch.arange(len(left)), reduction="none")
