"""Geographic probing: geometry worked by hand, prompts without the answer, splits that hold out, honest rivals."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilth.analyze.geography import (
    Cities,
    bearing,
    cells,
    direction,
    distances_km,
    near_distances,
    prompt,
    ratings,
    read_cities,
    sample_places,
    split,
    unit_vectors,
)
from tilth.analyze.geography_probe import GeographyConfig, agreement, nearest, predict, ridge, summary
from tilth.evaluate.likelihood import Likelihood
from tilth.evaluate.score import Scorer
from tilth.models import TransformerConfig
from tilth.recipe import BadInput


class Bytes:
    """Token = byte."""

    end_of_text = 256

    def encode_batch(self, texts):
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int64) for text in texts]


HEADER = "name,lat,lon,country,admin1,population,timezone\n"


def cities(n=400, seed=0):
    rng = np.random.default_rng(seed)
    lat, lon = rng.uniform(40, 55, n), rng.uniform(-5, 25, n)
    return Cities([f"Town {at}" for at in range(n)], lat, lon, np.round(10 ** rng.uniform(4.2, 6, n)), ["X, YY, Z"] * n)


def write_csv(path, table):
    rows = [f"{name},{lat},{lon},YY,X,{int(population)},Z" for name, lat, lon, population in
            zip(table.names, table.lat, table.lon, table.population, strict=True)]
    path.write_text(HEADER + "\n".join(rows) + "\n")
    return path


def test_bearings_worked_by_hand():
    assert bearing(48.8566, 2.3522, 51.5074, -0.1278) == pytest.approx(330.021, abs=5e-4)
    assert direction(330.021) == "North-West"
    assert bearing(0, 0, 0, 1) == pytest.approx(90) and direction(90) == "East"
    assert bearing(0, 0, 1, 0) == pytest.approx(0) and bearing(5, 5, 5, 5) == 0
    assert bearing(0, 0, 1, 1) == pytest.approx(44.9956, abs=5e-5) and direction(44.9956) == "North-East"
    assert direction(337.4) == "North-West" and direction(337.5) == direction(359.9) == "North"


def test_distances_on_the_sphere():
    paris, london = unit_vectors(np.array([48.8566]), np.array([2.3522])), unit_vectors(np.array([51.5074]),
                                                                                     np.array([-0.1278]))
    assert distances_km(paris, london)[0, 0] == pytest.approx(343.6, abs=0.5)
    assert distances_km(paris, paris)[0, 0] < 1e-3
    assert distances_km(paris, -paris)[0, 0] == pytest.approx(np.pi * 6371.0088)


def test_ratings_are_ranks_in_whole_numbers():
    assert ratings(np.array([5, 1, 3, 3, 10])).tolist() == [6.0, 0.0, 3.0, 3.0, 8.0]
    assert ratings(np.arange(100)).tolist() == [at / 10 for at in range(100)]  # 0.29, 0.57, 0.58 are not cut short
    assert ratings(np.array([7.0, 7.0])).tolist() == [2.5, 2.5]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=40))
def test_ratings_keep_the_order(values):
    found = ratings(np.array(values))
    assert found.min() >= 0 and found.max() <= 9.9
    order = np.argsort(values, kind="stable")
    assert np.all(np.diff(found[order]) >= 0)


def test_a_prompt_says_where_and_what_is_near_but_not_the_answer():
    for place in sample_places(cities(), 60, 3):
        text = prompt(place)
        lat, lon = map(float, re.search(r"\((-?[\d.]+), (-?[\d.]+)\)", text).groups())
        assert abs(lat - place.lat) < 1e-5 and abs(lon - place.lon) < 1e-5
        km = [float(one) for one in re.findall(r"^([\d.]+) km", text, re.M)]
        assert len(km) <= 10 and km == sorted(km) and all(one <= 100 for one in km)
        assert f"{place.population:.0f}" not in text.replace("60 km", "") or place.population == 0
        assert prompt(place, "coordinates").count("\n") < 4 and "km North" not in prompt(place, "coordinates")


def test_places_are_those_of_the_seed():
    known = cities()
    assert sample_places(known, 20, 1) == sample_places(known, 20, 1) != sample_places(known, 20, 2)
    with pytest.raises(BadInput, match="only 400 cities"):
        sample_places(known, 401, 0)


def test_whole_cells_are_held_out():
    rng = np.random.default_rng(0)
    lat, lon = rng.uniform(-80, 80, 500), rng.uniform(-180, 180, 500)
    groups = cells(lat, lon)
    train, test = split(groups, 150, 0)
    assert len(train) >= 150 and len(train) + len(test) == 500 and not set(groups[train]) & set(groups[test])
    assert len(split(np.arange(500), 150, 0)[0]) == 150


def test_ridge_finds_what_is_linear_and_the_sign_is_kept():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 8))
    y = x @ rng.standard_normal(8)
    said = ridge(x[:200], y[:200], x[200:], np.arange(200))
    assert agreement(said, y[200:])["r2"] > 0.99
    assert agreement(-said, y[200:])["r"] < -0.99
    assert agreement(np.zeros(100), y[200:]) == {"r": 0.0, "r2": 0.0, "n": 100}
    noise = ridge(rng.standard_normal((200, 8)), y[:200], x[200:], np.arange(200))
    assert agreement(noise, y[200:])["r2"] < 0.1


def test_neighbours_look_well_only_where_they_may_stand_beside_the_test():
    pytest.importorskip("sklearn")
    table = cities(600)
    # Populations that vary from region to region alone: interpolation gets them, extrapolation does not.
    table.population[:] = 1e4 * (1 + np.floor(table.lat / 5) % 2 * 50)
    places = sample_places(table, 500, 0)
    lat, lon = np.array([place.lat for place in places]), np.array([place.lon for place in places])
    apart = predict(places, {}, cells(lat, lon, 10), 200, 0)
    mixed = predict(places, {}, np.arange(500), 200, 0)
    assert mixed["nearest points"]["r2"] > apart["nearest points"]["r2"] + 0.15
    assert near_distances(places).shape == (500, 10)
    assert nearest(unit_vectors(lat, lon), lat, unit_vectors(lat, lon), 1) == pytest.approx(lat)


def test_a_model_is_probed_beside_its_rivals(tmp_path):
    pytest.importorskip("sklearn")
    path = write_csv(tmp_path / "cities.csv", cities(120))
    model = TransformerConfig(layers=1, width=16, heads=2, feed_forward=32, context=512, vocab_size=257).build()
    scorer = Scorer(Likelihood(model.initialize(0), length=512), Bytes(), quiet=True)
    found = GeographyConfig(data=str(path), points=80, train=40, seeds=2, cell_degrees=3).run(scorer)
    assert set(found) == {"blocked", "random"}
    assert {name: len(runs) for name, runs in found["blocked"].items()} == {
        "probe, coordinates prompt": 2, "probe, full prompt": 2, "trees, coordinates": 2, "nearest points": 2,
        "trees, distances": 2}
    assert found == GeographyConfig(data=str(path), points=80, train=40, seeds=2, cell_degrees=3).run(scorer)
    assert len(summary(found)) == 10
    with pytest.raises(BadInput, match="below `points`"):
        GeographyConfig(data=str(path), points=50, train=50).run(scorer)


def test_a_table_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "bad.csv").write_text("name,lat\nA,1\n")
    with pytest.raises(BadInput, match="no column lon"):
        read_cities(tmp_path / "bad.csv")
    (tmp_path / "odd.csv").write_text(HEADER + "A,x,1,F,R,5,T\n")
    with pytest.raises(BadInput, match="something else than a number"):
        read_cities(tmp_path / "odd.csv")
    with pytest.raises(BadInput, match="Could not read"):
        read_cities(tmp_path / "none.csv")


@pytest.mark.skipif("TILTH_DATA" not in os.environ, reason="the table of cities is not part of the package")
def test_the_rivals_on_real_cities_are_as_published_runs_have_them():
    pytest.importorskip("sklearn")
    table = read_cities(Path(os.environ["TILTH_DATA"]) / "geo" / "cities15000.csv")
    found = predict(sample_places(table, 3000, 0), {}, np.arange(3000), 1000, 0)
    assert 0.3 < found["nearest points"]["r2"] < 0.45
    assert 0.6 < found["trees, distances"]["r2"] < 0.75
