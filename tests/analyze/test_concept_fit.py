"""Performance against the logarithm of counts: what planted data give back, and what is known of released tables."""

import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tilth.analyze.concepts import ConceptFit, binned, joined
from tilth.recipe import BadInput
from tilth.select.statistics import spearman

FIT = ConceptFit(resamples=200)
MATCHED = "integrated_tlemmatized_i0.7"
released = pytest.mark.skipif("TILTH_DATA" not in os.environ, reason="TILTH_DATA names no folder with scaling/")


def planted(slope=8.0, noise=5.0, levels=(20.0, 60.0), shift=1.5, concepts=300, seed=0):
    """Data sets whose frequent concepts go with a high level: the confounder."""
    rng = np.random.default_rng(seed)
    parts = []
    for number, level in enumerate(levels):
        log = rng.uniform(0, 3, concepts) + shift * number
        parts.append(pl.DataFrame({"dataset": [str(number)] * concepts, "count": (10**log).astype(int),
                                   "performance": level + slope * log + rng.normal(0, noise, concepts)}))
    return pl.concat(parts)


def test_a_planted_slope_is_found_within_data_sets_and_overstated_across_them():
    found = FIT.run(planted())
    low, high = found["points_per_decade_within"]["interval"]
    assert low < 8 < high and high - low < 2
    assert found["points_per_decade"]["interval"][0] > 15, "levels of data sets go with their frequencies"
    assert found["r_within_datasets"]["mean"] > 0.5 and found["bins"]["r"] > 0.7


def test_shuffled_counts_leave_no_slope():
    table = planted(levels=(20.0,))
    shuffled = table.with_columns(count=table["count"].shuffle(seed=1))
    low, high = FIT.run(shuffled)["points_per_decade"]["interval"]
    assert low < 0 < high and FIT.run(table)["points_per_decade"]["interval"][0] > 0


def test_what_happens_to_zeros():
    table = planted(levels=(20.0,))
    zeros = pl.DataFrame({"dataset": ["0"] * 50, "count": [0] * 50, "performance": [90.0] * 50})
    with_zeros = pl.concat([table, zeros])
    dropped, as_one = FIT.run(with_zeros), ConceptFit(resamples=200, zeros="as_one").run(with_zeros)
    assert dropped["zeros"] == as_one["zeros"] == 50 and as_one["fitted"] - dropped["fitted"] == 50
    assert dropped["points_per_decade"] == FIT.run(table)["points_per_decade"]
    assert as_one["points_per_decade"]["value"] < dropped["points_per_decade"]["value"]
    assert "first bin" in dropped["zeros_are"]


def test_bins():
    found = binned(np.array([0, 1, 9, 99, 1000]), np.array([0.0, 2, 10, 20, 30]), bins=4, skip_first=1, skip_last=0)
    assert found["sizes"] == [2, 1, 1, 1] and found["means"] == [1, 10, 20, 30] and found["r"] == pytest.approx(1)
    assert found["edges"] == pytest.approx([1, 10, 100, 1000])
    empty = binned(np.array([1, 1000]), np.array([0.0, 30]), bins=4)
    assert empty["sizes"] == [1, 0, 0, 1] and empty["means"][1] is None and empty["r"] is None


def test_tables_are_joined_by_name():
    counts = pl.DataFrame({"concept": ["dog", "airplane", "cat"], "count": [3, 5, 1]})
    accuracy = pl.DataFrame({"concept": ["plane", "cat"], "accuracy": [50.0, 70.0]})
    found = joined(counts, accuracy, {"plane": "airplane"}).sort("concept")
    assert found.rows() == [("airplane", 5, 50.0), ("cat", 1, 70.0)]
    with pytest.raises(BadInput, match="'dog' more than once"):
        joined(pl.concat([counts, counts[:1]]), accuracy)
    with pytest.raises(BadInput, match="same name"):
        joined(counts, pl.DataFrame({"concept": ["x"], "accuracy": [1.0]}))


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(BadInput, match="no column performance"):
        FIT.run(pl.DataFrame({"count": [1, 2]}))
    with pytest.raises(BadInput, match="a slope needs two"):
        FIT.run(pl.DataFrame({"count": [3, 3, 0], "performance": [1.0, 2, 3]}))


