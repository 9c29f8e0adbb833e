"""PreSelect: text whose losses rank models as their abilities do, found by a linear classifier.

Shum et al. 2025 ("Predictive Data Selection: The Data That Predicts Is the Data That Teaches", ICML,
https://arxiv.org/abs/2503.00808). Of N models from the weakest (1) to the strongest (N), with C_i(d) the loss of model
i on unit d, the predictive strength is

    S(d) = 1 / Z sum_{i<j} 1[C_i(d) > C_j(d)],  Z = N (N - 1) / 2

1 where the better model always has the lower loss; a tie counts as a miss; scaling or shifting all losses of a unit
changes nothing. Positives are the units with S = 1, negatives those from S = 0 upwards until there are as many. A
linear n-gram classifier of the two (an average of n-grams, no end mark: no bias by length) scores the pool; the best
units are kept until they hold the wanted share of all bytes. `gap` is the ablation by the loss of the weakest model
less the strongest's (ScalingFilter, Li et al. 2024).
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from tilth.curate.linear import Linear, fit_logistic
from tilth.data.pool import Pool
from tilth.data.seeding import generator
from tilth.recipe import BadInput, say
from tilth.select.drawing import described, size_threshold
from tilth.select.ngrams import NGrams
from tilth.select.protocols import Selector, SelectorConfig
from tilth.select.scored import ByScore

FEW = 100  # positives, below which a classifier of n-grams has little to learn from


class PreSelect(SelectorConfig):
    """Units like those whose losses predict ability. losses: Parquet with `unit_id` and a column of losses a model."""

    kind: str = "preselect"
    losses: Path
    models: list[str] = Field(min_length=2, description="the file's columns by ability, weakest first")
    keep: float = Field(0.1, gt=0, le=1, description="share of the bytes")
    label: Literal["strength", "gap"] = "strength"
    labelled: int | None = Field(None, ge=1, description="positives at most (and as many negatives); default: all")
    train_on_sample: bool = Field(False, description="also train on units whose losses are in the file")
    order: int = Field(2, ge=1, le=4)
    bits: int = Field(18, ge=4, le=24)
    penalty: float = Field(1.0, gt=0)

    def files(self) -> list[Path]:
        return [self.losses]

    def build(self, pool: Pool, seed: int) -> Selector:
        units, losses = read_losses(self.losses, self.models, pool)
        strength = predictive_strength(losses) if self.label == "strength" else losses[:, 0] - losses[:, -1]
        good, bad = labels(strength, self.label, self.labelled, generator(seed, "preselect"))
        ngrams = NGrams(pool.vocab_size, self.order, self.bits)
        model = self._fit(ngrams, pool, units[good], units[bad])
        free = np.ones(len(pool), bool)
        if not self.train_on_sample:
            free[units] = False
        if not free.any():
            raise BadInput(f"{self.losses} has losses of every unit, which leaves none to train on: give losses of a "
                           f"sample, or set train_on_sample.")
        scores = ngrams.scores(pool, model.weights, model.bias)
        mask = free & (scores >= size_threshold(scores[free], sizes(pool)[free], self.keep))
        figures = self._figures(pool, model, strength, units, good, bad, mask)
        figures = {**described(scores[free], mask[free]), **figures}
        return ByScore(mask, figures, 4.0 * self.order * int(pool.lengths().sum()))

    def _fit(self, ngrams: NGrams, pool: Pool, good: np.ndarray, bad: np.ndarray) -> Linear:
        units = np.concatenate([good, bad])
        label = np.repeat([1.0, 0.0], [len(good), len(bad)])
        return fit_logistic(ngrams.bags(pool, units), label, ngrams.size, self.penalty)

    def _figures(self, pool: Pool, model: Linear, strength: np.ndarray, units: np.ndarray, good: np.ndarray,
                 bad: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
        """What to check of a selection: lengths of the classes (a bias shows here), and what speaks for and against."""
        length = pool.lengths()
        return {"sample": len(units), "positives": len(good), "negatives": len(bad),
                "strength_mean": float(strength.mean()), "mean_tokens": float(length[mask].mean()),
                "mean_tokens_of_pool": float(length.mean()),
                "mean_tokens_of_positives": float(length[units[good]].mean()),
                "mean_tokens_of_negatives": float(length[units[bad]].mean()), **attribution(pool, model)}


def predictive_strength(losses: np.ndarray) -> np.ndarray:
    """S (D,) of losses (D, N), models from the weakest to the strongest: multiples of 1 / (N (N - 1) / 2)."""
    first, second = np.triu_indices(losses.shape[1], 1)
    return (losses[:, first] > losses[:, second]).mean(1)


def labels(strength: np.ndarray, label: str, most: int | None, rng: np.random.Generator) -> tuple[np.ndarray,
                                                                                                  np.ndarray]:
    """Places of the positives and the negatives. By strength: S = 1 against as many from the lowest S up; by gap: the
    tenth at either end. Ties are broken at random: large groups share a value."""
    order = rng.permutation(len(strength))
    order = order[np.argsort(strength[order], kind="stable")]
    count = int((strength == 1).sum()) if label == "strength" else len(strength) // 10
    count = min(count, len(strength) // 2, most or count)
    if not count:
        raise BadInput("No unit's losses rank the models by ability, so there is nothing to learn from: check the "
                       "order of `models` (weakest first), or give losses of more units.")
    if count < FEW and count < len(strength) // 2:
        say(f"  only {count} of {len(strength)} units with losses are positives: what the classifier learns from them "
            f"may be chance. Give losses of more units, or of fewer models.")
    return np.sort(order[-count:]), np.sort(order[:count])


def read_losses(path: Path, models: list[str], pool: Pool) -> tuple[np.ndarray, np.ndarray]:
    """Units (D,) of the pool and their losses (D, N); units without tokens are left out. BadInput where the file does
    not match the pool."""
    import polars as pl

    try:
        table = pl.read_parquet(path, columns=["unit_id", *models])
    except (OSError, pl.exceptions.PolarsError) as error:
        columns = ", ".join(["unit_id", *models])
        raise BadInput(f"{path} cannot be read as Parquet with columns {columns}: {error}.") from error
    units = pl.DataFrame({"unit_id": pl.from_arrow(pool.table(["unit_id"])["unit_id"])}).with_row_index("row")
    found = table.join(units, on="unit_id", how="left", maintain_order="left")
    unknown = found.filter(pl.col("row").is_null())
    if len(unknown) or not len(found) or found["unit_id"].is_duplicated().any():
        what = f"a unit that the pool does not hold, {unknown['unit_id'][0]!r}" if len(unknown) else (
            "no unit" if not len(found) else "a unit twice")
        raise BadInput(f"{path} names {what}. Make the losses from the units.parquet of {pool.folder}.")
    rows, losses = found["row"].to_numpy().astype(np.int64), found.select(models).cast(pl.Float64).to_numpy()
    if not np.isfinite(losses).all():
        raise BadInput(f"{path} holds a loss that is empty or not finite; give every unit and model a number.")
    kept = pool.lengths()[rows] > 0
    return rows[kept], losses[kept]


def sizes(pool: Pool) -> np.ndarray:
    """Bytes of each unit's text, or tokens where the pool does not know them, int64 (U,)."""
    try:
        found = np.asarray(pool.column("bytes"), np.int64)
    except BadInput:  # tokens made elsewhere may come without text
        return pool.lengths()
    return pool.lengths() if (found < 0).any() else found


def attribution(pool: Pool, model: Linear, count: int = 20) -> dict[str, list[str]]:
    """The single tokens with the largest weight for and against, as text where the pool has a tokenizer."""
    weights = model.weights[:pool.vocab_size]
    order = np.argsort(-weights, kind="stable")
    order = np.concatenate([order[:count], order[::-1][:count]])
    try:
        tokenizer = pool.tokenizer()
        names = [tokenizer.decode([int(token)], skip_special_tokens=False) for token in order]
    except BadInput:
        names = [str(token) for token in order]
    return {"speaks_for": names[:count], "speaks_against": names[count:]}
