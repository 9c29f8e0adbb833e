"""What a model knows of geography: a ridge probe on its hidden states, beside models that read no text.

The probe reads GeoLLM's prompt (Manvi et al. 2024, arXiv 2310.06213) and predicts the population within 60 km. A random
split puts test points beside training points, and then remembering neighbours looks like knowledge; so whole cells of
five degrees are held out, and the random split stands beside. Rivals: boosted trees on the two coordinates alone (what
interpolation gets), the five nearest training points, and boosted trees on the ten distances of the prompt (what it
gives away without a word). Text has to beat the last one before names count as knowledge.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from tilth.analyze.geography import (
    Place,
    cells,
    distances_km,
    near_distances,
    prompt,
    read_cities,
    sample_places,
    split,
    unit_vectors,
)
from tilth.evaluate.features import features
from tilth.evaluate.score import Scorer
from tilth.recipe import BadInput, Config

PENALTIES = np.geomspace(1e-4, 1e4, 9)
FOLDS, NEIGHBOURS = 5, 5


class GeographyConfig(Config):
    """data: a CSV of cities; points: how many places are asked about, near so many cities; train: how many of them the
    probe learns from, at least (whole cells); seeds: other places and other splits each."""

    data: str
    points: int = Field(3000, ge=50)
    train: int = Field(1000, ge=20)
    seeds: int = Field(5, ge=1)
    prompts: list[Literal["coordinates", "full"]] = Field(default=["coordinates", "full"], min_length=1)
    cell_degrees: float = Field(5.0, gt=0, le=90)

    def run(self, scorer: Scorer) -> dict[str, Any]:
        """{split: {predictor: [{"r", "r2", "n"} a seed]}}, r Pearson's correlation with log10(population + 1)."""
        if self.train >= self.points:
            raise BadInput(f"`train` ({self.train}) must be below `points` ({self.points}), so that some are left to "
                           f"test on.")
        cities = read_cities(self.data)
        found: dict[str, Any] = {"blocked": {}, "random": {}}
        for seed in range(self.seeds):
            places = sample_places(cities, self.points, seed)
            read = {f"probe, {parts} prompt": features(scorer, [prompt(place, parts) for place in places])
                    for parts in self.prompts}
            lat, lon = np.array([place.lat for place in places]), np.array([place.lon for place in places])
            groups = {"blocked": cells(lat, lon, self.cell_degrees), "random": np.arange(len(places))}
            for name, group in groups.items():
                for who, one in predict(places, read, group, self.train, seed).items():
                    found[name].setdefault(who, []).append(one)
        return found


def predict(places: Sequence[Place], read: dict[str, np.ndarray], groups: np.ndarray, train: int,
            seed: int) -> dict[str, dict[str, float]]:
    """Every predictor's r, r2 and n on the held-out rows of one split."""
    y = np.log10(np.array([place.population for place in places]) + 1)
    known, asked = split(groups, train, seed)
    if len(asked) < 2:
        raise BadInput("Holding out whole cells leaves nothing to test on; take more points or smaller cells.")
    points = unit_vectors(np.array([place.lat for place in places]), np.array([place.lon for place in places]))
    coordinates = np.array([[place.lat, place.lon] for place in places])
    distances = near_distances(places)
    said = {name: ridge(x[known], y[known], x[asked], groups[known]) for name, x in read.items()}
    said |= {"trees, coordinates": trees(coordinates[known], y[known], coordinates[asked], seed),
             "nearest points": nearest(points[known], y[known], points[asked]),
             "trees, distances": trees(distances[known], y[known], distances[asked], seed)}
    return {name: agreement(values, y[asked]) for name, values in said.items()}


def agreement(said: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """r with its sign (a probe that is wrong way round has a fine r2), r2, n; 0 where nothing varies."""
    varies = np.std(said) > 1e-12 and np.std(truth) > 1e-12
    r = float(np.corrcoef(said, truth)[0, 1]) if varies else 0.0
    return {"r": r, "r2": r * r, "n": len(truth)}


def ridge(x: np.ndarray, y: np.ndarray, new: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Ridge regression on standardised features; the penalty (a share of the rows) by cross-validation over folds of
    whole groups, as the test is."""
    centre, spread = x.mean(axis=0), x.std(axis=0) + 1e-8
    x, new = (x - centre) / spread, (new - centre) / spread
    fold = np.unique(groups, return_inverse=True)[1] % FOLDS
    errors = np.zeros(len(PENALTIES))
    for one in range(FOLDS):
        inside, outside = fold != one, fold == one
        if inside.any() and outside.any():
            errors += [float(((said - y[outside]) ** 2).sum()) for said in _path(x[inside], y[inside], x[outside])]
    return _path(x, y, new)[int(errors.argmin())]


def _path(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> list[np.ndarray]:
    """Predictions for `new` at every penalty, from one eigendecomposition."""
    centre, middle = x.mean(axis=0), y.mean()
    values, vectors = np.linalg.eigh((x - centre).T @ (x - centre))
    turned, target = (new - centre) @ vectors, vectors.T @ ((x - centre).T @ (y - middle))
    return [middle + turned @ (target / (np.maximum(values, 0) + penalty * len(x))) for penalty in PENALTIES]


def trees(x: np.ndarray, y: np.ndarray, new: np.ndarray, seed: int) -> np.ndarray:
    """Gradient-boosted trees with the library's defaults, on the columns that vary."""
    try:
        from sklearn.ensemble import HistGradientBoostingRegressor
    except ImportError as error:
        raise BadInput("Geographic probing needs boosted trees to stand beside: pip install 'tilth[geography]'."
                       ) from error
    varies = np.array([len(np.unique(column[np.isfinite(column)])) > 1 for column in x.T])
    if not varies.any():
        return np.full(len(new), y.mean())
    return HistGradientBoostingRegressor(random_state=seed).fit(x[:, varies], y).predict(new[:, varies])


def nearest(points: np.ndarray, y: np.ndarray, new: np.ndarray, k: int = NEIGHBOURS) -> np.ndarray:
    """The mean of the `k` nearest training points on the sphere."""
    km = distances_km(new, points)
    k = min(k, len(y))
    return y[np.argpartition(km, k - 1, axis=1)[:, :k]].mean(axis=1)


def summary(found: dict[str, Any]) -> list[list[str]]:
    """A row a predictor: split, name, mean r2 over seeds with its lowest and highest, mean r; best first."""
    rows = []
    for name, predictors in found.items():
        ordered = sorted(predictors.items(), key=lambda item: -float(np.mean([one["r2"] for one in item[1]])))
        for who, runs in ordered:
            r2 = [one["r2"] for one in runs]
            rows.append([name, who, f"{np.mean(r2):.3f}", f"{min(r2):.3f} to {max(r2):.3f}",
                         f"{np.mean([one['r'] for one in runs]):+.3f}"])
    return rows
