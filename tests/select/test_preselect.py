"""PreSelect: the published worked values, labels, what is found in a pool, and the negative control."""

import numpy as np
import polars as pl
import pytest

from tilth.data.pool import Pool, PoolWriter, token_field
from tilth.recipe import BadInput, parse
from tilth.select.policy import PolicyConfig
from tilth.select.preselect import labels, predictive_strength

MODELS = [f"m{number}" for number in range(6)]


def test_worked_values():
    losses = np.array([[0.60, 0.58, 0.59, 0.55, 0.56, 0.50], [6, 5, 4, 3, 2, 1], [1, 2, 3, 4, 5, 6], [2] * 6])
    assert predictive_strength(losses) == pytest.approx([13 / 15, 1, 0, 0])
    for other in (losses * 7.3, losses + 2.5):
        assert (predictive_strength(other) == predictive_strength(losses)).all()
    random = predictive_strength(np.random.default_rng(0).normal(size=(20_000, 6)))
    assert sorted(set(np.round(random * 15).astype(int).tolist())) == list(range(16))
    assert np.allclose(random * 15, np.round(random * 15))


def test_labels_are_the_extremes():
    strength = np.array([1.0, 0.2, 1.0, 0.0, 0.6, 0.4])
    good, bad = labels(strength, "strength", None, np.random.default_rng(0))
    assert good.tolist() == [0, 2] and bad.tolist() == [1, 3]
    good, bad = labels(np.arange(50.0), "gap", None, np.random.default_rng(0))
    assert good.tolist() == [45, 46, 47, 48, 49] and bad.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(BadInput, match="weakest first"):
        labels(np.zeros(5), "strength", None, np.random.default_rng(0))


@pytest.mark.parametrize(("positives", "said"), [(99, True), (100, False)])
def test_few_positives_are_said_aloud(positives, said, capfd):
    strength = np.repeat([1.0, 0.0], [positives, 1000])
    assert len(labels(strength, "strength", None, np.random.default_rng(0))[0]) == positives
    assert ("only 99 of 1099 units" in capfd.readouterr().err) == said


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """400 units of structure and 400 of junk, which prefer other tokens."""
    folder, rng = tmp_path_factory.mktemp("pool"), np.random.default_rng(0)
    with PoolWriter(folder, {"tokens": token_field(60)}, vocab_size=60, end_of_text=0) as writer:
        for source, low in (("text", 1), ("junk", 21)):
            names = [f"{source}{number}" for number in range(400)]
            writer.append({"tokens": [rng.integers(low, low + 39, rng.integers(20, 60)) for _ in names]},
                          {"unit_id": names, "record_id": names, "source": [source] * 400})
    return Pool.open(folder)


def write_losses(pool, path, seed=0):
    """Losses on every other unit: on text the better models are better, on junk nobody is."""
    rng, ids = np.random.default_rng(seed), pool.column("unit_id")[::2]
    text = np.array([name.startswith("text") for name in ids])
    losses = 3 + rng.normal(0, 0.05, (len(ids), 6)) - text[:, None] * 0.2 * np.arange(6)
    pl.DataFrame({"unit_id": ids, **{name: losses[:, place] for place, name in enumerate(MODELS)}}).write_parquet(path)
    return {"kind": "preselect", "losses": str(path), "models": MODELS, "keep": 0.3}


def draw(pool, selector):
    policy = parse(PolicyConfig, {"selector": selector}).build(pool, 1)
    return policy.draw(0), policy.report()["selector"]


@pytest.mark.parametrize("label", ["strength", "gap"])
def test_what_predicts_is_selected(pool, tmp_path, label):
    drawn, report = draw(pool, {**write_losses(pool, tmp_path / "l.parquet"), "label": label})
    assert (pool.source[drawn] == 0).mean() > 0.95 and (drawn % 2 == 1).all()
    lengths = pool.lengths()
    assert lengths[drawn].sum() / lengths[1::2].sum() == pytest.approx(0.3, abs=0.02)
    assert report["mean_tokens"] == pytest.approx(report["mean_tokens_of_pool"], rel=0.1)
    assert all(int(token) <= 20 for token in report["speaks_for"][:15])
    assert all(int(token) >= 40 for token in report["speaks_against"][:15])


def test_a_shuffled_order_of_ability_finds_nothing(pool, tmp_path):
    """The negative control: strength no longer tells text from junk."""
    selector = write_losses(pool, tmp_path / "l.parquet")
    losses = pl.read_parquet(tmp_path / "l.parquet")
    text = losses["unit_id"].str.starts_with("text").to_numpy()
    right, wrong = (predictive_strength(losses.select(order).to_numpy()) for order in
                    (MODELS, ["m3", "m0", "m5", "m2", "m4", "m1"]))
    assert right[text].mean() > 0.95 and abs(right[~text].mean() - 0.5) < 0.05
    assert abs(wrong[text].mean() - wrong[~text].mean()) < 0.15
    backwards = {**selector, "models": MODELS[::-1], "label": "gap"}
    assert (pool.source[draw(pool, backwards)[0]] == 0).mean() < 0.1


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: t.with_columns(unit_id=pl.lit("x")), "does not hold, 'x'"), (lambda t: t.drop("m3"), "cannot be read"),
    (lambda t: t.vstack(t[:1]), "a unit twice"), (lambda t: t[:0], "names no unit"),
    (lambda t: t.with_columns(m1=pl.lit(None, pl.Float64)), "not finite")])
def test_losses_that_do_not_match(pool, tmp_path, change, message):
    selector = write_losses(pool, tmp_path / "l.parquet")
    change(pl.read_parquet(tmp_path / "l.parquet")).write_parquet(tmp_path / "l.parquet")
    with pytest.raises(BadInput, match=message):
        draw(pool, selector)
