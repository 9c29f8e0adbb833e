"""Selectors that choose by what text looks like: n-gram importance towards a target, and a quality classifier.

Both read tokens alone and choose once, before training. What they keep back for their reference is never trained on.
"""

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from tilth.curate.linear import Linear, fit_logistic
from tilth.data.pool import Pool
from tilth.data.seeding import generator
from tilth.recipe import BadInput, one_of
from tilth.select.diversity import DIVERSITIES, Diversity, ScoreAlone
from tilth.select.drawing import described, size_threshold, standardised
from tilth.select.ngrams import NGrams
from tilth.select.protocols import Plan, Selector, SelectorConfig
from tilth.select.reference import Reference, TokenArrays, read_texts, tokenized
from tilth.select.selectors import Chosen

PIECE_TOKENS = 1024  # labelled texts are cut like the units of a pool, so that both have the same lengths


class ByScore(Chosen):
    """Units chosen once by scores; what scoring cost is counted when the run begins."""

    def __init__(self, mask: np.ndarray, figures: dict[str, Any], flops: float = 0.0):
        super().__init__(mask, figures)
        self.flops = flops

    def bind(self, probe: Any) -> None:
        if probe is not None:
            probe.spend(self.flops)

    def planned_flops(self, plan: Plan) -> float:
        return self.flops


class Importance(SelectorConfig):
    """n-gram importance resampling (DSIR, Xie et al. 2023, https://arxiv.org/abs/2302.03169).

    log w(x) = sum over n-grams g of x of log p_target(g) / p_pool(g), both estimated from hashed n-gram counts with one
    added to each, then Gumbel-top-k of log w. As published the sum favours long units of the target's kind; `average`
    takes the mean over n-grams instead (standardised, at `temperature`).
    """

    kind: str = "importance"
    reference: Reference = Reference()
    keep: float = Field(gt=0, le=1, description="share of the units")
    order: int = Field(2, ge=1, le=4)
    bits: int = Field(14, ge=4, le=24, description="2^bits buckets for n-grams longer than one token")
    average: bool = False
    temperature: float = Field(1.0, ge=0)
    diversity: one_of(Diversity, DIVERSITIES) = ScoreAlone()  # type: ignore[valid-type]

    def files(self) -> list[Path]:
        return self.reference.files()

    def build(self, pool: Pool, seed: int) -> Selector:
        ngrams, free = NGrams(pool.vocab_size, self.order, self.bits), ~self.reference.held_back(pool, seed)
        units = np.flatnonzero(free)
        weights = log_ratio(ngrams.counts(self.reference.units(pool, seed)), ngrams.counts(pool, units))
        scores = ngrams.scores(pool, weights, units=units, total=not self.average)
        keys = standardised(scores) if self.average else scores
        drawn, figures = self.diversity.draw(pool, units, keys, max(1, round(self.keep * len(units))), self.temperature,
                                             generator(seed, "importance"))
        tokens = int(pool.lengths().sum())
        return chosen(pool, units, scores, drawn, 4.0 * self.order * tokens + self.diversity.flops(
            len(units), tokens), figures)


class Quality(SelectorConfig):
    """A quality classifier: logistic regression on hashed n-grams, labelled text against other text.

    positive: text to look like; negative: text not to look like (default: units of the pool at random, as many). The
    best units are kept until they hold `keep` of the pool's tokens; with a `temperature` or a `diversity`, `keep` of
    the units are drawn by Gumbel-top-k.
    """

    kind: str = "quality"
    positive: Path
    negative: Path | None = None
    keep: float = Field(gt=0, le=1, description="share of the tokens; with a temperature of the units")
    order: int = Field(2, ge=1, le=4)
    bits: int = Field(18, ge=4, le=24)
    penalty: float = Field(1.0, gt=0, description="ridge penalty of the weights")
    temperature: float = Field(0.0, ge=0, description="of Gumbel-top-k on standardised scores; 0 takes the best")
    diversity: one_of(Diversity, DIVERSITIES) = ScoreAlone()  # type: ignore[valid-type]

    def files(self) -> list[Path]:
        return [path for path in (self.positive, self.negative) if path is not None and path.is_file()]

    def build(self, pool: Pool, seed: int) -> Selector:
        ngrams, units = NGrams(pool.vocab_size, self.order, self.bits), np.arange(len(pool))
        model = self._fit(ngrams, pool, seed)
        scores = ngrams.scores(pool, model.weights, model.bias)
        tokens, figures = int(pool.lengths().sum()), {}
        if self.temperature or self.diversity.kind != "none":
            drawn, figures = self.diversity.draw(pool, units, standardised(scores), max(1, round(
                self.keep * len(pool))), self.temperature, generator(seed, "quality"))
        else:
            drawn = np.flatnonzero(scores >= size_threshold(scores, pool.lengths(), self.keep))
        return chosen(pool, units, scores, drawn, 4.0 * self.order * tokens + self.diversity.flops(
            len(units), tokens), figures)

    def _fit(self, ngrams: NGrams, pool: Pool, seed: int) -> Linear:
        good = TokenArrays(in_pieces(tokenized(read_texts(self.positive), pool)), pool.end_of_text)
        if self.negative is not None:
            bad = TokenArrays(in_pieces(tokenized(read_texts(self.negative), pool)), pool.end_of_text)
        else:
            rng, count = generator(seed, "negatives"), min(len(good), len(pool))
            bad = TokenArrays([pool.get("tokens", int(unit)) for unit in rng.choice(len(pool), count, replace=False)
                               if len(pool.get("tokens", int(unit)))], pool.end_of_text)
        both = TokenArrays([*parts(good), *parts(bad)], pool.end_of_text)
        label = np.repeat([1.0, 0.0], [len(good), len(bad)])
        if not 0 < label.mean() < 1:
            raise BadInput("A quality classifier needs text of both kinds; `positive` or `negative` gave none.")
        return fit_logistic(ngrams.bags(both, np.arange(len(both))), label, ngrams.size, self.penalty)


def log_ratio(target: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """log p_target / p_pool of each feature from counts, one added to each count, float64 (features,)."""
    target, pool = target + 1.0, pool + 1.0
    return np.log(target / target.sum()) - np.log(pool / pool.sum())


def chosen(pool: Pool, units: np.ndarray, scores: np.ndarray, drawn: np.ndarray, flops: float,
           more: dict[str, float]) -> ByScore:
    """The selector of units[drawn], `scores` (n,) being those of `units` (n,); `more` joins its figures."""
    mask = np.zeros(len(pool), bool)
    mask[units[drawn]] = True
    length = pool.lengths()
    figures = {**described(scores, mask[units]), "held_back": len(pool) - len(units),
               "mean_tokens": float(length[mask].mean()), "mean_tokens_of_pool": float(length.mean()), **more}
    return ByScore(mask, figures, flops)


def parts(arrays: TokenArrays) -> list[np.ndarray]:
    return np.split(arrays.values("tokens"), arrays.offsets("tokens")[1:-1])


def in_pieces(arrays: list[np.ndarray], tokens: int = PIECE_TOKENS) -> list[np.ndarray]:
    """Each array cut into pieces of at most `tokens` tokens."""
    return [one[at:at + tokens] for one in arrays for at in range(0, len(one), tokens)]


