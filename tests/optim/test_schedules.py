"""Exact values of the learning-rate schedules."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilth.optim import SCHEDULES, WSD, Constant, Cosine, Moment, Power, Schedule
from tilth.optim.schedules import exponential_fall
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


def test_an_exponential_decay_halves_every_so_many_steps():
    """The schedule of MATES at a peak of 1e-3: step 1,000 of the warm-up 5e-4; decay step 50 5e-4, step 200 6.25e-5."""
    found = values(WSD(warmup=2000, decay=200, shape="exponential", floor=1 / 16), 10_000)
    assert [1e-3 * found[step - 1] for step in (1000, 2000, 9800, 9850, 10_000)] == pytest.approx(
        [5e-4, 1e-3, 1e-3, 5e-4, 6.25e-5])
    with pytest.raises(ValueError, match="give a `floor`"):
        WSD(shape="exponential")
    assert values(WSD(warmup=0, decay=0), 4) == [1, 1, 1, 1]


@given(kind=st.sampled_from(sorted(SCHEDULES)), warmup=st.one_of(st.floats(0, 0.99), st.integers(1, 50)),
       steps=st.integers(1, 200))
def test_every_schedule_stays_between_zero_and_one_rises_then_never_rises_again(kind, warmup, steps):
    class Holder(Config):
        schedule: one_of(Schedule, SCHEDULES)

    more = {"warmup_tokens": warmup * 100, "a": 0.1, "decay": 0.3} if kind == "power" else {"warmup": warmup}
    schedule = parse(Holder, {"schedule": {"kind": kind, **more}}).schedule
    found = [schedule.factor(Moment(step, steps, batch_tokens=100), 0.01) for step in range(steps)]
    assert all(0 <= value <= 1 for value in found)
    peak = found.index(max(found))
    assert found[:peak + 1] == sorted(found[:peak + 1])
    assert found[peak:] == sorted(found[peak:], reverse=True)


def test_cosine_with_an_absolute_floor_ends_at_that_rate_whatever_the_peak():
    for peak in (1e-2, 3e-4):
        rates = [Cosine(warmup=2, floor_lr=1e-5).factor(Moment(step, 20), peak) * peak for step in range(20)]
        assert rates[2] == pytest.approx(peak)
        assert rates[-1] == pytest.approx(1e-5)
    below = [Cosine(warmup=0, floor_lr=1e-3).factor(Moment(step, 5), 1e-4) for step in range(5)]
    assert below == [1.0] * 5


SEQUENCE = 4096  # tokens; the paper counts its batch in sequences of so many


def eta(tokens, sequences, warmup_tokens=0.0, cap=0.02):
    return Power(warmup_tokens=warmup_tokens).rate(tokens, sequences * SEQUENCE, cap)


@pytest.mark.parametrize(("tokens", "sequences", "expected"), [
    (1e9, 1024, 0.02), (1e10, 1024, 0.02), (1e11, 1024, 0.010054), (1e12, 1024, 0.003107), (1e13, 1024, 0.000960),
    (1e9, 128, 0.013160), (1e10, 128, 0.004067), (1e11, 128, 0.001257), (1e12, 128, 0.000388), (1e13, 128, 0.000120)])
def test_power_scheduler_gives_the_worked_values(tokens, sequences, expected):
    assert eta(tokens, sequences) == pytest.approx(expected, abs=6e-7)


def test_power_cap_ends_where_the_power_meets_it_and_powers_scale():
    end = (1024 * 4 / 0.02) ** (1 / 0.51)
    assert end == pytest.approx(2.596e10, rel=1e-3)
    assert eta(end * 0.999, 1024) == 0.02 > eta(end * 1.001, 1024)
    assert eta(2e11, 1024) / eta(1e11, 1024) == pytest.approx(2**-0.51) == pytest.approx(0.7022, abs=1e-4)
    assert eta(1e12, 256) == pytest.approx(2 * eta(1e12, 128))
    early = (128 * 4 / 0.02) ** (1 / 0.51)
    assert early == pytest.approx(4.4e8, rel=0.02)
    assert eta(early * 0.999, 128) == 0.02 > eta(early * 1.001, 128)
    assert eta(0, 128) == 0.02, "at n = 0 the power is infinite and the cap holds"


def test_power_of_the_papers_equation_and_of_its_scheduler():
    batch = 1024 * SEQUENCE
    assert Power(a=4.6).power(1e13, batch, 0.02) == pytest.approx(0.0011, abs=5e-5)
    assert Power().power(1e13, batch, 0.02) == pytest.approx(0.00096, abs=5e-6)


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_exponential_fall_has_the_ends_of_the_reference(floor):
    assert exponential_fall(0.0, floor) == pytest.approx(1) and exponential_fall(1.0, floor) == pytest.approx(floor)


def test_power_warmup_aims_at_the_power_and_is_continuous():
    assert eta(5e8, 128, warmup_tokens=1e9) == pytest.approx(0.006580, abs=6e-7)
    assert eta(1e9, 128, warmup_tokens=1e9) == pytest.approx(0.013160, abs=6e-7)
    assert eta(1e9 - 1, 128, warmup_tokens=1e9) == pytest.approx(0.013160, abs=6e-7)


def test_power_at_equal_tokens_differs_by_the_ratio_of_the_batches():
    schedule = Power(warmup_tokens=0)
    small = schedule.factor(Moment(2 * 10**6 - 1, 10**9, 128 * SEQUENCE), 0.02)
    large = schedule.factor(Moment(10**6 - 1, 10**9, 256 * SEQUENCE), 0.02)
    assert large == pytest.approx(2 * small)


def test_power_needs_no_total_until_it_decays_and_goes_on_from_the_tokens_of_an_earlier_run():
    schedule = Power(warmup_tokens=1e6)
    one = [schedule.factor(Moment(step, 500, 128 * SEQUENCE), 0.02) for step in range(200)]
    other = [schedule.factor(Moment(step, 10**6, 128 * SEQUENCE), 0.02) for step in range(200)]
    later = [schedule.factor(Moment(step - 100, 400, 128 * SEQUENCE, 100 * 128 * SEQUENCE), 0.02)
             for step in range(100, 200)]
    assert one == other and later == one[100:]


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_power_decay_falls_exponentially_from_the_rate_at_its_start(floor):
    plain, decayed = Power(warmup_tokens=0, a=0.01), Power(warmup_tokens=0, a=0.01, decay=40, floor=floor)
    found = [decayed.factor(Moment(step, 100, SEQUENCE), 0.02) for step in range(100)]
    assert found[:60] == [plain.factor(Moment(step, 100, SEQUENCE), 0.02) for step in range(60)]
    e = math.e
    assert found[60:] == pytest.approx([
        found[59] * ((1 - floor) * e / (e - 1) * math.exp(-k / 41) + (floor * e - 1) / (e - 1)) for k in range(1, 41)])
    assert floor * found[59] < found[-1] < (floor + 0.02) * found[59] + 0.02 * found[59]


def test_power_equals_the_reference_scheduler_which_folds_the_batch_into_a():
    # dolomite-engine: min(lr, a' (steps c)^b) with a' = batch a and c tokens of a step
    batch = 128
    for steps in (1, 10, 10**4, 10**6):
        reference = min(0.02, batch * 4 * (steps * batch * SEQUENCE) ** -0.51)
        ours = Power(warmup_tokens=0).factor(Moment(steps - 1, 10**7, batch * SEQUENCE), 0.02) * 0.02
        assert ours == pytest.approx(reference, rel=1e-12)
