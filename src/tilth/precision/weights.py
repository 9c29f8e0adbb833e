"""The methods that compress a weight matrix, as a recipe names them: rounding to nearest, GPTQ, SpQR.

    rtn     min-max groups, each weight rounded alone; needs no text
    gptq    the same groups, errors spread over later columns by the Hessian of calibration text
    spqr    small groups with two-level statistics, and the few weights that cost most kept in 16 bits
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from tilth.precision.gptq import Solved, solve
from tilth.precision.hessian import Factor, factorize
from tilth.precision.matrix import CompressedMatrix, Layout
from tilth.precision.statistics import Half, Statistics, TwoLevel
from tilth.recipe import BadInput, Config, one_of


@dataclass(frozen=True)
class Compressed:
    """A matrix as stored, and the solver's own measure of what it lost."""

    matrix: CompressedMatrix
    loss: float


class Method(Config):
    """Base of the methods. bits: of a code; group: columns that share a scale and a zero in each row, None: all."""

    kind: str = ""
    bits: int = Field(4, ge=2, le=8)
    group: int | None = Field(None, ge=1)

    @property
    def calibrated(self) -> bool:
        """Whether the method asks for the inputs of the layers."""
        return False

    def factor(self, hessian: Tensor, name: str) -> Factor:
        """What the method makes of the Hessian (I, I) of a layer's inputs."""
        return Factor.identity(len(hessian), hessian.device)

    def statistics(self) -> Statistics:
        """A fresh keeper of scales and zeros."""
        return Half()

    def layout(self, rows: int, columns: int, unit: float) -> Layout:
        """How a matrix of this shape is stored."""
        return Layout(rows=rows, columns=columns, bits=self.bits, group=self.group or max(columns, 1), unit=unit,
                      zero_bits=self.bits)

    def threshold(self) -> float:
        """tau of outliers; infinite: none."""
        return math.inf

    def compress(self, weight: Tensor, factor: Factor, name: str = "the layer") -> Compressed:
        """`weight` (O, I), any float type. Raises BadInput where it is not finite."""
        if not bool(torch.isfinite(weight).all()):
            bad = int((~torch.isfinite(weight)).sum())
            raise BadInput(f"{name} has {bad} weights that are not finite numbers; the model is damaged, and nothing "
                           f"was compressed.")
        unit = unit_of(weight)
        layout = self.layout(weight.shape[0], weight.shape[1], unit)
        solved = self._solve(weight.float() / unit, factor, layout)
        order = factor.order if self.calibrated else None
        return Compressed(CompressedMatrix.build(layout, solved.codes, solved.tensors, solved.outliers, solved.values,
                                                 order), solved.loss * unit**2)

    def _solve(self, weight: Tensor, factor: Factor, layout: Layout) -> Solved:
        if not weight.numel():
            empty = {"scale": torch.zeros(layout.rows, layout.groups, dtype=torch.float16),
                     "zero": torch.zeros(layout.rows, layout.groups, dtype=torch.uint8),
                     "scale_codes": torch.zeros(layout.rows, layout.groups, dtype=torch.uint8),
                     "zero_codes": torch.zeros(layout.rows, layout.groups, dtype=torch.uint8),
                     "second": torch.zeros(4, layout.tiles, layout.groups, dtype=torch.float16)}
            return Solved(torch.zeros(weight.shape, dtype=torch.uint8), torch.zeros(weight.shape, dtype=torch.bool),
                          weight, empty, 0.0)
        return solve(weight, factor, self.statistics(), self.bits, layout.group, self.threshold())


class RoundToNearest(Method):
    """Each weight rounded on its own, in min-max groups with 16-bit scales and integer zeros."""

    kind: str = "rtn"


class Calibrated(Method):
    """A method that reads the layers' inputs. damping: added to diag(H), as a share of its mean; act_order: columns by
    falling diag(H)."""

    damping: float = Field(0.01, ge=0)
    act_order: bool = True

    @property
    def calibrated(self) -> bool:
        return True

    def factor(self, hessian: Tensor, name: str) -> Factor:
        return factorize(hessian, self.damping, self.act_order, name)


class GPTQ(Calibrated):
    """Frantar et al. 2022, https://arxiv.org/abs/2210.17323: errors made up for by later columns. two_level: small
    statistics as SpQR has them, in place of 16-bit scales with integer zeros."""

    kind: str = "gptq"
    group: int | None = Field(128, ge=1)
    two_level: bool = Field(False, description="3-bit scales and zeros over 16 rows")

    def statistics(self) -> Statistics:
        return TwoLevel() if self.two_level else Half()

    def layout(self, rows: int, columns: int, unit: float) -> Layout:
        plain = super().layout(rows, columns, unit)
        return plain.model_copy(update={"tile_rows": 16, "scale_bits": 3, "zero_bits": 3}) if self.two_level else plain


class SpQR(Calibrated):
    """Dettmers et al. 2023, https://arxiv.org/abs/2306.03078. group: columns of a first-level group (beta1); tile_rows:
    rows that share second-level statistics (beta2); scale_bits, zero_bits: of first-level statistics; tau: outlier
    threshold, relative; *less* gives more outliers, None gives none."""

    kind: str = "spqr"
    group: int | None = Field(16, ge=1)
    tile_rows: int = Field(16, ge=1)
    scale_bits: int = Field(3, ge=1, le=8)
    zero_bits: int = Field(3, ge=1, le=8)
    tau: float | None = Field(0.2, gt=0)

    def statistics(self) -> Statistics:
        return TwoLevel(self.tile_rows, self.scale_bits, self.zero_bits)

    def threshold(self) -> float:
        return math.inf if self.tau is None else self.tau

    def layout(self, rows: int, columns: int, unit: float) -> Layout:
        return Layout(rows=rows, columns=columns, bits=self.bits, group=self.group or max(columns, 1), unit=unit,
                      tile_rows=self.tile_rows, scale_bits=self.scale_bits, zero_bits=self.zero_bits)


METHODS: Mapping[str, type[Method] | str] = {"rtn": RoundToNearest, "gptq": GPTQ, "spqr": SpQR}
MethodChoice = one_of(Method, METHODS)


def unit_of(weight: Tensor) -> float:
    """The power of two that brings the largest weight into [0.5, 1); 1 for a matrix of zeros or without weights."""
    largest = float(weight.abs().max()) if weight.numel() else 0.0
    return 2.0 ** math.frexp(largest)[1] if largest else 1.0
