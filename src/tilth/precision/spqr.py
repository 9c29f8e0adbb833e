"""Which weights SpQR keeps in 16 bits (Dettmers et al. 2023, https://arxiv.org/abs/2306.03078, section 4).

Shapes: O output features, I input features, g columns of a group. `diagonal` holds U_jj of the upper Cholesky factor
of H^-1. The sensitivity of a weight is (w - decoded)^2 / U_jj^2: what rounding it costs at the output once the columns
that are left have made up for it as well as they can. (The paper's equation 2 has 2 [(X X^T)^-1]_jj below, as if all
other columns were left; for the first column the two are the same.)
"""

import torch
from torch import Tensor

from tilth.precision.affine import dequantize, fit, quantize


def outlier_threshold(weight: Tensor, diagonal: Tensor) -> float:
    """mean_j(var(W[:, j]) / U_jj^2): what tau multiplies. 0 for a matrix of a single row."""
    if weight.shape[0] < 2 or not weight.shape[1]:
        return 0.0
    return float((weight.var(0) / diagonal.square()).mean())


def leave_one_out_gain(weight: Tensor, diagonal: Tensor, bits: int) -> Tensor:
    """How much less each weight's group (O, g) errs if it is left out: the squared error of the whole group minus that
    of the others under a quantizer fitted to them, (O, g), each error over U_jj^2."""
    low, high = weight.amin(1), weight.amax(1)
    scale, zero = fit(low, high, bits)
    whole = _squared(weight, scale[:, None], zero[:, None], diagonal, bits).sum(1)
    low, high = range_of_others(weight)
    scale, zero = fit(low, high, bits)
    # (O, the one left out, g)
    others = _squared(weight[:, None, :], scale[:, :, None], zero[:, :, None], diagonal, bits)
    others.diagonal(dim1=1, dim2=2).zero_()
    return whole[:, None] - others.sum(2)


def range_of_others(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest of the other weights of each weight's group, (O, g) both; g >= 2."""
    two_low = weight.topk(2, dim=1, largest=False).values
    two_high = weight.topk(2, dim=1).values
    low = torch.where(weight == two_low[:, :1], two_low[:, 1:], two_low[:, :1])
    high = torch.where(weight == two_high[:, :1], two_high[:, 1:], two_high[:, :1])
    return low, high


def without_outliers(weight: Tensor, likely: Tensor) -> Tensor:
    """`weight` (O, g) with likely outliers replaced by the mean of the others of their group."""
    kept = ~likely
    mean = (weight * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp(min=1)
    return torch.where(likely, mean, weight)


def _squared(weight: Tensor, scale: Tensor, zero: Tensor, diagonal: Tensor, bits: int) -> Tensor:
    return ((weight - dequantize(quantize(weight, scale, zero, bits), scale, zero)) / diagonal).square()
