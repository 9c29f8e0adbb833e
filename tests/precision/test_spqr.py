"""SpQR: the quantizer's worked examples, exact bits, outliers kept exactly, and what they are good for."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tilth.precision.affine import dequantize, fit, pack, packed_bytes, quantize, unpack
from tilth.precision.gptq import solve
from tilth.precision.hessian import Factor, Hessian, factorize
from tilth.precision.matrix import expected_bytes, nominal_bits, smallest
from tilth.precision.spqr import leave_one_out_gain, outlier_threshold, range_of_others, without_outliers
from tilth.precision.statistics import Exact, TwoLevel, second_level
from tilth.precision.weights import GPTQ, RoundToNearest, SpQR, unit_of
from tilth.recipe import BadInput


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def layer(seed=0, rows=48, columns=64, tokens=400, planted=0.01):
    """A matrix with some large weights, and correlated inputs (T, I)."""
    rng = torch.Generator().manual_seed(seed)
    mix = torch.eye(columns) + 0.3 * torch.randn(columns, columns, generator=rng)
    x = torch.randn(tokens, columns, generator=rng) @ mix * torch.linspace(0.3, 2, columns)
    weight = 0.05 * torch.randn(rows, columns, generator=rng)
    weight[torch.rand(rows, columns, generator=rng) < planted] *= 8
    return weight, x


def factor_of(x, damping=0.01, act_order=True):
    hessian = Hessian(x.shape[1])
    hessian.add(x, 4)
    return factorize(hessian.matrix, damping, act_order)


def one(values, bits=3):
    """(scale, zero, codes, decoded) of one group."""
    row = torch.tensor([values])
    scale, zero = fit(row.amin(1), row.amax(1), bits)
    codes = quantize(row, scale[:, None], zero[:, None], bits)
    return float(scale), float(zero), codes[0].tolist(), dequantize(codes, scale[:, None], zero[:, None])[0].tolist()


def test_the_quantizers_worked_examples():
    assert one([0.0, 1, 2, 7]) == (1, 0, [0, 1, 2, 7], [0, 1, 2, 7])
    # 0.5 + 1 lies between two codes: halves go to the even one
    assert one([-1, 0, 0.5, 6]) == (1, 1, [0, 1, 2, 7], [-1, 0, 1, 6])


@pytest.mark.parametrize("value", [0.0, 0.25, -3.0, 2.0**-10])
def test_constant_groups_are_exact(value):
    assert one([value] * 4)[3] == [value] * 4


@given(st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=20), st.integers(2, 8))
@settings(deadline=None, max_examples=60)
def test_no_weight_is_off_by_more_than_half_a_step(values, bits):
    codes, decoded = one(values, bits)[2:]
    assert all(0 <= code < 2**bits for code in codes)
    step = max(values) - min(values) if max(values) - min(values) > 1e-3 * max(map(abs, values)) else 0
    allowed = 0.5 * step / (2**bits - 1) + 1.1e-3 * max(map(abs, values)) + 1e-6
    assert max(abs(a - b) for a, b in zip(values, decoded, strict=True)) <= allowed


@given(st.integers(1, 8), st.integers(0, 70), st.integers(0, 2**31))
@settings(deadline=None, max_examples=60)
def test_packing_keeps_every_code_in_the_fewest_bytes(bits, count, seed):
    codes = torch.randint(0, 2**bits, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    packed = pack(codes, bits)
    assert len(packed) == packed_bytes(count, bits) == math.ceil(count * bits / 8)
    assert torch.equal(unpack(packed, bits, count), codes)


def test_nominal_bits_are_the_papers():
    assert nominal_bits(3, 3, 3, 16, 32, 0.004) == pytest.approx(3.628, abs=5e-4)
    assert nominal_bits(4, 3, 3, 16, 16, 0) == 4.625
    assert nominal_bits(4, 3, 3, 16, 16, 0.002) == pytest.approx(4.689, abs=5e-4)


@pytest.mark.parametrize("method", [SpQR(bits=3, tau=0.1), SpQR(bits=4, group=24, tile_rows=10, tau=0.3),
                                    SpQR(bits=4, tau=None, act_order=False), GPTQ(bits=3, group=20),
                                    GPTQ(bits=4, group=16, two_level=True), RoundToNearest(bits=5)],
                         ids=lambda method: f"{method.kind}-{method.bits}-{method.group}")
def test_the_bits_that_are_counted_are_the_bytes_that_are_stored(method):
    weight, x = layer(rows=50, columns=70)
    matrix = method.compress(weight, factor_of(x) if method.calibrated else Factor.identity(70)).matrix
    found = matrix.bytes()
    assert {**expected_bytes(matrix.layout, matrix.outliers, "order" in found),
            **({"outlier_columns": matrix.outliers} if matrix.outliers else {})} == found
    if isinstance(method, SpQR) and matrix.layout.rows % 16 == matrix.layout.columns % 16 == 0:
        pointers = 8 * found["outlier_rows"]
        assert 8 * sum(found.values()) - pointers <= weight.numel() * nominal_bits(
            method.bits, 3, 3, method.group, method.tile_rows, matrix.outliers / weight.numel())


def test_row_pointers_and_orders_are_part_of_the_bits():
    weight, x = layer()
    found = SpQR(bits=3, tau=0.05).compress(weight, factor_of(x)).matrix.bytes()
    assert found["outlier_rows"] == 49 * 2 and found["order"] == 64


@pytest.mark.parametrize("tau", [0.02, 0.1, 0.5])
def test_outliers_are_restored_exactly_and_all_codes_are_codes(tau):
    weight, x = layer()
    unit, factor = unit_of(weight), factor_of(x)
    method = SpQR(bits=3, tau=tau)
    solved = solve(weight / unit, factor, method.statistics(), 3, 16, tau)
    matrix = method.compress(weight, factor).matrix
    stored = matrix.decode()
    assert matrix.outliers == int(solved.outliers.sum()) > 0
    assert torch.equal(stored[solved.outliers], solved.values[solved.outliers].half().float() * unit)
    assert torch.allclose(stored, solved.values * unit, rtol=0, atol=1e-7)
    assert int(matrix.codes().max()) <= 7
    rows, columns = matrix.outlier_places()
    assert torch.equal(torch.stack([rows, columns], 1), solved.outliers.nonzero())


def test_a_weight_that_nothing_moved_is_restored_to_16_bits():
    weight, _ = layer()
    matrix = SpQR(bits=3, tau=0.02, act_order=False).compress(weight, Factor.identity(64)).matrix
    rows, columns = matrix.outlier_places()
    assert matrix.outliers and torch.equal(matrix.weight()[rows, columns], weight[rows, columns].half().float())


def test_less_tau_gives_more_outliers_and_none_gives_none():
    weight, x = layer()
    counts = [SpQR(bits=3, tau=tau).compress(weight, factor_of(x)).matrix.outliers for tau in (0.02, 0.1, 0.5, 5, None)]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1] == 0


def test_undoing_the_order_gives_what_identity_order_gives_where_columns_are_sorted_already():
    weight, x = layer()
    hessian = Hessian(64)
    hessian.add(x, 4)
    order = torch.argsort(hessian.matrix.diagonal(), descending=True)
    sorted_already = hessian.matrix[order][:, order]
    plain, ordered = (SpQR(bits=3).compress(weight, factorize(sorted_already, 0.01, act)).matrix.weight()
                      for act in (False, True))
    assert torch.equal(plain, ordered)
    # and with a shuffled layer, the result is the same columns in their own places
    found = SpQR(bits=3).compress(weight[:, torch.argsort(order)], factorize(hessian.matrix, 0.01, True)).matrix
    assert "order" in found.tensors and torch.equal(found.weight()[:, order], plain)


def test_leaving_one_out_is_measured_as_it_is_defined():
    weight, _ = layer(rows=5, columns=6, planted=0.2)
    diagonal = torch.linspace(0.5, 2, 6)

    def error(values, kept):
        scale, zero = fit(values[kept].min(), values[kept].max(), 3)
        back = dequantize(quantize(values[kept], scale, zero, 3), scale, zero)
        return float(((values[kept] - back) / diagonal[kept]).square().sum())

    expected = [[error(row, torch.ones(6, dtype=torch.bool)) - error(row, torch.arange(6) != out) for out in range(6)]
                for row in weight]
    assert torch.allclose(leave_one_out_gain(weight, diagonal, 3), torch.tensor(expected), rtol=1e-4, atol=1e-6)


def test_ranges_without_one_and_means_without_outliers():
    low, high = range_of_others(torch.tensor([[1.0, 5, 2, 5], [3, 3, 3, 3]]))
    assert low.tolist() == [[2, 1, 1, 1], [3, 3, 3, 3]] and high.tolist() == [[5, 5, 5, 5], [3, 3, 3, 3]]
    likely = torch.tensor([[False, True, False]])
    assert without_outliers(torch.tensor([[1.0, 90, 3]]), likely).tolist() == [[1, 2, 3]]
    assert without_outliers(torch.tensor([[1.0, 90, 3]]), ~likely & True | likely).tolist() == [[0, 0, 0]]


def test_the_threshold_by_hand():
    # variances 2 and 8 over U^2 of 4 and 1
    weight = torch.tensor([[1.0, 2], [3, 6]])
    assert outlier_threshold(weight, torch.tensor([2.0, 1])) == pytest.approx((2 / 4 + 8 / 1) / 2)
    assert outlier_threshold(weight[:1], torch.tensor([2.0, 1])) == 0


def test_the_first_columns_sensitivity_is_the_papers():
    """(w - q)^2 / U_11^2 = (w - q)^2 / [H^-1]_11, and H = 2 X X^T here."""
    _, x = layer()
    hessian = Hessian(64)
    hessian.add(x, 1)
    found = factorize(hessian.matrix, 0.0, act_order=False).upper[0, 0] ** 2
    assert float(found) == pytest.approx(float(torch.linalg.inv((x.T @ x).double())[0, 0]) / 2, rel=1e-3)


def test_second_level_statistics_err_by_half_a_step_at_most():
    values = torch.rand(40) + 0.5
    codes, second, back = second_level(values, 16, 3)
    assert codes.shape == (40,) and second.shape == (2, 3) and int(codes.max()) <= 7
    for tile in range(3):
        part, decoded = (each[16 * tile : 16 * tile + 16] for each in (values, back))
        assert float((decoded - part).abs().max()) <= 1.02 * float(part.max() - part.min()) / 14


# What must not break it.


@pytest.mark.parametrize("method", [SpQR(bits=3), GPTQ(bits=4, group=16), GPTQ(bits=3, group=16, two_level=True),
                                    RoundToNearest(bits=4, group=16)], ids=["spqr", "gptq", "gptq2", "rtn"])
class TestDegenerate:
    def test_all_zero(self, method):
        x = layer()[1]
        assert torch.equal(method.compress(torch.zeros(32, 64), factor_of(x)).matrix.weight(), torch.zeros(32, 64))

    @pytest.mark.parametrize("shape", [(0, 16), (16, 0), (0, 0)])
    def test_empty(self, method, shape):
        found = method.compress(torch.zeros(shape), Factor.identity(shape[1])).matrix
        assert found.weight().shape == shape and found.codes().shape == shape

    def test_zero_rows_do_not_harm_their_neighbours(self, method):
        weight, x = layer(planted=0)
        with_zeros = weight.clone()
        with_zeros[::3] = 0
        found = method.compress(with_zeros, factor_of(x)).matrix.weight()
        assert float(found[::3].abs().max()) <= 0.02 * float(weight.abs().max())
        whole = method.compress(weight, factor_of(x)).matrix.weight()
        kept = torch.arange(len(weight)) % 3 > 0
        error, usual = ((found - with_zeros)[kept].norm(), (whole - weight)[kept].norm())
        assert float(error) <= 1.5 * float(usual)

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_non_finite_weights_are_refused_by_name(self, method, bad):
        weight = torch.zeros(16, 16)
        weight[3, 4] = bad
        with pytest.raises(BadInput, match=r"the query has 1 weights that are not finite"):
            method.compress(weight, Factor.identity(16), "the query")

    @pytest.mark.parametrize("size", [1e-30, 1e-6, 1e6, 1e30])
    def test_tiny_and_huge_weights_lose_no_more_than_others(self, method, size):
        weight, x = layer()
        found, usual = (method.compress(weight * factor, factor_of(x)).matrix.weight() / factor - weight
                        for factor in (size, 1.0))
        assert float(found.norm()) <= 1.3 * float(usual.norm())

    def test_dead_inputs(self, method):
        weight, x = layer()
        x[:, [3, 40]] = 0
        found = method.compress(weight, factor_of(x)).matrix.weight()
        if method.calibrated:
            assert float(found[:, [3, 40]].abs().max()) <= 0.1 * float(weight.abs().max())
        assert torch.isfinite(found).all()


def test_inputs_that_are_all_zero_or_not_finite():
    assert factorize(torch.zeros(4, 4, dtype=torch.float64)).dead.all()
    with pytest.raises(BadInput, match="not all finite"):
        factorize(torch.full((4, 4), math.nan))


def test_too_few_tokens_raise_the_damping_and_say_so():
    x = torch.randn(3, 64)
    found = factor_of(x, damping=0.0)
    assert found.damping > 0 and torch.isfinite(found.upper).all()


def test_the_running_mean_of_the_hessian_does_not_depend_on_the_batches():
    x = torch.randn(60, 8)
    whole, pieces = Hessian(8), Hessian(8)
    whole.add(x, 6)
    for start in range(0, 60, 20):
        pieces.add(x[start : start + 20], 2)
    assert torch.allclose(whole.matrix, 2 / 6 * (x.T @ x).double(), atol=1e-4)
    assert torch.allclose(whole.matrix, pieces.matrix, atol=1e-4) and pieces.tokens == 60


def test_indices_take_the_smallest_type():
    assert [smallest(torch.tensor([top])).dtype for top in (255, 256, 65535, 65536)] == [
        torch.uint8, torch.uint16, torch.uint16, torch.int32]


# What it is good for.


def output_error(found, weight, x):
    return float(((found - weight) @ x.T).square().sum() / (weight @ x.T).square().sum())


def test_on_held_out_inputs_spqr_beats_gptq_at_fewer_bits_where_weights_stick_out():
    """GPTQ with the same small statistics, and smaller groups for more bits; its lead without outliers is the price."""
    def ratio(seed, planted):
        weight, x = layer(seed, 96, 192, 2400, planted)
        factor, held_out = factor_of(x[:1600]), x[1600:]
        spqr = SpQR(bits=3, tau=0.5).compress(weight, factor).matrix
        gptq = GPTQ(bits=3, group=12, two_level=True).compress(weight, factor).matrix
        assert sum(spqr.bytes().values()) <= sum(gptq.bytes().values())
        return output_error(spqr.weight(), weight, held_out) / output_error(gptq.weight(), weight, held_out)

    found, calm = ([ratio(seed, planted) for seed in range(5)] for planted in (0.003, 0.0))
    assert sum(one < 1 for one in found) >= 4
    assert min(calm) > max(found), "the gap shrinks where nothing sticks out"


def test_exact_statistics_are_stacked_by_group():
    weight, _ = layer(rows=4, columns=32)
    keeper = Exact()
    solve(weight, Factor.identity(32), keeper, 4, 16)
    assert keeper.tensors()["scale"].shape == (4, 2)
    assert TwoLevel().tensors() == {}
