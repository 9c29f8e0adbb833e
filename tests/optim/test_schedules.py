"""Exact values of the learning-rate schedules."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilth.optim import SCHEDULES, WSD, Constant, Cosine, Schedule
from tilth.recipe import Config, parse
from tilth.recipe.frame import one_of


def values(schedule: Schedule, steps: int) -> list[float]:
    return [schedule.multiplier(step, steps) for step in range(steps)]


def test_warmup_as_steps_and_as_a_share_rises_linearly_to_one():
    assert values(Constant(warmup=4), 8) == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]
    assert values(Constant(warmup=0.5), 8) == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]
    assert values(Constant(warmup=0), 3) == [1, 1, 1]
    assert values(Constant(warmup=1), 3) == [1, 1, 1]


@pytest.mark.parametrize("floor", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("warmup", "steps"), [(0, 11), (3, 11), (0.02, 100), (0, 2)])
def test_cosine_starts_at_one_and_reaches_its_floor_at_the_last_step(floor, warmup, steps):
    found = values(Cosine(warmup=warmup, floor=floor), steps)
    warm = warmup if warmup >= 1 else round(warmup * steps)
    assert found[int(warm)] == 1.0
    assert found[-1] == pytest.approx(floor, abs=1e-12)


def test_cosine_is_half_way_in_the_middle():
    assert Cosine(warmup=0, floor=0.2).multiplier(5, 11) == pytest.approx(0.6)
    assert Cosine(warmup=0, floor=0).multiplier(2, 9) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


@pytest.mark.parametrize(("shape", "expected"), [
    ("linear", [0.8, 0.6, 0.4, 0.2]),
    ("one_minus_sqrt", [1 - math.sqrt(k / 5) for k in (1, 2, 3, 4)]),
    ("cosine", [1 - 0.5 * (1 - math.cos(math.pi * k / 5)) for k in (1, 2, 3, 4)]),
])
@pytest.mark.parametrize("decay", [4, 0.4])
def test_wsd_is_stable_then_falls_in_its_shape_and_wastes_no_step_at_zero(shape, expected, decay):
    found = values(WSD(warmup=0, decay=decay, shape=shape), 10)
    assert found[:6] == [1.0] * 6
    assert found[6:] == pytest.approx(expected)
    assert found[-1] > 0


def test_wsd_floor_scales_the_fall_and_the_share_is_of_what_follows_the_warmup():
    assert values(WSD(warmup=0, decay=4, floor=0.5), 10)[6:] == pytest.approx([0.9, 0.8, 0.7, 0.6])
    assert values(WSD(warmup=2, decay=0.5), 10) == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    assert values(WSD(warmup=0, decay=1), 4) == pytest.approx([0.8, 0.6, 0.4, 0.2])
    assert values(WSD(warmup=0, decay=0), 4) == [1, 1, 1, 1]


@given(kind=st.sampled_from(sorted(SCHEDULES)), warmup=st.one_of(st.floats(0, 0.99), st.integers(1, 50)),
       steps=st.integers(1, 200))
def test_every_schedule_stays_between_zero_and_one_rises_then_never_rises_again(kind, warmup, steps):
    class Holder(Config):
        schedule: one_of(Schedule, SCHEDULES)

    found = values(parse(Holder, {"schedule": {"kind": kind, "warmup": warmup}}).schedule, steps)
    assert all(0 <= value <= 1 for value in found)
    peak = found.index(max(found))
    assert found[:peak + 1] == sorted(found[:peak + 1])
    assert found[peak:] == sorted(found[peak:], reverse=True)
