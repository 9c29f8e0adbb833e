"""The policy: passes without repeats, mixtures kept, exact state, parts from outside the package."""

import json

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tilth.data.stream import PackedStream
from tilth.recipe import BadInput, Config, parse
from tilth.recipe.frame import OneOf
from tilth.select.mixtures import MIXTURES
from tilth.select.policy import PolicyConfig
from tilth.select.protocols import Mixture, MixtureConfig, Selector, SelectorConfig, Weigher, WeigherConfig
from tilth.select.selectors import SELECTORS
from tilth.select.weighers import WEIGHERS


def policy_of(pool, stretch_units=16, seed=3, **choices):
    return parse(PolicyConfig, choices).build(pool, seed, stretch_units)


class EveryOther(Selector):
    """Odd units only, at most `most` of them now; counts how often it was told of losses."""

    def __init__(self, most):
        self.most, self.told, self.bound = most, 0, None

    def bind(self, probe):
        self.bound = probe

    def select(self, candidates, stretch, rng):
        odd = candidates[candidates % 2 == 1]
        return odd[:self.most]

    def observe(self, unit_id, loss):
        self.told += len(unit_id)

    def state_dict(self):
        return {"told": self.told}

    def load_state_dict(self, state):
        self.told = state["told"]


class EveryOtherConfig(SelectorConfig):
    kind: str = f"{__name__}:EveryOtherConfig"
    most: int = 10

    def build(self, pool, seed):
        return EveryOther(self.most)


class ByLoss(Weigher):
    needs_losses = True

    def weights(self, batch, losses):
        return losses / losses.mean()


class ByLossConfig(WeigherConfig):
    kind: str = f"{__name__}:ByLossConfig"

    def build(self, pool, seed):
        return ByLoss()


class Turns(Mixture):
    """One source a stretch, in turn."""

    def __init__(self, sources):
        self.sources = sources

    def weights(self, stretch):
        return np.eye(self.sources)[stretch % self.sources]


class TurnsConfig(MixtureConfig):
    kind: str = f"{__name__}:TurnsConfig"

    def build(self, pool, seed):
        return Turns(len(pool.sources))


class Broken(SelectorConfig):
    kind: str = f"{__name__}:Broken"
    answer: list[int]

    def build(self, pool, seed):
        selector = Selector()
        selector.select = lambda candidates, stretch, rng: np.array(self.answer, np.int64)
        return selector


