"""Linear layers that compute as if in fewer bits, put into a model from outside (Lee et al. 2024, arXiv 2405.18710).

The operands of a layer's three matrix products are rounded to a simulated format: input and weight forward, and the
gradient of the output backward, where it meets the rounded weight and the rounded input. Sums, biases, normalisation,
attention's own products, embeddings and the output matrix stay as they were, and the master weights too: a rounded
operand passes its gradient straight through. Which layers and which steps is a matter of the recipe.
"""

from fnmatch import fnmatchcase
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from tilth.precision.formats import NumberFormat, Overflow, Rounding, Scaling, holds, quantize
from tilth.recipe.errors import BadInput
from tilth.recipe.frame import Config


class Simulated(Config):
    """Rounds operands of linear layers. forward, backward: a format such as E8M3, E5M2, E4M3fn or bf16, or null to
    leave that pass alone; layers, except_layers: patterns (`blocks.0.*`, `*.down`) over the names of a model's linear
    modules; first_step, end_step: only from this step on, and before that one. Losses of held-out text and of probes
    are taken in the format of the last step."""

    forward: str | None = Field("E8M7", description="of inputs and weights")
    backward: str | None = Field("E8M7", description="of the gradients of outputs")
    rounding: Rounding = "nearest"
    overflow: Overflow = "saturate"
    scaling: Scaling = Field("none", description="tensor: each operand by a power of two that fills the range")
    layers: list[str] = Field(default_factory=lambda: ["*"], min_length=1)
    except_layers: list[str] = Field(default_factory=list)
    first_step: int = Field(0, ge=0)
    end_step: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _sound(self) -> "Simulated":
        for text in (self.forward, self.backward):
            if text is not None:
                try:
                    NumberFormat.parse(text)
                except BadInput as error:
                    raise ValueError(str(error)) from error
        if self.forward is None and self.backward is None:
            raise ValueError("give a format to forward, backward or both; null in both rounds nothing")
        if self.end_step is not None and self.end_step <= self.first_step:
            raise ValueError(f"end_step ({self.end_step}) must be beyond first_step ({self.first_step})")
        return self

    def apply(self, model: nn.Module) -> "Simulation":
        """Exchange the chosen linear modules of `model` for rounding ones; parameters, their names and their order
        stay the same. BadInput where a pattern matches no module."""
        linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        for pattern in [*self.layers, *self.except_layers]:
            if not any(fnmatchcase(name, pattern) for name in linears):
                raise BadInput(f"`simulated` names the layers '{pattern}', but the model has no such linear module. It "
                               f"has {', '.join([*linears][:8])}{' ...' if len(linears) > 8 else ''}.")
        chosen = [name for name in linears if _matches(name, self.layers) and not _matches(name, self.except_layers)]
        if not chosen:
            raise BadInput("`simulated` leaves no linear module to round: `except_layers` takes all of `layers`.")
        simulation = Simulation(self, chosen)
        for name in chosen:
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, SimulatedLinear(linears[name], simulation))
        return simulation


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


class Simulation:
    """What the rounding layers of one model share; `layers`: their names."""

    def __init__(self, config: Simulated, layers: list[str]):
        self.config, self.layers = config, layers
        self.forward = None if config.forward is None else NumberFormat.parse(config.forward)
        self.backward = None if config.backward is None else NumberFormat.parse(config.backward)
        self.active = config.first_step == 0

    def at(self, step: int) -> None:
        """Say which step (from 0) comes next; layers round or not accordingly."""
        end = self.config.end_step
        self.active = step >= self.config.first_step and (end is None or step < end)

    def quantize(self, x: Tensor, number: NumberFormat) -> Tensor:
        return quantize(x, number, self.config.rounding, self.config.overflow, self.config.scaling)

    def check(self, dtype: torch.dtype) -> None:
        """BadInput where a product in `dtype` would round the simulated numbers once more."""
        for number in (self.forward, self.backward):
            if number is not None and not holds(dtype, number):
                raise BadInput(f"{number} cannot be simulated in {str(dtype).removeprefix('torch.')}, which does not "
                               f"hold all of its numbers; set `precision: fp32`.")


class SimulatedLinear(nn.Linear):
    """The linear module `inner`, its operands rounded; (..., in) to (..., out)."""

    def __init__(self, inner: nn.Linear, simulation: Simulation):
        nn.Module.__init__(self)  # takes over the parameters, makes none
        self.in_features, self.out_features = inner.in_features, inner.out_features
        self.weight, self.bias = inner.weight, inner.bias
        self.simulation = simulation
        self.training = inner.training

    def forward(self, input: Tensor) -> Tensor:
        simulation = self.simulation
        if not simulation.active:
            return super().forward(input)
        simulation.check(_product_dtype(input))
        weight = self.weight
        if simulation.forward is not None:
            input, weight = _RoundForward.apply(input, simulation), _RoundForward.apply(weight, simulation)
        out = nn.functional.linear(input, weight)
        if simulation.backward is not None:
            out = _RoundBackward.apply(out, simulation)
        return out if self.bias is None else out + self.bias.to(out.dtype)


def _product_dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class _RoundForward(torch.autograd.Function):
    """Rounds on the way forward; gradients pass straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, simulation: Simulation) -> Tensor:
        assert simulation.forward is not None
        return simulation.quantize(x, simulation.forward)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _RoundBackward(torch.autograd.Function):
    """Rounds the gradient on its way back; values pass as they are."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, simulation: Simulation) -> Tensor:
        ctx.simulation = simulation
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.simulation.quantize(gradients[0], ctx.simulation.backward), None
