"""The influence model as an encoder: a small bidirectional transformer over a unit's tokens, trained here.

As in MATES (Yu, Das and Xiong 2024, https://arxiv.org/abs/2406.06046): hidden states averaged over the unit, one linear
output, squared error on the standardised target, nine tenths to learn from, and of all states the one whose predictions
for the last tenth have the best rank correlation is kept. Every fit goes on from the last one's state, which is itself
a candidate. A unit longer than a row is read in several, each on its own, and averaged over all of them.

Shapes: B rows, L positions of a row, D width, n units.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from tilth.data.batch import build_batch, place_pieces
from tilth.data.packing import pack
from tilth.data.pool import Pool
from tilth.data.seeding import generator
from tilth.models import TransformerConfig
from tilth.recipe import BadInput
from tilth.select.scorers import InfluenceModel, Scorer
from tilth.select.statistics import spearman

HELD_OUT = 0.1
READ_AT_ONCE = 256  # units, when predicting


class Fitting(Scorer):
    """How an encoder learns. share: of the run's training FLOPs, that all fits may take together; fewer passes over the
    measured units are made where `epochs` would take more."""

    epochs: int = Field(10, ge=1)
    lr: float = Field(1e-3, gt=0, description="falls linearly to 0 over each fit")
    batch: int = Field(16, ge=1, description="units of a step")
    weight_decay: float = Field(0.01, ge=0)
    warm_start: bool = Field(True, description="go on from the last fit; else begin anew each time")
    share: float = Field(0.05, gt=0, le=1)

    def reader(self, pool: Pool, seed: int) -> "Reader":
        raise NotImplementedError(f"{type(self).__name__} must build what reads units.")

    def build(self, pool: Pool, seed: int) -> InfluenceModel:
        with torch.random.fork_rng(devices=[]):  # whatever a library draws to initialise weights
            torch.manual_seed(seed)
            return NeuralInfluence(self.reader(pool, seed), self, pool, seed)


class Encoder(Fitting):
    """A small bidirectional transformer over the unit's tokens, trained with the run, from nothing."""

    kind: str = "encoder"
    layers: int = Field(1, ge=1)
    width: int = Field(64, ge=2)
    heads: int = Field(4, ge=1)
    length: int = Field(256, ge=2, description="positions of a row")

    def reader(self, pool: Pool, seed: int) -> "Reader":
        return PoolReader(pool, self, seed)


class Reader(nn.Module):
    """Reads units. `width`: of its hidden states."""

    width: int

    def forward(self, units: np.ndarray) -> Tensor:
        """Mean hidden state of each unit, (n, width)."""
        raise NotImplementedError

    def positions(self, units: np.ndarray) -> float:
        """How many positions (padding included) it takes to read them."""
        raise NotImplementedError

    def flops_per_position(self) -> float:
        """Of a forward pass."""
        raise NotImplementedError


class PoolReader(Reader):
    """The transformer of `Encoder`, over the pool's tokens in packed rows."""

    def __init__(self, pool: Pool, config: Encoder, seed: int):
        super().__init__()
        self.pool, self.width, self.length = pool, config.width, config.length
        self.config = TransformerConfig(
            vocab_size=pool.vocab_size, layers=config.layers, width=config.width, heads=config.heads,
            context=config.length, attention="bidirectional")
        self.body = self.config.build().initialize(seed)

    def forward(self, units: np.ndarray) -> Tensor:
        offsets = np.asarray(self.pool.offsets("tokens"))
        packed = pack(offsets[units + 1] - offsets[units], self.length)
        batch = build_batch(self.pool, place_pieces(self.pool, units, packed), packed.rows, self.length)
        device = next(self.body.parameters()).device
        # The targets are the unit's own tokens; what the batch calls inputs is one behind.
        tokens, segments = batch["targets"].clamp(min=0).to(device), batch["unit_index"].to(device)
        hidden_BLD = self.body.hidden(tokens, segments=segments, positions=batch["positions"].to(device))
        item = torch.from_numpy(packed.item).to(device)
        owner = torch.where(segments >= 0, item[segments.clamp(min=0)], len(units)).flatten()
        return mean_by(hidden_BLD.flatten(0, 1), owner, len(units))

    def positions(self, units: np.ndarray) -> float:
        return float(pack(self.pool.lengths()[units], self.length).rows * self.length)

    def flops_per_position(self) -> float:
        return self.config.flops_per_token(self.length, training=False) - 2.0 * self.width * self.pool.vocab_size


