"""FP8 quantizers: the worked groups, what holds for any tensor, and what zeros, equal and non-finite entries become."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tilth.precision.fp8 import (
    E4M3,
    E5M2,
    FULL_RANGE,
    LARGEST,
    dequantize,
    dequantize_moment,
    largest_magnitude,
    quantize_groups,
    quantize_moment,
    quantize_tensor,
    to_fp8,
)

RULES = ["exact", "sixteenths", None]
SHORT = [1e-3, 2e-3, 5e-3, 1e-2]
NARROW = [1, 1.03, 1.06, 1.1, 1.2, 1.5, 1.7, 2]


def round_trip(x, rule="exact"):
    return dequantize_moment(quantize_moment(x, rule))


@pytest.mark.parametrize(("group", "rule", "exponent", "expected"), [
    (SHORT, "exact", 5.36055, [1.0e-3, 1.99004e-3, 5.00817e-3, 1.0e-2]),
    (SHORT, "sixteenths", 5.0, [0.97296e-3, 1.99231e-3, 5.0e-3, 1.0e-2]),
    (SHORT, None, None, [0.98214e-3, 1.96429e-3, 5.0e-3, 1.0e-2]),
    (NARROW, "exact", 17.8074, [1, 1.03969, 1.06364, 1.09459, 1.20077, 1.5025, 1.69688, 2]),
    (NARROW, "sixteenths", 16.5625, None),
    (NARROW, None, None, [1, 1, 1.07143, 1.07143, 1.14286, 1.42857, 1.71429, 2])])
def test_worked_groups(group, rule, exponent, expected):
    x = torch.tensor(group)
    stored = quantize_moment(x, rule)
    assert stored.exponent is None if exponent is None else abs(float(stored.exponent) - exponent) < 1e-4
    if expected is not None:
        torch.testing.assert_close(dequantize_moment(stored), torch.tensor(expected), rtol=1e-5, atol=0)


def test_expansion_lowers_the_error_of_the_update_on_drawn_moments():
    """Normal m and log-normal v of 4,096 groups: 1.00e-3 plain, 2.9e-4 in sixteenths, 2.5e-4 with exact exponents."""
    generator = torch.Generator().manual_seed(0)
    m = torch.randn(4096 * 128, generator=generator)
    v = torch.exp(0.6 * torch.randn(4096 * 128, generator=generator))
    found = {rule: float((round_trip(m, rule) / round_trip(v, rule).sqrt() - m / v.sqrt()).square().mean())
             for rule in RULES}
    assert found[None] == pytest.approx(1.0e-3, rel=0.1)
    assert found["sixteenths"] == pytest.approx(2.9e-4, rel=0.1)
    assert found["exact"] == pytest.approx(2.5e-4, rel=0.1)


FINITE = st.floats(-2.0**100, 2.0**100, width=32, allow_subnormal=False).filter(lambda x: x == 0 or abs(x) > 1e-30)


@settings(deadline=None, max_examples=150)
@given(st.lists(FINITE, max_size=300), st.sampled_from(RULES))
def test_largest_magnitudes_and_signs_come_back_exactly(values, rule):
    x = torch.tensor(values, dtype=torch.float32)
    y = round_trip(x, rule)
    assert y.shape == x.shape
    for group, found in zip(x.split(128), y.split(128), strict=True) if len(x) else ():
        at = group.abs().argmax()
        assert found[at] == group[at]
        assert (found * group >= 0).all()
        assert (found.abs() <= group.abs().max()).all()
        if rule is not None:  # what is not 0 stays so, while float32 can tell the ratio
            ratio = group.abs().max() / group[group != 0].abs().min() if (group != 0).any() else 1
            assert ((found != 0) == (group != 0)).all() or ratio > 2.0**120


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(-1e3, 1e3, width=32).filter(lambda x: x == 0 or abs(x) > 1e-6), min_size=1, max_size=140),
       st.integers(-20, 20), st.sampled_from(RULES))
def test_a_power_of_two_scales_the_result(values, power, rule):
    x = torch.tensor(values, dtype=torch.float32)
    assert torch.equal(round_trip(x * 2.0**power, rule), round_trip(x, rule) * 2.0**power)


@settings(deadline=None, max_examples=150)
@given(st.floats(1.0, 1e9))
def test_a_group_is_spread_exactly_where_it_is_narrower_than_the_format(ratio):
    stored = quantize_moment(torch.tensor([1.0, ratio]))
    true = float(torch.tensor(ratio, dtype=torch.float32))
    if true == 1:
        assert stored.exponent == 1
    else:
        assert (float(stored.exponent) > 1) == (true < FULL_RANGE)


@settings(deadline=None, max_examples=100)
@given(st.lists(FINITE.filter(lambda x: x != 0), min_size=1, max_size=50), st.integers(1, 50))
def test_zeros_change_nothing_for_their_neighbours(values, zeros):
    x = torch.tensor(values, dtype=torch.float32)
    with_zeros = round_trip(torch.cat([x, torch.zeros(zeros)]))
    assert torch.equal(with_zeros[: len(x)], round_trip(x)) and not with_zeros[len(x):].any()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("x", [torch.zeros(0), torch.zeros(1), torch.zeros(300), torch.full((200,), 3.3e-7),
                               torch.full((129,), -1e-42), torch.tensor([2.0]), torch.tensor([0.0, 5.0, 0.0])],
                         ids=["empty", "zero", "zeros", "constant", "subnormal", "one", "one of three"])
def test_zero_and_constant_groups_come_back_as_they_were(x, rule):
    assert torch.equal(round_trip(x, rule), x)


@pytest.mark.parametrize("rule", RULES)
def test_entries_that_are_not_finite_become_nan_and_disturb_nobody(rule):
    x = torch.tensor([1.0, -0.3, math.nan, 0.01, math.inf, -math.inf])
    finite = x.isfinite()
    y = round_trip(x, rule)
    assert y[~finite].isnan().all()
    assert torch.equal(y[finite], round_trip(x[finite], rule))
    assert round_trip(torch.full((3,), math.nan), rule).isnan().all()
    for stored in (dequantize(quantize_groups(x)), dequantize(quantize_tensor(x))):
        assert stored[~finite].isnan().all() and stored[finite].isfinite().all()


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_casts_saturate_and_round_to_even(dtype):
    top = LARGEST[dtype]
    found = to_fp8(torch.tensor([top * 4, -top * 1.01, 1.0625, 1.1875, math.inf, math.nan]), dtype).float()
    assert found[:4].tolist() == [top, -top, 1.0, 1.25] and found[4:].isnan().all()


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=3), st.sampled_from([torch.float32, torch.bfloat16]),
       st.sampled_from([E4M3, E5M2]), st.integers(0, 99))
def test_one_scale_and_one_a_group(shape, dtype, fp8, seed):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    whole, pieces = quantize_tensor(x, fp8), quantize_groups(x)
    assert whole.codes.shape == pieces.codes.shape == x.shape
    assert whole.codes.dtype == fp8 and pieces.codes.dtype == E4M3 and pieces.scale.dtype == torch.bfloat16
    assert pieces.scale.shape == (*shape[:-1], -(-shape[-1] // 16))
    if x.numel():
        # Two stages find what one finds, bit for bit.
        assert largest_magnitude(x) == x.abs().max()
        step = {E4M3: 2.0**-4, E5M2: 2.0**-3}[fp8]  # half a step of the mantissa
        error = (dequantize(whole) - x.float()).abs()
        assert (error <= step * x.float().abs() * 1.001 + whole.scale * 2.0**-9).all()
        error = (dequantize(pieces) - x.float()).abs()
        bound = pieces.scale.float().repeat_interleave(16, -1)[..., : shape[-1]]
        assert (error <= 2.0**-4 * x.float().abs() * 1.001 + bound * 2.0**-9).all()


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(width=32), min_size=1, max_size=40))
def test_any_float_at_all(values):
    """Subnormal and infinite ones, and NaN: finite entries stay finite, keep their sign, and do not grow beyond the
    largest (to which the scale of a group adds 1e-10, and of which bfloat16 may be 0.4 % off)."""
    x = torch.tensor(values, dtype=torch.float32)
    finite = x.isfinite()
    top = x[finite].abs().max() if finite.any() else torch.tensor(0.0)
    for y in (round_trip(x), round_trip(x, None), dequantize(quantize_tensor(x)), dequantize(quantize_groups(x))):
        assert y[~finite].isnan().all() and y[finite].isfinite().all()
        assert (y[finite] * x[finite] >= 0).all() and (y[finite].abs() <= (top + 1e-10) * 1.004).all()


def test_groups_do_not_reach_across_tokens():
    x = torch.ones(2, 24)
    x[1] = 1e4  # the other token
    x[0, 3] = 2.0
    stored = quantize_groups(x)
    torch.testing.assert_close(dequantize(stored)[0], x[0], rtol=0.04, atol=0)
    assert stored.scale.shape == (2, 2)
