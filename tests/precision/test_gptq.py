"""GPTQ against a plain reading of its paper, and rounding to nearest as what is left without knowledge of inputs."""

import pytest
import torch

from tilth.precision.affine import dequantize, fit, quantize
from tilth.precision.gptq import blocks, solve
from tilth.precision.hessian import Factor, Hessian, factorize
from tilth.precision.statistics import Exact
from tilth.precision.weights import GPTQ, RoundToNearest, SpQR


def layer(rows=24, columns=96, tokens=500):
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(tokens, columns, generator=rng) @ torch.randn(columns, columns, generator=rng)
    return torch.randn(rows, columns, generator=rng), x


def hessian_of(x, rows=5):
    hessian = Hessian(x.shape[1])
    hessian.add(x, rows)
    return hessian.matrix


def plain_gptq(weight, hessian, bits, group, damping):
    """Optimal brain surgery, column by column: after each column, H^-1 loses its row and column by elimination."""
    weight, result = weight.double().clone(), torch.zeros_like(weight)
    inverse = torch.linalg.inv(hessian + damping * hessian.diagonal().mean() * torch.eye(len(hessian)))
    for column in range(weight.shape[1]):
        if column % group == 0:
            part = weight[:, column : column + group]
            scale, zero = fit(part.amin(1), part.amax(1), bits)
        back = dequantize(quantize(weight[:, column], scale, zero, bits), scale, zero)
        result[:, column] = back.float()
        error = (weight[:, column] - back) / inverse[column, column]
        weight -= error[:, None] * inverse[column]
        inverse = inverse - inverse[:, column : column + 1] @ inverse[column : column + 1] / inverse[column, column]
    return result


@pytest.mark.parametrize("bits, group", [(3, 16), (4, 24), (4, 96), (2, 33)])
def test_without_outliers_and_with_exact_statistics_it_is_plain_gptq(bits, group):
    weight, x = layer()
    found = solve(weight, factorize(hessian_of(x), 0.01, act_order=False), Exact(), bits, group)
    expected = plain_gptq(weight, hessian_of(x), bits, group, 0.01)
    # A weight that rounding error puts on the other side of a tie changes the rest of its row.
    same = (found.values - expected).abs().amax(1) < 1e-3
    assert float(same.float().mean()) >= 0.9
    output = [(values - weight) @ x.T for values in (found.values, expected)]
    assert float(output[0].norm()) == pytest.approx(float(output[1].norm()), rel=0.03)


def test_blocks_change_nothing(monkeypatch):
    weight, x = layer()
    factor = factorize(hessian_of(x), 0.01)
    whole = solve(weight, factor, Exact(), 3, 16)
    monkeypatch.setattr("tilth.precision.gptq.BLOCK", 32)
    parts = solve(weight, factor, Exact(), 3, 16)
    assert float((whole.codes == parts.codes).float().mean()) > 0.98


@pytest.mark.parametrize("columns, group", [(100, 16), (100, 40), (300, 128), (700, 300), (5, 16), (128, 128)])
def test_every_column_is_in_one_block_and_every_group_begins_up_to_date(columns, group):
    spans = list(blocks(columns, group))
    assert [column for start, end in spans for column in range(start, end)] == list(range(columns))
    for first in range(0, columns, group):
        start, end = next(span for span in spans if span[0] <= first < span[1])
        # either the block begins there, or it holds the whole group
        assert start == first or end >= min(first + group, columns)


def test_the_identity_as_hessian_is_rounding_to_nearest():
    weight, _ = layer()
    rounded = RoundToNearest(bits=3, group=16).compress(weight, Factor.identity(96)).matrix.weight()
    through = GPTQ(bits=3, group=16).compress(weight, factorize(torch.eye(96), 0.0)).matrix.weight()
    assert torch.equal(rounded, through)
    unit = 2.0 ** torch.frexp(weight.abs().max())[1]
    for start in range(0, 96, 16):
        part = weight[:, start : start + 16] / unit
        scale, zero = fit(part.amin(1, keepdim=True), part.amax(1, keepdim=True), 3, integer_zero=True)
        scale = scale.half().float()
        expected = dequantize(quantize(part, scale, zero, 3), scale, zero) * unit
        assert torch.allclose(rounded[:, start : start + 16], expected, atol=1e-6)


def test_spqr_without_outliers_is_gptq_with_its_statistics():
    weight, x = layer()
    factor = factorize(hessian_of(x), 0.01)
    spqr = SpQR(bits=3, tau=None).compress(weight, factor).matrix
    gptq = GPTQ(bits=3, group=16, two_level=True).compress(weight, factor).matrix
    assert spqr.tensors.keys() == gptq.tensors.keys()
    assert all(torch.equal(tensor, gptq.tensors[part]) for part, tensor in spqr.tensors.items())


def test_knowing_the_inputs_helps_at_the_output():
    weight, x = layer()

    def error(found):
        return float(((found - weight) @ x.T).norm())

    rounded = RoundToNearest(bits=3, group=16).compress(weight, Factor.identity(96)).matrix.weight()
    for act_order in (False, True):
        factor = factorize(hessian_of(x), 0.01, act_order)
        assert error(GPTQ(bits=3, group=16).compress(weight, factor).matrix.weight()) < 0.8 * error(rounded)


def test_the_factor_is_that_of_the_damped_inverse_in_its_order():
    _, x = layer(columns=20)
    hessian = hessian_of(x)
    factor = factorize(hessian, 0.1)
    damped = hessian + 0.1 * hessian.diagonal().mean() * torch.eye(20)
    inverse = torch.linalg.inv(damped)[factor.order][:, factor.order]
    product = (factor.upper.T @ factor.upper).double()
    assert torch.allclose(product, inverse, rtol=1e-3, atol=1e-6 * float(inverse.max()))
    assert torch.equal(factor.upper, factor.upper.triu())
    assert (hessian.diagonal()[factor.order].diff() <= 0).all()


def test_the_solvers_loss_is_twice_the_output_error_of_a_sample():
    """sum (w - q)^2 / U_jj^2 = tr(E H E^T): what the columns could not make up for, exactly (H damped by nothing)."""
    weight, x = layer(columns=32)
    hessian = hessian_of(x)
    found = solve(weight, factorize(hessian, 0.0), Exact(), 4, 16)
    order = factorize(hessian, 0.0).order
    error = (found.values - weight[:, order]).double()
    expected = float((error @ hessian[order][:, order] @ error.T).diagonal().sum())
    assert expected == pytest.approx(2 / 5 * float((error @ x[:, order].double().T).square().sum()), rel=1e-4)
    assert found.loss == pytest.approx(expected, rel=0.02)
