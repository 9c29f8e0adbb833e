"""Selectors that choose once: everything, a random share, or the best of a user's scores."""

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from tilth.data.pool import Pool
from tilth.data.seeding import generator
from tilth.recipe import BadInput, Config
from tilth.select.drawing import described, gumbel_top_k, standardised, top_share
from tilth.select.protocols import Selector, SelectorConfig


class Chosen(Selector):
    """Units chosen once for the whole run; None chooses all."""

    def __init__(self, mask: np.ndarray | None, figures: dict[str, Any] | None = None):
        self.mask = mask
        counts = {} if mask is None else {"units": len(mask), "selected": int(mask.sum())}
        self.figures = counts if figures is None else figures

    def select(self, candidates: np.ndarray, stretch: int, rng: np.random.Generator) -> np.ndarray:
        return candidates if self.mask is None else candidates[self.mask[candidates]]

    def report(self) -> dict[str, Any]:
        return self.figures


class All(SelectorConfig):
    """Every unit of the pool."""

    kind: str = "all"

    def build(self, pool: Pool, seed: int) -> Selector:
        return Chosen(None)


class Random(SelectorConfig):
    """A random share of the units, the same units in every pass: the baseline of every other selector."""

    kind: str = "random"
    keep: float = Field(gt=0, le=1, description="share of the units")

    def build(self, pool: Pool, seed: int) -> Selector:
        return Chosen(top_share(generator(seed, "random selector").random(len(pool)), self.keep))


class Scores(SelectorConfig):
    """The units with the highest scores in a Parquet file with columns `unit_id` (text) and `score` (number).

    With a `temperature` they are drawn by Gumbel-top-k on the standardised scores instead.

    Every unit of the pool must have one finite score, and every score a unit: a file made for another pool is an
    error, not a quiet nothing.
    """

    kind: str = "scores"
    path: Path = Field(description="Parquet file with columns unit_id and score")
    keep: float = Field(gt=0, le=1, description="share of the units, those with the highest scores")
    temperature: float = Field(0.0, ge=0, description="of the Gumbel draw; 0 takes the best")

    def files(self) -> list[Path]:
        return [self.path]

    def build(self, pool: Pool, seed: int) -> Selector:
        scores = read_scores(self.path, pool)
        mask = top_share(scores, self.keep)
        if self.temperature:
            drawn = gumbel_top_k(standardised(scores), int(mask.sum()), self.temperature, generator(seed, "scores"))
            mask = np.isin(np.arange(len(pool)), drawn)
        return Chosen(mask, described(scores, mask))


def read_scores(path: Path, pool: Pool) -> np.ndarray:
    """The score of each unit of the pool, float64 (U,); BadInput names the first id that does not match."""
    import polars as pl

    try:
        table = pl.read_parquet(path, columns=["unit_id", "score"])
    except (OSError, pl.exceptions.PolarsError) as error:
        raise BadInput(f"{path} cannot be read as Parquet with columns unit_id and score: {error}.") from error
    if table["unit_id"].dtype != pl.String or not table["score"].dtype.is_numeric():
        raise BadInput(f"{path} must hold `unit_id` as text and `score` as a number, not "
                       f"{table['unit_id'].dtype} and {table['score'].dtype}.")
    units = pl.DataFrame({"unit_id": pl.from_arrow(pool.table(["unit_id"])["unit_id"])})
    repeated = table.filter(table["unit_id"].is_duplicated())
    unknown = table.join(units, on="unit_id", how="anti")
    missing = units.join(table, on="unit_id", how="anti")
    for wrong, what in ((repeated, "scores more than once"), (unknown, "scores, but the pool does not hold,"),
                        (missing, "does not score")):
        if len(wrong):
            raise BadInput(f"{path} {what} {len(wrong)} unit(s), the first {wrong['unit_id'][0]!r}. Make the scores "
                           f"from the units.parquet of {pool.folder}.")
    scores = units.join(table, on="unit_id", how="left", maintain_order="left")["score"].cast(pl.Float64)
    if not scores.is_finite().fill_null(False).all():
        raise BadInput(f"{path} holds a score that is empty or not finite; give every unit a number.")
    return scores.to_numpy()


SELECTORS: dict[str, type[Config] | str] = {
    "all": All, "random": Random, "scores": Scores, "importance": "tilth.select.scored:Importance",
    "semdedup": "tilth.select.semdedup:SemDeDup",
    "quality": "tilth.select.scored:Quality", "perplexity": "tilth.select.perplexity:Perplexity",
    "mates": "tilth.select.mates:Mates", "preselect": "tilth.select.preselect:PreSelect",
    "concepts": "tilth.select.concepts:ConceptBalance"}
