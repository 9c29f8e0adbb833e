"""A mixture that learns while training: more of the sources that still have most to give (after DoReMi).

DoReMi (Xie et al. 2023, https://arxiv.org/abs/2305.10429, algorithm 1) moves the share a_s of each source by its excess
loss over a reference model, by exponentiated gradient, and smooths:

    lambda_s = max(loss_s - reference_s, 0)       mean over the tokens of the last stretch
    a_s <- a_s exp(step lambda_s) / sum,   a_s <- (1 - smoothing) a_s + smoothing / sources

DoReMi does this with a small proxy model and then trains with the mean of a over time; here the model being trained is
its own proxy, stretch by stretch. The mean is in the report, for use as a fixed mixture.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field

from tilth.data.pool import Pool
from tilth.recipe import BadInput
from tilth.recipe.frame import nearest
from tilth.select.mixtures import source_tokens
from tilth.select.protocols import Mixture, MixtureConfig


class Doremi(MixtureConfig):
    """Online mixing by excess loss. Give `reference`, the loss of a reference model on each source in nats a token:
    without it the raw loss counts, and the source with the highest entropy takes all, learnable or not.

    The first shares are tokens to the power 1 / temperature (1: natural). The stretch (`policy.stretch_units`) is the
    interval between two moves of the shares; a source that was not seen in it keeps its last loss.
    """

    kind: str = "doremi"
    step: float = Field(1.0, gt=0, description="step size of the exponentiated gradient")
    smoothing: float = Field(1e-3, ge=0, le=1)
    temperature: float = Field(1.0, gt=0, description="of the first shares")
    reference: dict[str, float] = Field(default_factory=dict, description="source: nats a token of a reference model")

    def build(self, pool: Pool, seed: int) -> Mixture:
        for name in self.reference:
            if name not in pool.sources:
                raise BadInput(f"The mixture has a reference loss for source '{name}', which has no data"
                               f"{nearest(name, pool.sources)} Sources: {', '.join(pool.sources)}.")
        if self.reference and set(pool.sources) != set(self.reference):
            missing = [name for name in pool.sources if name not in self.reference]
            raise BadInput(f"The mixture has no reference loss for {', '.join(missing)}; give one for every source, or "
                           f"for none.")
        return Excess(pool, self)


class Excess(Mixture):
    """Shares (sources,) that follow the excess losses observed since the stretch before."""

    def __init__(self, pool: Pool, config: Doremi):
        self.pool, self.config = pool, config
        self.source, self.tokens = np.asarray(pool.source), pool.lengths("tokens")
        size = source_tokens(pool).astype(np.float64)
        self.has = size > 0
        start = np.where(self.has, (size / size.max()) ** (1 / config.temperature), 0.0)
        self.shares = start / start.sum()
        self.reference = np.array([config.reference.get(name, 0.0) for name in pool.sources])
        self.nats, self.seen = np.zeros(len(size)), np.zeros(len(size))  # since the last stretch
        self.excess = np.zeros(len(size))
        self.sum, self.stretches, self.stretch = np.zeros(len(size)), 0, -1

    def observe(self, unit_id: np.ndarray, loss: np.ndarray) -> None:
        source, tokens = self.source[unit_id], self.tokens[unit_id]
        np.add.at(self.nats, source, loss * tokens)
        np.add.at(self.seen, source, tokens)

    def weights(self, stretch: int) -> np.ndarray:
        if stretch != self.stretch:
            self._move()
            self.stretch, self.stretches = stretch, self.stretches + 1
            self.sum += self.shares
        return self.shares

    def _move(self) -> None:
        known = self.seen > 0
        if not known.any():
            return
        self.excess[known] = np.maximum(self.nats[known] / self.seen[known] - self.reference[known], 0.0)
        self.nats[:], self.seen[:] = 0.0, 0.0
        moved = np.where(self.has, self.shares * np.exp(self.config.step * (self.excess - self.excess.max())), 0.0)
        even = self.has / self.has.sum()
        self.shares = (1 - self.config.smoothing) * moved / moved.sum() + self.config.smoothing * even

    def metrics(self) -> dict[str, float]:
        return {f"share/{name}": float(share) for name, share in zip(self.pool.sources, self.shares, strict=True)}

    def report(self) -> dict[str, Any]:
        mean = self.sum / max(self.stretches, 1)
        return {"shares": dict(zip(self.pool.sources, self.shares.tolist(), strict=True)),
                "mean_shares": dict(zip(self.pool.sources, mean.tolist(), strict=True))}

    def state_dict(self) -> dict[str, Any]:
        arrays = {name: getattr(self, name).tolist() for name in ("shares", "nats", "seen", "excess", "sum")}
        return {**arrays, "stretch": self.stretch, "stretches": self.stretches}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in ("shares", "nats", "seen", "excess", "sum"):
            setattr(self, name, np.array(state[name], np.float64))
        self.stretch, self.stretches = state["stretch"], state["stretches"]
