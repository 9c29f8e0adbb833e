"""The column solver: rounding to nearest, GPTQ and SpQR are one walk over the columns of a matrix.

Columns are quantized one after another; the error of each is spread over those that are left, weighed by what the
inputs have in common (GPTQ: Frantar et al. 2022, https://arxiv.org/abs/2210.17323, algorithm 1). With the identity as
factor nothing is spread (rounding to nearest); with a finite threshold some weights are kept as outliers (SpQR).

Shapes: O output features (rows), I input features (columns, in the order of the factor), g columns of a group.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tilth.precision.affine import CONSTANT, dequantize, fit, quantize
from tilth.precision.hessian import Factor
from tilth.precision.spqr import leave_one_out_gain, outlier_threshold, without_outliers
from tilth.precision.statistics import Statistics, TwoLevel, settle_constants

BLOCK = 128  # columns whose errors are spread over the rest at once


@dataclass(frozen=True)
class Solved:
    """`codes` (O, I) uint8; `outliers` (O, I) bool and `values` (O, I) float32, what each weight decodes to (outliers
    rounded to 16 bits); all in the order of the factor. `tensors`: the statistics as stored. `loss`: the sum of the
    squared errors (w - decoded)^2 / U_jj^2 that the solver saw: twice the squared output error of a sample."""

    codes: Tensor
    outliers: Tensor
    values: Tensor
    tensors: dict[str, Tensor]
    loss: float


def solve(weight: Tensor, factor: Factor, statistics: Statistics, bits: int, group: int,
          threshold: float = math.inf) -> Solved:
    """Quantize `weight` (O, I), given in its own order of columns, float32.

    group: columns that share a scale and a zero in each row (the last group may be shorter). threshold: tau of SpQR,
    relative to `outlier_threshold`; infinite: no outliers.
    """
    weight = weight[:, factor.order].clone()
    weight[:, factor.dead] = 0
    upper, diagonal = factor.upper, factor.upper.diagonal()
    limit = threshold * outlier_threshold(weight, diagonal) if math.isfinite(threshold) else math.inf
    if limit == 0:
        limit = math.inf  # all columns are constant: nothing sticks out
    codes = torch.zeros(weight.shape, dtype=torch.uint8, device=weight.device)
    outliers = torch.zeros(weight.shape, dtype=torch.bool, device=weight.device)
    values, loss = weight, 0.0  # values are written over the weights, column by column
    for start, end in blocks(weight.shape[1], group):
        errors = torch.zeros(len(weight), end - start, device=weight.device)
        for column in range(start, end):
            if column % group == 0:
                span = slice(column, min(column + group, weight.shape[1]))
                scale, zero = _fit_group(weight[:, span], diagonal[span], statistics, bits, limit)
            w, u = weight[:, column].clone(), diagonal[column]
            kept = torch.zeros_like(w, dtype=torch.bool)
            code = quantize(w, scale, zero, bits)
            decoded = dequantize(code, scale, zero)
            if limit < math.inf:
                kept = ((w - decoded) / u).square() > limit
                code = torch.where(kept, quantize(torch.zeros_like(w), scale, zero, bits), code)
                decoded = torch.where(kept, w.half().float(), decoded)
            error = (w - decoded) / u
            codes[:, column], outliers[:, column], values[:, column] = code, kept, decoded
            loss += float(error.square().sum())
            errors[:, column - start] = error
            weight[:, column + 1 : end].addr_(error, upper[column, column + 1 : end], alpha=-1)
        weight[:, end:].addmm_(errors, upper[start:end, end:], alpha=-1)
    return Solved(codes, outliers, values, statistics.tensors(), loss)


def blocks(columns: int, group: int) -> Iterator[tuple[int, int]]:
    """Spans of about BLOCK columns such that whoever fits a group at its first column sees all its columns up to
    date: whole groups, or parts of one that is longer than a block."""
    if group <= BLOCK:
        step = BLOCK // group * group
        yield from ((start, min(start + step, columns)) for start in range(0, columns, step))
        return
    for first in range(0, columns, group):
        last = min(first + group, columns)
        yield from ((start, min(start + BLOCK, last)) for start in range(first, last, BLOCK))


def _fit_group(weight: Tensor, diagonal: Tensor, statistics: Statistics, bits: int,
               limit: float) -> tuple[Tensor, Tensor]:
    """(scale, zero), each (O,), of one group (O, g), as they decode; fitted without likely outliers."""
    if limit < math.inf and weight.shape[1] > 1:
        likely = leave_one_out_gain(weight, diagonal, bits) > limit
        weight = without_outliers(weight, likely)
    low, high = weight.amin(1), weight.amax(1)
    scale, zero = fit(low, high, bits, statistics.integer_zero)
    if isinstance(statistics, TwoLevel):
        constant = high - low <= CONSTANT * torch.maximum(low.abs(), high.abs())
        scale = settle_constants(scale, constant, statistics.rows)
        zero = torch.where(constant, -low / scale, zero)
    scale, zero = statistics.keep(scale, zero)
    # A scale that a second quantization made 0 decodes everything as 0; the smallest number keeps codes defined.
    return scale.clamp(min=torch.finfo(torch.float32).tiny), zero
