"""Places on the Earth as prompts: points near cities, what stands around them, and what is asked about them.

The prompt is that of GeoLLM (Manvi et al. 2024, arXiv 2310.06213): coordinates, an address, the nearest named places
with distance and direction. Here the places are those of a city table (GeoNames), the address is the region,
country and time zone of the nearest one, and the quantity asked for is the population within 60 km, so that nothing is
fetched from a service. `N` points, `C` cities.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tilth.recipe import BadInput

RADIUS_KM = 6371.0088  # mean radius of the Earth (IUGG)
SECTORS = ("North", "North-East", "East", "South-East", "South", "South-West", "West", "North-West")
NEAREST, REACH_KM, AROUND_KM, JITTER_KM = 10, 100.0, 60.0, 10.0
TASK = "Population within 60 km (On a Scale from 0.0 to 9.9): "
COLUMNS = ("name", "lat", "lon", "country", "admin1", "population", "timezone")


@dataclass(frozen=True)
class Cities:
    """A table of places: names (list), lat and lon in degrees (C,), population (C,), and the parts of an address."""

    names: list[str]
    lat: np.ndarray
    lon: np.ndarray
    population: np.ndarray
    address: list[str]


@dataclass(frozen=True)
class Place:
    """A query point: lat, lon in degrees; address; nearest places as (km, direction, name), nearest first; population
    within 60 km."""

    lat: float
    lon: float
    address: str
    near: list[tuple[float, str, str]]
    population: float


def read_cities(path: Path | str) -> Cities:
    """The cities of a CSV file with the columns name, lat, lon, country, admin1, population, timezone."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"Could not read the cities in {path}: {error}.") from error
    missing = [name for name in COLUMNS if not rows or name not in rows[0]]
    if missing:
        raise BadInput(f"{path} has no column {', '.join(missing)}; a table of cities has {', '.join(COLUMNS)}.")
    try:
        lat, lon, population = (np.array([float(row[name]) for row in rows]) for name in ("lat", "lon", "population"))
    except ValueError as error:
        raise BadInput(f"{path} holds something else than a number in lat, lon or population: {error}.") from error
    address = [", ".join(part for part in (row["admin1"], row["country"], row["timezone"]) if part) for row in rows]
    return Cities([row["name"] for row in rows], lat, lon, population, address)


def unit_vectors(lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
    """(..., 3) points on the unit sphere."""
    a, b = np.radians(lat), np.radians(lon)
    return np.stack([np.cos(a) * np.cos(b), np.cos(a) * np.sin(b), np.sin(a)], axis=-1)


def distances_km(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N, C) great-circle distances of unit vectors, to within a metre; the ellipsoid differs by at most 0.6 %."""
    chord = np.sqrt(np.maximum(2 - 2 * (points @ others.T), 0.0))
    return 2 * RADIUS_KM * np.arcsin(np.minimum(chord / 2, 1.0))


def bearing(lat1: float, lon1: float, lat2: float, lon2: float) -> float:
    """Initial bearing from the first point to the second, degrees from North, clockwise, in [0, 360)."""
    a, b, d = np.radians(lat1), np.radians(lat2), np.radians(lon2 - lon1)
    y, x = np.sin(d) * np.cos(b), np.cos(a) * np.sin(b) - np.sin(a) * np.cos(b) * np.cos(d)
    return float(np.degrees(np.arctan2(y, x)) % 360)


def direction(degrees: float) -> str:
    """The nearest of eight compass directions; 337.5 and more is North again."""
    return SECTORS[int(np.floor(degrees / 45 + 0.5)) % 8]


def sample_places(cities: Cities, n: int, seed: int) -> list[Place]:
    """`n` different cities, each moved by about 10 km, with what lies around: a function of (cities, n, seed) alone."""
    if n > len(cities.names):
        raise BadInput(f"{n} points are asked for; there are only {len(cities.names)} cities to draw them near.")
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(len(cities.names))[:n]
    angle, far = rng.uniform(0, 2 * np.pi, n), rng.rayleigh(JITTER_KM / np.sqrt(np.pi / 2), n)
    lat = np.clip(cities.lat[drawn] + np.degrees(far / RADIUS_KM) * np.cos(angle), -89.9, 89.9)
    lon = cities.lon[drawn] + np.degrees(far / RADIUS_KM) * np.sin(angle) / np.cos(np.radians(lat))
    lon = (lon + 180) % 360 - 180
    lat, lon = np.round(lat, 5), np.round(lon, 5)
    known, points = unit_vectors(cities.lat, cities.lon), unit_vectors(lat, lon)
    return [_place(cities, float(lat[at]), float(lon[at]), distances_km(points[at : at + 1], known)[0])
            for at in range(n)]


def _place(cities: Cities, lat: float, lon: float, km: np.ndarray) -> Place:
    order = np.argpartition(km, NEAREST)[:NEAREST] if len(km) > NEAREST else np.arange(len(km))
    order = order[np.argsort(km[order], kind="stable")]
    near = [(float(km[at]), direction(bearing(lat, lon, cities.lat[at], cities.lon[at])), cities.names[at])
            for at in order if km[at] <= REACH_KM]
    return Place(lat, lon, cities.address[order[0]], near, float(cities.population[km <= AROUND_KM].sum()))


def prompt(place: Place, parts: str = "full") -> str:
    """What a model reads about a place: `coordinates` alone, or the `full` prompt. The answer is never in it."""
    blocks = [f"Coordinates: ({place.lat:.5f}, {place.lon:.5f})"]
    if parts == "full":
        near = "\n".join(f"{km:.1f} km {where}: {name}" for km, where, name in place.near)
        blocks += [f'Address: "{place.address}"', f'Nearby Places:\n"\n{near}\n"']
    return "\n\n".join([*blocks, TASK])


def near_distances(places: Sequence[Place]) -> np.ndarray:
    """(N, 10) distances of the nearest places in km, NaN where there are fewer: what the prompt gives away of how
    populated a place is, without a word being understood."""
    found = np.full((len(places), NEAREST), np.nan)
    for row, place in enumerate(places):
        found[row, : len(place.near)] = [km for km, _, _ in place.near]
    return found


def cells(lat: np.ndarray, lon: np.ndarray, degrees: float = 5.0) -> np.ndarray:
    """(N,) the number of the cell of a grid that each point lies in; neighbours share it, so that whole cells are held
    out and not points beside points that were learnt."""
    rows, columns = np.floor((np.asarray(lat) + 90) / degrees), np.floor((np.asarray(lon) + 180) / degrees)
    return np.unique(rows * 1000 + columns, return_inverse=True)[1]


def split(groups: np.ndarray, train: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(training rows, test rows): whole groups in an order drawn by `seed`, until there are `train` rows or more. Give
    each row a group of its own for a random split."""
    order = np.random.default_rng(seed).permutation(groups.max() + 1)
    sizes = np.bincount(groups)[order]
    taken = order[: int(np.searchsorted(np.cumsum(sizes), train)) + 1]
    chosen = np.isin(groups, taken)
    return np.flatnonzero(chosen), np.flatnonzero(~chosen)


def ratings(values: np.ndarray) -> np.ndarray:
    """Ranks as ratings 0.0 to 9.9: floor(100 u) / 10 of u = (average rank - 1) / n, in whole numbers, since floating
    point would truncate 0.29 to 2.8. Equal values share the average of their ranks."""
    values = np.asarray(values, np.float64)
    below = (values[None] < values[:, None]).sum(axis=1)
    ties = (values[None] == values[:, None]).sum(axis=1)
    return np.minimum(100 * (2 * below + ties - 1) // (2 * len(values)), 99) / 10
