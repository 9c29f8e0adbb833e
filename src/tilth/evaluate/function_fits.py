"""Estimators in closed form for functions given by a few noiseless examples: what a model in context is compared with.

Each takes `x (B, k, d)`, `y (B, k)` and asked points `q (B, d)`, and gives predictions (B,).
"""

from collections.abc import Sequence

import numpy as np

CHUNK = 256  # sequences fitted at once


def least_squares(x_Bkd: np.ndarray, y_Bk: np.ndarray, q_Bd: np.ndarray) -> np.ndarray:
    """The linear function of least norm through the examples: for d normal coordinates and k <= d examples of a random
    function of unit variance its expected squared error is 1 - k / d."""
    beta = np.einsum("bdk,bk->bd", np.linalg.pinv(x_Bkd), y_Bk)
    return np.einsum("bd,bd->b", q_Bd, beta)


def one_coordinate(x_Bkd: np.ndarray, y_Bk: np.ndarray, q_Bd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predictions of the best function of one coordinate alone, and the mean square that it leaves, both (B,). Without
    noise two examples identify a function with one non-zero coordinate."""
    norms = np.maximum(np.square(x_Bkd).sum(1), 1e-300)
    slopes_Bd = np.einsum("bkd,bk->bd", x_Bkd, y_Bk) / norms
    left_Bd = np.square(y_Bk[:, :, None] - x_Bkd * slopes_Bd[:, None]).mean(1)
    best, rows = left_Bd.argmin(1), np.arange(len(x_Bkd))
    return slopes_Bd[rows, best] * q_Bd[rows, best], left_Bd[rows, best]


def dense_or_one_sparse(x_Bkd: np.ndarray, y_Bk: np.ndarray, q_Bd: np.ndarray) -> np.ndarray:
    """The Bayes predictor of a mixture of dense and one-sparse linear functions from k >= 2 examples: the sparse
    function where one coordinate explains them all, else the least norm. It is as good as both specialists."""
    sparse, left = one_coordinate(x_Bkd, y_Bk, q_Bd)
    explained = left <= 1e-18 * np.maximum(np.square(y_Bk).mean(1), 1e-300)
    return np.where(explained, sparse, least_squares(x_Bkd, y_Bk, q_Bd))


class Waves:
    """Fits of a line, of a sinusoid, and of both together, to functions of one number.

    A sinusoid is a sin(w x) + b cos(w x) by least squares at each frequency of the grid; the frequency that leaves the
    least is taken. `fit` gives predictions (B,) and what each leaves of the examples (mean square) for the bases
    `linear`, `sinusoid`, `joint`, and for `either`: the better of line and sinusoid, which without noise is the Bayes
    predictor of their mixture as soon as the examples determine a function.
    """

    def __init__(self, frequencies: Sequence[float]):
        self.frequencies = np.asarray(frequencies, np.float64)

    def fit(self, x_Bk: np.ndarray, y_Bk: np.ndarray, q_B: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        parts = [self._fit(x_Bk[at:at + CHUNK], y_Bk[at:at + CHUNK], q_B[at:at + CHUNK])
                 for at in range(0, len(x_Bk), CHUNK)]
        found = {name: (np.concatenate([part[name][0] for part in parts]), np.concatenate([part[name][1]
                                                                                           for part in parts]))
                 for name in parts[0]}
        (line, line_left), (wave, wave_left) = found["linear"], found["sinusoid"]
        better = line_left <= wave_left
        return {**found, "either": (np.where(better, line, wave), np.minimum(line_left, wave_left))}

    def _fit(self, x_Bk: np.ndarray, y_Bk: np.ndarray, q_B: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        line = solved(x_Bk[:, None, :, None], y_Bk[:, None], q_B[:, None, None])
        waves_BFk2, asked_BF2 = self._waves(x_Bk), self._waves(q_B[:, None])[:, :, 0]
        shape = waves_BFk2.shape[:3]
        both_BFk3 = np.concatenate([waves_BFk2, np.broadcast_to(x_Bk[:, None], shape)[..., None]], -1)
        both_BF3 = np.concatenate([asked_BF2, np.broadcast_to(q_B[:, None], shape[:2])[..., None]], -1)
        return {"linear": line, "sinusoid": solved(waves_BFk2, y_Bk[:, None], asked_BF2),
                "joint": solved(both_BFk3, y_Bk[:, None], both_BF3)}

    def _waves(self, x_Bk: np.ndarray) -> np.ndarray:
        """sin and cos of every frequency at every point, (B, F, k, 2)."""
        angle = self.frequencies[None, :, None] * x_Bk[:, None]
        return np.stack([np.sin(angle), np.cos(angle)], -1)


def solved(bases_BFkn: np.ndarray, y_B1k: np.ndarray, asked_BFn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares on each of F bases; of the one that leaves the least, predictions and what is left, both (B,)."""
    factors = np.einsum("bfnk,bfk->bfn", np.linalg.pinv(bases_BFkn), np.broadcast_to(y_B1k, bases_BFkn.shape[:3]))
    left_BF = np.square(y_B1k - np.einsum("bfkn,bfn->bfk", bases_BFkn, factors)).mean(-1)
    best, rows = left_BF.argmin(1), np.arange(len(y_B1k))
    return np.einsum("bn,bn->b", factors[rows, best], asked_BFn[rows, best]), left_BF[rows, best]