class NeuralInfluence(InfluenceModel):
    """A reader with a linear output; its state is their weights."""

    def __init__(self, reader: Reader, config: Fitting, pool: Pool, seed: int):
        self.reader, self.config, self.pool, self.seed = reader, config, pool, seed
        self.share = config.share
        self.output = nn.Linear(reader.width, 1)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        self.modules = nn.ModuleDict({"reader": reader, "output": self.output})
        self.first = None if config.warm_start else copied(self.modules)

    def place(self, device: torch.device) -> None:
        self.modules.to(device)

    def check(self, units: np.ndarray, most: float) -> None:
        if not self._epochs(units, most)[0]:
            raise BadInput(f"The influence model may take {self.config.share:.3g} of the run's FLOPs (`scorer.share`), "
                           f"which does not pay for one pass over {len(units)} measured units at every measurement. "
                           f"Use a smaller encoder, fewer or larger stretches, or `scorer: {{kind: ngrams}}`.")

    def fit(self, units: np.ndarray, target: np.ndarray, stretch: int, most: float = math.inf) -> tuple[
            dict[str, Any], float]:
        rng = generator(self.seed, "influence model", stretch)
        held, learned = split(len(units), rng)
        epochs, epoch_flops = self._epochs(units, most)
        if self.first is not None:
            self.modules.load_state_dict(self.first)
        goal = torch.from_numpy(standardised_by(target, target[learned])).float()
        best, kept, found = self._rank(units[held], target[held]), copied(self.modules), 0
        start = best
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(int(rng.integers(2**31)))  # dropout, where an encoder has it
            for epoch in self._train(units, goal, learned, epochs, rng):
                rank = self._rank(units[held], target[held])
                if rank > best:
                    best, kept, found = rank, copied(self.modules), epoch
        self.modules.load_state_dict(kept)
        return {"spearman": best, "spearman_at_start": start, "epochs": epochs, "best_epoch": found}, (
            epochs * epoch_flops)

    def _train(self, units: np.ndarray, goal: Tensor, learned: np.ndarray, epochs: int,
               rng: np.random.Generator) -> Iterator[int]:
        """Train; yields the number of each epoch that is done."""
        self.modules.train()
        optimizer = torch.optim.AdamW(self.modules.parameters(), lr=self.config.lr,
                                      weight_decay=self.config.weight_decay)
        steps = max(1, epochs * -(-len(learned) // self.config.batch))
        falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
        for epoch in range(1, epochs + 1):
            self.modules.train()
            order = rng.permutation(learned)
            for first in range(0, len(order), self.config.batch):
                part = order[first:first + self.config.batch]
                guess = self._predict(units[part])
                optimizer.zero_grad(set_to_none=True)
                torch.nn.functional.mse_loss(guess, goal[part].to(guess.device)).backward()
                torch.nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
                optimizer.step()
                falling.step()
            yield epoch
        optimizer.zero_grad(set_to_none=True)

    def _predict(self, units: np.ndarray) -> Tensor:
        return self.output(self.reader(units))[:, 0]

    def _rank(self, units: np.ndarray, target: np.ndarray) -> float:
        return spearman(self.scores(units), target)

    @torch.no_grad()
    def scores(self, units: np.ndarray) -> np.ndarray:
        self.modules.eval()
        parts = [self._predict(units[first:first + READ_AT_ONCE]).double().cpu().numpy()
                 for first in range(0, len(units), READ_AT_ONCE)]
        return np.concatenate(parts) if parts else np.zeros(0)

    def _epochs(self, units: np.ndarray, most: float) -> tuple[int, float]:
        """How many passes are paid for, and the FLOPs of one with its look at the held-out part."""
        flops = self.reader.flops_per_position() * self.reader.positions(units)
        held = max(2, round(HELD_OUT * len(units))) / len(units)
        one = flops * (3 * (1 - held) + held)
        return int(min(self.config.epochs, max(most, 0) / one)), one

    def fit_flops(self, units: np.ndarray, most: float = math.inf) -> float:
        epochs, one = self._epochs(units, most)
        return epochs * one

    def score_flops(self, tokens: float) -> float:
        return self.reader.flops_per_position() * tokens

    def state_dict(self) -> dict[str, Any]:
        return {"modules": copied(self.modules)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.modules.load_state_dict(state["modules"])


def split(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Places held out, and places to learn from."""
    order = rng.permutation(count)
    held = max(2, round(HELD_OUT * count))
    return order[:held], order[held:]


def standardised_by(values: np.ndarray, sample: np.ndarray) -> np.ndarray:
    """`values` (n,) by the mean and the deviation of `sample`."""
    return (values - sample.mean()) / (sample.std() or 1.0)


def mean_by(rows: Tensor, owner: Tensor, count: int) -> Tensor:
    """Mean of the rows (P, D) of each owner below `count`, (count, D); a product, which is exact on any device."""
    belongs = (owner[None] == torch.arange(count, device=owner.device)[:, None]).to(rows.dtype)
    return belongs @ rows / belongs.sum(1, keepdim=True).clamp(min=1)


def copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
