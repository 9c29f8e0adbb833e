"""What a forecast has to beat: the last value, and a power law fitted to the run's own early checkpoints."""

import numpy as np

from tilth.evaluate.tracking.curves import Curve

EXPONENTS = np.geomspace(0.02, 3.0, 40)


def last_value(seen: Curve, tokens: np.ndarray) -> np.ndarray:
    """The score of the last checkpoint that was seen, for ever."""
    return np.full(len(tokens), seen.scores[-1])


def power_law(seen: Curve, tokens: np.ndarray) -> np.ndarray:
    """score = a - b D^-c by least squares over the checkpoints seen, at `tokens`; clipped to [0, 1].

    For each exponent of a grid a and b are solved exactly, and the exponent with the least squares wins. Fewer than
    three checkpoints, or a law that falls with more tokens (b < 0), leave the last value.
    """
    positive = seen.tokens > 0
    x, y = seen.tokens[positive] / seen.tokens[-1], seen.scores[positive]
    best: tuple[float, np.ndarray] | None = None
    for exponent in EXPONENTS if len(x) >= 3 else ():
        basis = np.stack([np.ones_like(x), -(x**-exponent)], axis=1)
        found, *_ = np.linalg.lstsq(basis, y, rcond=None)
        error = float(np.sum((basis @ found - y) ** 2))
        if found[1] >= 0 and (best is None or error < best[0]):
            at = (np.asarray(tokens, np.float64) / seen.tokens[-1]) ** -exponent
            best = error, found[0] - found[1] * at
    return last_value(seen, tokens) if best is None else np.clip(best[1], 0.0, 1.0)
