"""A static mixture weighted by influence: sources share the run by how much their units help the model at one moment.

The simplest use of measured influences (`tilth.select.probe`), and the baseline of choosing unit by unit. At stretch
`start` the influence of units of each source on a reference is measured once. With z_s the mean over source s of the
helpfulness -I, standardised over all measured units,

    share_s ~ tokens_s exp(z_s / temperature)

from there to the end; before, sources come as they are (share_s ~ tokens_s).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from tilth.data.pool import Pool
from tilth.data.seeding import generator
from tilth.recipe import BadInput
from tilth.select.drawing import standardised
from tilth.select.mixtures import source_tokens
from tilth.select.probe import Order
from tilth.select.protocols import Mixture, MixtureConfig, Plan
from tilth.select.reference import Reference, measuring_flops


class ByInfluence(MixtureConfig):
    """Shares of sources by the mean influence of their units on a `reference`, measured once, at stretch `start`. The
    reference needs a `path`: a mixture cannot keep units of the pool out of training."""

    kind: str = "influence"
    reference: Reference = Reference()
    probes: int = Field(200, ge=2, description="units measured, as many of each source")
    temperature: float = Field(0.5, gt=0)
    influence: Order = Field("batched", description="by true steps, or to first order: one by one, or in whole batches")
    start: int = Field(1, ge=0, description="stretches in natural proportion before the measurement")

    def files(self) -> list[Path]:
        return self.reference.files()

    def build(self, pool: Pool, seed: int) -> Mixture:
        if self.reference.path is None:
            raise BadInput("The mixture by influence measures against a `reference` with a `path`; what it held back "
                           "from the pool would be trained on all the same.")
        return InfluenceShares(pool, self, seed)


class InfluenceShares(Mixture):
    """Measures at its stretch; its memory is the shares (sources,)."""

    def __init__(self, pool: Pool, config: ByInfluence, seed: int):
        self.pool, self.config = pool, config
        self.reference = config.reference.units(pool, seed)
        size = source_tokens(pool).astype(np.float64)
        self.shares = size / size.sum()
        self.units = self._sample(seed)
        self.probe: Any = None
        self.help: dict[str, float] | None = None  # mean standardised helpfulness by source, once it is measured

    def _sample(self, seed: int) -> np.ndarray:
        """As many units of each source that has any, int64 (n,)."""
        there, rng = self.pool.lengths() > 0, generator(seed, "influence mixture")
        units = [rng.permutation(np.flatnonzero(there & (self.pool.source == source)))
                 for source in np.flatnonzero(self.shares > 0)]
        return np.sort(np.concatenate([one[:-(-self.config.probes // len(units))] for one in units]))

    def bind(self, probe: Any) -> None:
        self.probe = probe

    def weights(self, stretch: int) -> np.ndarray:
        if stretch >= self.config.start and self.help is None and self.paid(stretch):
            self._measure()
        return self.shares

    def _measure(self) -> None:
        if self.probe is None:
            raise BadInput("The mixture by influence asks the model being trained, and there is none here.")
        batches = self.probe.batches(np.arange(len(self.reference)), self.reference)
        gain = standardised(-self.probe.influences(self.units, batches, self.config.influence))
        source = np.asarray(self.pool.source)[self.units]
        mean = np.bincount(source, gain, len(self.shares)) / np.maximum(np.bincount(source, minlength=len(self.shares)),
                                                                        1)
        moved = self.shares * np.exp((mean - mean.max()) / self.config.temperature)
        self.shares = moved / moved.sum()
        self.help = dict(zip(self.pool.sources, mean.tolist(), strict=True))

    def planned_flops(self, plan: Plan) -> float:
        if plan.stretches <= self.config.start:
            return 0.0
        return measuring_flops(plan, self.reference, self.pool.lengths()[self.units], self.config.influence)

    def report(self) -> dict[str, Any]:
        return {"shares": dict(zip(self.pool.sources, self.shares.tolist(), strict=True)), "help": self.help,
                "measured": 0 if self.help is None else len(self.units)}

    def state_dict(self) -> dict[str, Any]:
        return {"shares": self.shares.tolist(), "help": self.help}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.shares, self.help = np.array(state["shares"], np.float64), state["help"]