@settings(max_examples=30, deadline=None)
@given(stretch_units=st.integers(1, 100), seed=st.integers(0, 5))
def test_a_pass_sees_every_unit_once(pool, stretch_units, seed):
    policy = policy_of(pool, stretch_units, seed)
    stretches = -(-len(pool) // stretch_units)
    drawn = [policy.draw(stretch) for stretch in range(2 * stretches)]
    for part in (drawn[:stretches], drawn[stretches:]):
        assert sorted(np.concatenate(part).tolist()) == list(range(len(pool)))
    assert max(map(len, drawn)) - min(map(len, drawn)) <= 1
    assert max(map(len, drawn)) <= stretch_units


def test_seed_decides_the_order(pool):
    assert (policy_of(pool).draw(0) == policy_of(pool).draw(0)).all()
    assert (policy_of(pool).draw(0) != policy_of(pool, seed=4).draw(0)).any()


@pytest.mark.parametrize("mixture", ["natural", {"kind": "fixed", "weights": {"big": 1, "tiny": 2}},
                                     {"kind": "temperature", "temperature": 3}])
@pytest.mark.parametrize("selector", ["all", {"kind": "random", "keep": 0.5}])
def test_restored_state_draws_the_same(pool, mixture, selector):
    policy = policy_of(pool, mixture=mixture, selector=selector)
    for stretch in range(13):
        restored = policy_of(pool, mixture=mixture, selector=selector)
        restored.load_state_dict(json.loads(json.dumps(policy.state_dict())))
        assert (restored.draw(stretch) == policy.draw(stretch)).all()
        assert restored.report() == policy.report()


def test_state_of_another_pool(pool):
    state = policy_of(pool).state_dict()
    with pytest.raises(BadInput, match="another pool"):
        policy_of(pool).load_state_dict({**state, "units": 7})


def test_fixed_shares_are_kept_and_repeats_counted(pool):
    policy = policy_of(pool, mixture={"kind": "fixed", "weights": {"big": 0.5, "tiny": 1.5}})
    for stretch in range(40):
        drawn = policy.draw(stretch)
        big = drawn[pool.source[drawn] == 0]
        assert len(set(big.tolist())) == len(big)
    by_source = {one["source"]: one for one in policy.report()["sources"]}
    total = sum(one["tokens"] for one in by_source.values())
    assert by_source["tiny"]["tokens"] / total == pytest.approx(0.75, abs=0.01)
    assert by_source["small"]["tokens"] == 0
    assert by_source["tiny"]["passes"] == (by_source["tiny"]["units"] - 1) // 5 > 10


def test_no_unit_repeats_in_a_pass_of_its_source(pool):
    policy = policy_of(pool, mixture={"kind": "temperature", "temperature": 2})
    drawn = np.concatenate([policy.draw(stretch) for stretch in range(30)])
    for number in range(3):
        units = drawn[pool.source[drawn] == number]
        counts = np.bincount(units, minlength=len(pool))[pool.source == number]
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize(("weights", "message"), [
    ({"bigg": 1}, "'bigg', which has no data; did you mean 'big'"), ({"big": 0}, "no source a weight above 0"),
    ({"big": -1}, "is -1"), ({"big": float("nan")}, "is nan")])
def test_fixed_weights_that_cannot_be_used(pool, weights, message):
    with pytest.raises(BadInput, match=message):
        policy_of(pool, mixture={"kind": "fixed", "weights": weights})


def test_temperature_one_is_natural_and_large_is_uniform(pool):
    tokens = np.bincount(pool.source, pool.lengths())
    shares = [policy_of(pool, mixture={"kind": "temperature", "temperature": t}).mixture.weights(0) for t in (1, 1e9)]
    assert shares[0] == pytest.approx(tokens / tokens.sum())
    assert shares[1] == pytest.approx(np.full(3, 1 / 3))


def test_random_keeps_the_same_share_in_every_pass(pool):
    policy = policy_of(pool, 30, selector={"kind": "random", "keep": 0.4})
    first, second = (sorted(np.concatenate([policy.draw(2 * n), policy.draw(2 * n + 1)]).tolist()) for n in (0, 1))
    assert first == second
    assert len(first) == round(0.4 * len(pool)) == policy.report()["selector"]["selected"]


def write_scores(pool, path, change=lambda table: table):
    ids = pool.column("unit_id")[::-1]
    change(pl.DataFrame({"unit_id": ids, "score": [float(name[-3:-2] == "7") for name in ids]})).write_parquet(path)
    return {"kind": "scores", "path": str(path), "keep": 8 / 85}


def test_scores_from_a_file(pool, tmp_path):
    policy = policy_of(pool, 100, selector=write_scores(pool, tmp_path / "s.parquet"))
    names = pool.column("unit_id")[policy.draw(0)]
    assert sorted(names) == ["big17#0", "big27#0", "big37#0", "big47#0", "big57#0", "big7#0", "small17#0",
                             "small7#0"]
    assert parse(PolicyConfig, {"selector": write_scores(pool, tmp_path / "s.parquet")}).files() == [
        tmp_path / "s.parquet"]


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: t[1:], r"does not score 1 unit\(s\), the first 'tiny4#0'"),
    (lambda t: t.vstack(pl.DataFrame({"unit_id": ["x"], "score": [1.0]})), "does not hold, 1 unit.*'x'"),
    (lambda t: t.vstack(t[:1]), "scores more than once"), (lambda t: t.rename({"score": "s"}), "cannot be read"),
    (lambda t: t.with_columns(score=pl.lit(float("nan"))), "not finite"),
    (lambda t: t.with_columns(score=pl.lit(None, pl.Float64)), "not finite"),
    (lambda t: t.with_columns(score=pl.lit("a")), "as a number")])
