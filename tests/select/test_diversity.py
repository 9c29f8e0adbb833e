"""Draws that care how alike units are: without a cap or a strength plain Gumbel-top-k; copies do not fill a draw."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilth.recipe import parse
from tilth.recipe.frame import OneOf
from tilth.select.diversity import DIVERSITIES, Diversity, Facility, Quota, ScoreAlone, greedy, mean_cosine, rank_within
from tilth.select.embedding import clusters, embed, normalised
from tilth.select.policy import PolicyConfig
from tilth.select.reference import TokenArrays


class Pool(TokenArrays):
    vocab_size = 40


@pytest.fixture(scope="module")
def copies():
    """30 near copies of one text, which score best, and 90 different ones."""
    rng = np.random.default_rng(0)
    text = rng.integers(1, 40, 60)
    alike = [np.where(rng.random(60) < 0.03, rng.integers(1, 40, 60), text) for _ in range(30)]
    return Pool([*alike, *(rng.integers(1, 40, 60) for _ in range(90))], 0)


SCORES = np.concatenate([np.linspace(2.0, 2.2, 30), np.linspace(-1, 1, 90)])
UNITS = np.arange(120)


@pytest.mark.parametrize("temperature", [0.0, 0.5])
@pytest.mark.parametrize("choice", [Quota(cap=1e6), Facility(strength=0)], ids=["quota", "facility"])
def test_without_a_cap_or_a_strength_it_is_the_plain_draw(copies, choice, temperature):
    plain, _ = ScoreAlone().draw(copies, UNITS, SCORES, 30, temperature, np.random.default_rng(1))
    found, figures = choice.draw(copies, UNITS, SCORES, 30, temperature, np.random.default_rng(1))
    assert found.tolist() == plain.tolist()
    assert figures["likeness"] > figures["likeness_of_window"] or temperature


@pytest.mark.parametrize(("choice", "most"), [(Quota(cap=1.0, clusters=8), 10), (Facility(strength=10.0), 15)])
def test_copies_do_not_fill_the_draw(copies, choice, most):
    plain, _ = ScoreAlone().draw(copies, UNITS, SCORES, 30, 0, np.random.default_rng(1))
    assert (plain < 30).all()
    found, figures = choice.draw(copies, UNITS, SCORES, 30, 0.0, np.random.default_rng(1))
    assert 0 < (found < 30).sum() <= most
    assert len(set(found.tolist())) == 30
    assert figures["likeness"] < 0.5 * mean_cosine(embed(copies, UNITS)[plain])


@given(seed=st.integers(0, 1000), count=st.integers(1, 20), strength=st.floats(0, 5))
def test_lazy_greedy_is_greedy(seed, count, strength):
    rng = np.random.default_rng(seed)
    vectors, keys = normalised(rng.normal(size=(20, 4)).astype(np.float32)), rng.normal(size=20)
    alike = np.maximum(vectors @ vectors.T, 0)
    covered, taken = np.zeros(20), []
    for place in greedy(keys, vectors, count, strength):
        gains = keys + strength * count / 20 * np.maximum(alike - covered, 0).sum(1)
        gains[taken] = -np.inf
        assert gains[place] >= gains.max() - 1e-4
        taken.append(int(place))
        covered = np.maximum(covered, alike[place])
    assert len(set(taken)) == count


@given(seed=st.integers(0, 1000), cap=st.floats(1, 3), count=st.integers(1, 60))
def test_a_quota_holds_and_the_draw_is_full(seed, cap, count):
    rng = np.random.default_rng(seed)
    pool = Pool([rng.integers(1, 6, 10) for _ in range(60)], 0)
    choice = Quota(cap=cap, clusters=4)
    found, _ = choice.draw(pool, np.arange(60), rng.normal(size=60), count, 0.5, np.random.default_rng(seed))
    assert len(set(found.tolist())) == count


def test_clusters_are_found_again():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 32))
    vectors = normalised((np.repeat(centres, 40, axis=0) + 0.1 * rng.normal(size=(120, 32))).astype(np.float32))
    place, near = clusters(vectors, 3, np.random.default_rng(2))
    again, _ = clusters(vectors, 3, np.random.default_rng(2))
    assert (place == again).all() and near.min() > 0.8
    assert all(len(set(place[first:first + 40].tolist())) == 1 for first in (0, 40, 80))


def test_embeddings_know_copies_and_orders_of_magnitude(copies):
    vectors = embed(copies, UNITS)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert mean_cosine(vectors[:30]) > 0.6 and abs(mean_cosine(vectors[30:])) < 0.2
    assert (embed(copies, UNITS) == vectors).all()
    assert not embed(Pool([np.zeros(0, int), np.arange(5)], 0), np.arange(2))[0].any()


def test_ranks_within_groups():
    assert rank_within(np.array([2, 1, 2, 2, 1])).tolist() == [0, 0, 1, 2, 1]


@pytest.mark.parametrize("kind", ["quota", "facility"])
def test_selectors_take_it(pool, kind):
    policy = parse(PolicyConfig, {"selector": {"kind": "importance", "keep": 0.3, "diversity": {"kind": kind},
                                               "reference": {"share": 0.2}}}).build(pool, 1)
    report = policy.report()["selector"]
    assert report["selected"] == round(0.3 * (len(pool) - report["held_back"])) and "likeness" in report


def test_every_diversity_draws_what_it_is_asked_for(copies):
    for name in DIVERSITIES:
        choice = OneOf(Diversity, DIVERSITIES).resolve({"kind": name}, "diversity")()
        found, _ = choice.draw(copies, UNITS, SCORES, 17, 0.5, np.random.default_rng(0))
        assert len(found) == 17 and choice.flops(120.0, 7200.0) >= 0