# The tables released by Udandarao et al. 2024.


@pytest.fixture(scope="module")
def tables():
    if "TILTH_DATA" not in os.environ:
        pytest.skip("TILTH_DATA names no folder with scaling/")
    folder = Path(os.environ["TILTH_DATA"]) / "scaling"
    return [pl.read_csv(folder / f"concept_{name}.tsv.zst", separator="\t") for name in ("counts", "accuracy")]


def of(tables, model, trained_on):
    counts, accuracy = tables
    return joined(counts.filter(kind=MATCHED, pretraining_set=trained_on),
                  accuracy.filter(pl.col("dataset") != "imagenet-r", model=f"backbone{model}_pretrained{trained_on}",
                                  prompts="ensemble"), {"plane": "airplane"})


@released
def test_released_counts_of_cifar10(tables):
    found = tables[0].filter(kind=MATCHED, pretraining_set="cc3m", dataset="cifar10")
    assert dict(found.select("concept", "count").rows()) == {
        "airplane": 2954, "car": 41226, "bird": 9932, "cat": 16446, "deer": 3155, "dog": 28178, "frog": 1455,
        "horse": 15929, "ship": 7126, "truck": 5516}


@released
@pytest.mark.parametrize(("model", "trained_on", "bins", "each", "within", "points", "zeros"), [
    ("RN50", "cc3m", .961, .424, .358, 10.5, 2477), ("ViT-B-16", "cc3m", .970, .397, .341, 9.5, 2477),
    ("ViT-B-16", "cc12m", .923, .389, .240, 9.9, 1966), ("ViT-B-16", "yfcc15m", .975, .236, .160, 6.5, 2058),
    ("ViT-B-16", "laion400m", .976, .295, .125, 5.5, 1740), ("ViT-L-14", "laion400m", .944, .292, .112, 5.3, 1740),
    ("ViT-B-16", "synthci30m", .940, .316, .249, 6.9, 2043)])
def test_released_tables_give_the_known_correlations(tables, model, trained_on, bins, each, within, points, zeros):
    fit = ConceptFit(resamples=100, skip_first=2 if trained_on == "laion400m" else 1)
    found = fit.run(of(tables, model, trained_on))
    assert (found["concepts"], found["datasets"], found["zeros"]) == (4469, 18, zeros)
    assert found["bins"]["r"] == pytest.approx(bins, abs=.001)
    assert found["r"] == pytest.approx(each, abs=.001)
    assert found["r_within_datasets"]["mean"] == pytest.approx(within, abs=.001)
    assert found["points_per_decade"]["value"] == pytest.approx(points, abs=.06)


@released
def test_released_bin_sizes(tables):
    assert FIT.run(of(tables, "ViT-B-16", "cc3m"))["bins"]["sizes"] == [
        2640, 81, 116, 128, 224, 345, 391, 260, 170, 75, 29, 10]


@released
@pytest.mark.parametrize(("one", "other", "rho"), [("cc3m", "cc12m", .916), ("cc3m", "yfcc15m", .889),
                                                   ("cc12m", "laion400m", .833)])
def test_released_counts_agree_between_sets_of_training_data_by_name(tables, one, other, rho):
    parts = [tables[0].filter(kind=MATCHED, pretraining_set=name).select("concept", "count").unique("concept")
             for name in (one, other)]
    both = parts[0].join(parts[1], on="concept")
    assert spearman(both["count"].to_numpy(), both["count_right"].to_numpy()) == pytest.approx(rho, abs=.002)
    if other == "cc12m":
        assert len(both) == 3775