def test_scores_that_do_not_match_the_pool(pool, tmp_path, change, message):
    with pytest.raises(BadInput, match=message):
        policy_of(pool, selector=write_scores(pool, tmp_path / "s.parquet", change))


def test_parts_from_outside_the_package(pool):
    policy = policy_of(pool, mixture=f"{__name__}:TurnsConfig", weigher=f"{__name__}:ByLossConfig",
                       selector={"kind": f"{__name__}:EveryOtherConfig", "most": 50})
    policy.bind("the probe")
    assert policy.selector.bound == "the probe"
    for stretch in range(9):
        drawn = policy.draw(stretch)
        assert (drawn % 2 == 1).all()
        assert set(pool.source[drawn].tolist()) == {stretch % 3}
    stream = PackedStream(pool, policy, 32, seed=1)
    batch = stream.next(4)
    losses = torch.arange(1.0, len(batch["unit_id"]) + 1)
    assert stream.needs_losses
    assert torch.equal(stream.weights(batch, losses), losses / losses.mean())
    stream.observe(batch["unit_id"], losses)
    other = policy_of(pool, selector=f"{__name__}:EveryOtherConfig")
    other.load_state_dict(policy.state_dict())
    assert other.selector.told == len(losses)


def test_selection_in_stages_never_repeats_within_a_pass(pool):
    policy = policy_of(pool, selector={"kind": f"{__name__}:EveryOtherConfig", "most": 9})
    odd = len(pool) // 2
    drawn = np.concatenate([policy.draw(stretch) for stretch in range(-(-odd // 9))])
    assert sorted(drawn.tolist()) == list(range(1, len(pool), 2))


@pytest.mark.parametrize(("answer", "message"), [([], "selects no unit"), ([10_000], "not among the candidates")])
def test_a_selector_that_goes_wrong_is_loud(pool, answer, message):
    with pytest.raises(BadInput, match=message):
        policy_of(pool, selector={"kind": f"{__name__}:Broken", "answer": answer}).draw(0)


@pytest.mark.parametrize("needed", ["tiny", "big"])
def test_a_mixture_that_needs_what_the_selector_leaves_out(pool, needed):
    selector = {"kind": f"{__name__}:EveryOtherConfig", "most": 10_000}
    policy = policy_of(pool, selector=selector, mixture={"kind": "fixed", "weights": {needed: 1}})
    drawn = np.concatenate([policy.draw(stretch) for stretch in range(5)])
    assert {pool.sources[number] for number in pool.source[drawn]} == {needed}


def test_only_known_keys_and_kinds(pool):
    with pytest.raises(BadInput, match="did you mean 'selector'"):
        parse(PolicyConfig, {"selecter": "all"})
    with pytest.raises(BadInput, match=r"`selector\.kind` is 'al'"):
        parse(PolicyConfig, {"selector": "al"})
    with pytest.raises(BadInput, match="does not derive from"):
        parse(PolicyConfig, {"selector": f"{__name__}:EveryOther"})


def test_every_kind_is_named_as_it_is_known():
    for known in (MIXTURES, SELECTORS, WEIGHERS):
        assert all(OneOf(Config, known).resolve(name, "kind").model_fields["kind"].default == name for name in known)


def test_a_stream_over_a_mixture_resumes_exactly(pool):
    choices = {"mixture": {"kind": "fixed", "weights": {"big": 1, "tiny": 1}}}
    stream = PackedStream(pool, policy_of(pool, **choices), 24, seed=2)
    for _ in range(20):
        state = json.loads(json.dumps(stream.state_dict()))
        batch = stream.next(3)
        resumed = PackedStream(pool, policy_of(pool, **choices), 24, seed=2)
        resumed.load_state_dict(state)
        again = resumed.next(3)
        assert all(torch.equal(batch[key], again[key]) for key in batch)
