"""Simulated formats against torch's own casts and worked values; the algebra of rounding; odd tensors."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tilth.precision.formats import NumberFormat, holds, power_of_two_scale, quantize
from tilth.recipe import BadInput

BF16, HALF, E4M3FN, E5M2 = (NumberFormat.parse(name) for name in ("bf16", "fp16", "E4M3fn", "E5M2"))
NATIVE = {"bf16": torch.bfloat16, "fp16": torch.float16, "E4M3fn": torch.float8_e4m3fn, "E5M2": torch.float8_e5m2}
WIDTHS = st.builds(NumberFormat, st.integers(2, 8), st.integers(1, 23))
FLOATS = st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20)


def bits(x):
    return x.float().view(torch.int32)


def interesting(number):
    """Every number of the format, every halfway point, and their float32 neighbours, both signs."""
    values = number.values()
    halves = (values[1:] + values[:-1]) / 2
    both = torch.cat([values, halves, torch.tensor([number.max * 1.01])]).float()
    around = [torch.nextafter(both, torch.full_like(both, end)) for end in (math.inf, -math.inf)]
    whole = torch.cat([both, *around])
    return torch.cat([whole, -whole])


@pytest.mark.parametrize("name", NATIVE)
def test_every_value_and_halfway_point_rounds_as_torch_casts(name):
    number = NumberFormat.parse(name)
    x = interesting(number)
    native = x.to(NATIVE[name]).float()
    inside = native.abs() <= number.max
    assert inside.sum() > 6 * len(number.values()) - 20
    for overflow in ("saturate", "infinite"):
        found = quantize(x, number, overflow=overflow)
        same = inside & (x.abs() <= number.max)
        assert torch.equal(bits(found)[same], bits(native)[same]), overflow


@pytest.mark.parametrize("name", ["bf16", "fp16", "E5M2"])
def test_overflow_becomes_infinite_where_torch_says_so(name):
    number = NumberFormat.parse(name)
    # The halfway point to what would come next is the first to be lost.
    edge = number.max + 2.0 ** (number.highest_exponent - number.mantissa_bits - 1)
    below = math.nextafter(edge, 0) if name != "bf16" else float(torch.nextafter(torch.tensor(edge), torch.zeros(())))
    x = torch.tensor([number.max, below, edge, 3.4028234663852886e38, math.inf, -edge, -math.inf])
    assert torch.equal(quantize(x, number, overflow="infinite"), x.to(NATIVE[name]).float())


def test_values_are_those_of_torch_and_of_no_other():
    for name, dtype in (("E4M3fn", torch.float8_e4m3fn), ("E5M2", torch.float8_e5m2)):
        codes = torch.arange(128, dtype=torch.uint8).view(dtype).double()
        assert torch.equal(NumberFormat.parse(name).values(), codes[codes.isfinite()])
    assert len(NumberFormat.parse("E8M3").values()) == 255 * 8


def test_a_million_normals_equal_bfloat16_to_the_bit():
    x = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(bits(quantize(x, BF16)), bits(x.bfloat16()))


def test_truncation_is_the_mask_of_the_lowest_bits():
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(1)) * 10.0 ** torch.arange(-40, 10).repeat(200)
    for mantissa in (1, 3, 7, 22):
        masked = (x.view(torch.int32) >> (23 - mantissa) << (23 - mantissa)).view(torch.float32)
        assert torch.equal(bits(quantize(x, NumberFormat(8, mantissa), "truncate")), bits(masked))


@pytest.mark.parametrize(("name", "x", "nearest", "truncated"), [
    ("E8M7", math.pi, 3.140625, 3.140625), ("E8M5", math.pi, 3.125, 3.125), ("E8M4", math.pi, 3.125, 3.125),
    ("E8M3", math.pi, 3.25, 3.0), ("E8M5", 300, 304, 296), ("E8M3", 300, 288, 288),
    ("E8M7", 0.1, 0.10009765625, 0.099609375), ("E8M3", 0.1, 0.1015625, 0.09375), ("E5M10", 7e4, 65504, 65504)])
def test_worked_values(name, x, nearest, truncated):
    number = NumberFormat.parse(name)
    assert quantize(torch.tensor(float(x)), number) == nearest
    assert quantize(torch.tensor(float(x)), number, "truncate") == truncated


def test_ranges():
    found = {name: NumberFormat.parse(name) for name in ("E7M7", "E6M7", "E4M3", "E4M3fn", "E5M2", "E5M10", "E8M7")}
    assert found["E7M7"].max == pytest.approx(1.8375e19, rel=1e-4)
    assert found["E6M7"].max == pytest.approx(4.278e9, rel=1e-4)
    assert found["E6M7"].min_normal == pytest.approx(9.313e-10, rel=1e-4)
    assert (found["E4M3"].max, found["E4M3fn"].max, found["E5M2"].max, found["E5M10"].max) == (240, 448, 57344, 65504)
    for name, dtype in (("E8M7", torch.bfloat16), ("E5M10", torch.float16), ("E5M2", torch.float8_e5m2)):
        info = torch.finfo(dtype)
        assert (found[name].max, found[name].min_normal) == (info.max, info.tiny)
        assert found[name].min_subnormal == info.smallest_normal * info.eps
    assert (str(found["E4M3fn"]), found["E4M3fn"].bits, found["E8M7"].bits) == ("E4M3fn", 8, 16)


def test_error_of_both_roundings_on_normals():
    """Relative RMS error and mean bias, E8M3 and E8M7: truncation doubles the error and shrinks what it rounds."""
    x = torch.randn(400_000, generator=torch.Generator().manual_seed(2))
    for name, nearest, truncated in (("E8M3", .0265, .0511), ("E8M7", .0017, .0033)):
        for rounding, expected in (("nearest", nearest), ("truncate", truncated)):
            error = quantize(x, NumberFormat.parse(name), rounding) / x - 1
            assert float(error.square().mean().sqrt()) == pytest.approx(expected, abs=1e-4)
    assert float((quantize(x, NumberFormat(8, 3), "truncate") / x - 1).mean()) == pytest.approx(-.0437, abs=3e-4)


@settings(max_examples=60, deadline=None)
@given(WIDTHS, FLOATS, st.sampled_from(["nearest", "truncate"]), st.sampled_from(["saturate", "infinite"]))
def test_rounding_is_idempotent_odd_monotone_and_lands_beside(number, values, rounding, overflow):
    x = torch.tensor(values).sort().values
    once = quantize(x, number, rounding, overflow)
    assert torch.equal(bits(quantize(once, number, rounding, overflow)), bits(once))
    assert torch.equal(bits(quantize(-x, number, rounding, overflow)), bits(-once))
    assert (once[1:] >= once[:-1]).all()
    inside = x.abs() <= number.max
    gap = torch.maximum(x.abs().double() * 2.0**-number.mantissa_bits, torch.tensor(number.min_subnormal).double())
    error = (once.double() - x.double()).abs()[inside]
    assert (error <= gap[inside] * (0.5 if rounding == "nearest" else 1)).all()


@settings(max_examples=40, deadline=None)
@given(st.builds(NumberFormat, st.integers(2, 7), st.integers(1, 8)), FLOATS)
def test_nearest_is_the_nearest_of_all_numbers_with_ties_to_even(number, values):
    x = torch.tensor(values).clamp(-number.max, number.max)
    known = number.values()
    found = quantize(x, number).abs().double()
    distance = (known[None] - x.abs().double()[:, None]).abs()
    best = distance.amin(1)
    assert torch.equal((found - x.abs().double()).abs(), best)
    place = torch.searchsorted(known, found)
    tied = (distance == best[:, None]).sum(1) > 1
    assert torch.equal(known[place], found) and (place[tied] % 2 == 0).all()


@settings(max_examples=40, deadline=None)
@given(st.builds(NumberFormat, st.integers(2, 7), st.integers(1, 10)), FLOATS)
def test_scaled_by_a_power_of_two_fills_the_range_and_never_overflows(number, values):
    x = torch.tensor(values).clamp(-1e30, 1e30)
    scale = power_of_two_scale(x, number).double()
    most = x.double().abs().amax()
    assert most * scale <= number.max
    assert torch.frexp(scale).mantissa == 0.5
    assert most == 0 or scale == 2.0**120 or 2 * most * scale > number.max
    scaled = quantize(x, number, scaling="tensor")
    assert torch.equal(scaled, (quantize((x * scale).float(), number) / scale).float())


@pytest.mark.parametrize("scaling", ["none", "tensor"])
@pytest.mark.parametrize("overflow", ["saturate", "infinite"])
@pytest.mark.parametrize("rounding", ["nearest", "truncate"])
@pytest.mark.parametrize("name", ["E8M3", "E5M2", "E4M3fn"])
def test_empty_zero_and_non_finite_tensors(name, rounding, overflow, scaling):
    number = NumberFormat.parse(name)

    def rounded(*values):
        return quantize(torch.tensor(values), number, rounding, overflow, scaling)

    assert rounded().shape == (0,)
    assert torch.equal(bits(rounded(0.0, -0.0)), bits(torch.tensor([0.0, -0.0])))
    found = rounded(math.nan, 1.0, math.inf, -math.inf)
    assert found[0].isnan() and found[1] == 1
    if overflow == "saturate":
        assert found[2:].tolist() == [number.max, -number.max]
    elif number.finite_only:
        assert found[2:].isnan().all()
    else:
        assert found[2:].tolist() == [math.inf, -math.inf]


def test_types_keep_theirs_and_refuse_what_they_cannot_hold():
    x = torch.randn(64, generator=torch.Generator().manual_seed(3))
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        found = quantize(x.to(dtype), E5M2)
        assert found.dtype == dtype and torch.equal(found.float(), quantize(x.to(dtype).float(), E5M2))
    assert holds(torch.float16, HALF) and not holds(torch.float16, BF16) and not holds(torch.bfloat16, HALF)
    with pytest.raises(ValueError, match="bfloat16 cannot hold"):
        quantize(x.bfloat16(), HALF)
    transposed = torch.randn(5, 7).T
    assert torch.equal(quantize(transposed, E4M3FN), quantize(transposed.contiguous(), E4M3FN))


def test_float64_is_rounded_once():
    """Through float32 this tie would be rounded twice, and end at 1."""
    x = torch.tensor([1 + 2.0**-8 + 2.0**-40], dtype=torch.float64)
    assert quantize(x, BF16).item() == 1 + 2.0**-7
    assert quantize(x.float(), BF16).item() == 1


@pytest.mark.parametrize("text", ["E9M3", "E8M0", "E1M2", "E8M24", "e4m3", "fp8", "E8M7fn", "E4M3fnuz", ""])
def test_what_is_no_format_is_said(text):
    with pytest.raises(BadInput):
        NumberFormat.parse(text)
