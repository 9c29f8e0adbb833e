"""Mixtures whose weights do not change: as the data lies, as the recipe says, or flattened by a temperature."""

import numpy as np
from pydantic import Field

from tilth.data.pool import Pool
from tilth.recipe import BadInput, Config
from tilth.recipe.frame import nearest
from tilth.select.protocols import Mixture, MixtureConfig


class Constant(Mixture):
    """The same shares for every stretch; None draws units as they lie."""

    def __init__(self, shares: np.ndarray | None):
        self.shares = shares

    def weights(self, stretch: int) -> np.ndarray | None:
        return self.shares


class Natural(MixtureConfig):
    """Each unit once a pass, in proportion to what there is."""

    kind: str = "natural"

    def build(self, pool: Pool, seed: int) -> Mixture:
        return Constant(None)


class Fixed(MixtureConfig):
    """Shares of tokens by name of source (they are normalised); a source that is not named is not used."""

    kind: str = "fixed"
    weights: dict[str, float] = Field(description="source: share of the tokens")

    def build(self, pool: Pool, seed: int) -> Mixture:
        tokens = source_tokens(pool)
        shares = np.zeros(len(pool.sources))
        for name, weight in self.weights.items():
            if not np.isfinite(weight) or weight < 0:
                raise BadInput(f"The mixture weight of source '{name}' is {weight}; give a number >= 0.")
            if name not in pool.sources or (weight > 0 and not tokens[pool.sources.index(name)]):
                raise BadInput(f"The mixture weighs source '{name}', which has no data"
                               f"{nearest(name, pool.sources)} Sources: {', '.join(pool.sources)}.")
            shares[pool.sources.index(name)] = weight
        if not shares.sum() > 0:
            raise BadInput("The mixture gives no source a weight above 0, so there is nothing to train on.")
        return Constant(shares / shares.sum())


class Temperature(MixtureConfig):
    """Share of source s proportional to tokens_s ** (1 / temperature): 1 is natural, large is uniform (Devlin 2019;
    Arivazhagan et al. 2019)."""

    kind: str = "temperature"
    temperature: float = Field(2.0, gt=0)

    def build(self, pool: Pool, seed: int) -> Mixture:
        tokens = source_tokens(pool).astype(np.float64)
        shares = np.where(tokens > 0, (tokens / tokens.max()) ** (1 / self.temperature), 0.0)
        return Constant(shares / shares.sum())


def source_tokens(pool: Pool) -> np.ndarray:
    """Tokens of each source, int64 (sources,)."""
    return np.bincount(pool.source, pool.lengths("tokens"), len(pool.sources)).astype(np.int64)


MIXTURES: dict[str, type[Config] | str] = {"natural": Natural, "fixed": Fixed, "temperature": Temperature,
                                           "doremi": "tilth.select.online:Doremi",
                                           "influence": "tilth.select.influence_mixture:ByInfluence"}
