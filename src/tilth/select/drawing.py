"""Choosing by scores: the best share, by number or by size, and the Gumbel draw that keeps some chance for the rest.

Everywhere a higher score is better. Gumbel-top-k (Kool, van Hoof and Welling 2019, https://arxiv.org/abs/1903.06059):

    key_i = score_i / temperature + Gumbel(0, 1), take the k largest keys      (or: of temperature * key_i)

draws k units without replacement, the first with probability softmax(score / temperature). The sign matters: adding the
noise to a cost and taking the smallest is another distribution (its noise has the long tail on the wrong side). With
equal scores the draw is uniform.
"""

import base64
import zlib
from typing import Any

import numpy as np


def gumbel_top_k(scores: np.ndarray, count: int, temperature: float, rng: np.random.Generator) -> np.ndarray:
    """The drawn places in `scores`, best key first, int64 (min(count, n),); temperature 0 takes the best."""
    return np.argsort(-gumbel_keys(scores, temperature, rng), kind="stable")[:max(count, 0)]


def gumbel_keys(scores: np.ndarray, temperature: float, rng: np.random.Generator) -> np.ndarray:
    """score + temperature * Gumbel(0, 1): the keys of the draw in units of the score, float64 (n,)."""
    keys = np.asarray(scores, np.float64)
    return keys + temperature * rng.gumbel(size=len(keys)) if temperature > 0 else keys


def standardised(scores: np.ndarray) -> np.ndarray:
    """Mean 0 and standard deviation 1; all 0 where the scores do not vary. A temperature then means the same for any
    scorer, weak ones included."""
    scores = np.asarray(scores, np.float64)
    spread = scores.std()
    return (scores - scores.mean()) / spread if spread > 0 else np.zeros_like(scores)


def selectivity(scores: np.ndarray, chosen: np.ndarray) -> dict[str, float]:
    """How choosy a draw was, in standard deviations of all scores: the mean of the chosen, that of as many best, and
    the share of the way from random (0) to best (1)."""
    z = standardised(scores)
    count = int(chosen.sum()) if chosen.dtype == bool else len(chosen)
    if not count:
        return {"mean_score": 0.0, "best_score": 0.0, "selectivity": 0.0}
    best = float(np.sort(z)[::-1][:count].mean())
    mean = float(z[chosen].mean())
    return {"mean_score": mean, "best_score": best, "selectivity": min(mean / best, 1.0) if best > 1e-12 else 0.0}


def top_share(scores: np.ndarray, keep: float) -> np.ndarray:
    """Mask (U,) of the round(keep * U) highest scores (at least one); of equal scores the earlier units."""
    count = max(1, round(keep * len(scores)))
    mask = np.zeros(len(scores), bool)
    mask[np.argsort(-scores, kind="stable")[:count]] = True
    return mask


def size_threshold(scores: np.ndarray, sizes: np.ndarray, keep: float) -> float:
    """The score at which the units, taken from the best down, first hold more than `keep` of all sizes (characters,
    bytes or tokens), or the lowest score if they never do."""
    order = np.argsort(-scores, kind="stable")
    running = np.cumsum(np.asarray(sizes, np.float64)[order])
    place = int(np.searchsorted(running, keep * running[-1], side="right"))
    return float(scores[order[min(place, len(order) - 1)]])


def pack_mask(mask: np.ndarray) -> str:
    """A bool array as text for a JSON state. Level 1: every snapshot waits for it, and a higher one saves little."""
    return base64.b64encode(zlib.compress(np.packbits(mask).tobytes(), 1)).decode()


def unpack_mask(text: str, count: int) -> np.ndarray:
    bits = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
    return np.unpackbits(bits, count=count).astype(bool)


def described(scores: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    """What a report says of a choice made by scores."""
    return {"units": len(mask), "selected": int(mask.sum()), **selectivity(scores, mask)}
