"""AdamW whose two moments are stored in FP8, their range expanded group by group (COAT, Xi et al. 2025, arXiv
2410.19313, section on optimizer states; the format is in `tilth.precision.fp8`).

A step reads the moments, does AdamW's update in float32 (Loshchilov and Hutter 2019, with bias correction), and stores
them anew. A parameter then takes 2 bytes of state and four float32 scalars a group of 128: 2.125 bytes, against 8.
Groups run along the flattened parameter; of a parameter that is spread over processes, along each one's own part.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from tilth.optim.coat_state import parts_of, restored, saved
from tilth.optim.optimizers import OptimizerConfig, ParameterGroup
from tilth.precision import kernels
from tilth.precision.fp8 import MOMENT_GROUP, Exponent, Moment, dequantize_moment, quantize_moment
from tilth.recipe.errors import BadInput

CHUNK = MOMENT_GROUP << 13  # numbers worked on at a time: bounds what a step needs beside the state


class CoatAdamW(OptimizerConfig):
    """AdamW with moments in FP8, their range expanded (COAT): 2.1 bytes of state a parameter instead of 8.

    expansion: false stores plain FP8, as other 8-bit optimizers do. exponent: exact, as published, or rounded down to
    sixteenths, as in the authors' code.
    """

    kind: str = "coat_adamw"
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = Field(1e-8, gt=0)
    expansion: bool = True
    exponent: Exponent = "exact"

    @property
    def state_bytes(self) -> float:
        """Two codes, and two or four float32 scalars a group of 128; groups that are not full take more."""
        return 2 + (16 if self.expansion else 8) / MOMENT_GROUP

    def build(self, groups: Iterable[ParameterGroup]) -> torch.optim.Optimizer:
        return Fp8AdamW(self.settings(list(groups)), lr=self.rate, betas=self.betas, eps=self.epsilon,
                        expansion=self.exponent if self.expansion else None)


class Fp8AdamW(torch.optim.Optimizer):
    """Takes the place of `torch.optim.AdamW`.

    expansion: how the exponents of groups are found, or None for plain FP8. fused: one Triton kernel for the whole
    step; by default on GPUs that have Triton. Raises ValueError for settings out of range, BadInput for parameters
    spread over processes otherwise than along their first dimension.
    """

    def __init__(self, parameters: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: float = 1e-2, expansion: Exponent | None = "exact",
                 fused: bool | None = None):
        if lr < 0 or eps < 0 or weight_decay < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"lr {lr}, eps {eps}, weight_decay {weight_decay} must not be negative, and betas {betas} "
                             f"must lie in [0, 1)")
        self.expansion, self.fused = expansion, fused
        self._largest: list[Tensor] = []
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._largest = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, group)
        return loss

    def figures(self) -> dict[str, float]:
        """largest_update: the largest |m / (sqrt(v) + eps)| of the last step, bias-corrected. About 1 to 10; thousands
        where a second moment fell to 0 while its first did not."""
        return {"largest_update": float(torch.stack(self._largest).max())} if self._largest else {}

    def moments(self, parameter: Tensor) -> tuple[Tensor, Tensor]:
        """m and v as they are stored, float32, in the shape of the parameter (of its part on this process)."""
        state, own = self.state[parameter], parts_of(parameter).local
        first, second = (dequantize_moment(moment_of(state, name)).view(own.shape) for name in ("m", "v"))
        return first, second

    def _step(self, parameter: Tensor, group: dict[str, Any]) -> None:
        own, grad = parts_of(parameter).local, parts_of(parameter.grad).local
        if grad.is_sparse:
            raise BadInput("`optimizer.kind` coat_adamw stores moments in groups of neighbours, which a sparse "
                           "gradient does not fit; use adamw, or dense embeddings.")
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            for name in ("m", "v"):
                put(state, name, quantize_moment(torch.zeros(own.numel(), device=own.device), self.expansion))
        state["step"] += 1
        flat = own.contiguous().view(-1)
        self._update(flat, grad.reshape(-1), state, group)
        if flat.data_ptr() != own.data_ptr():
            own.copy_(flat.view_as(own))

    def _update(self, flat: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        """One step of the parameter's numbers and state, in place."""
        moments = moment_of(state, "m"), moment_of(state, "v")
        fused = flat.is_cuda and kernels.available() if self.fused is None else self.fused
        step = kernels.adamw_step if fused else adamw_step
        size = max(len(flat), 1) if fused else CHUNK
        for start in range(0, len(flat), size):
            numbers = slice(start, start + size)
            groups = slice(start // MOMENT_GROUP, -(-(start + size) // MOMENT_GROUP))
            views = [Moment(one.codes[numbers], one.largest[groups], None if one.exponent is None else
                            one.exponent[groups]) for one in moments]
            self._largest.append(step(flat[numbers], grad[numbers], *views, number=state["step"], lr=group["lr"],
                                      betas=group["betas"], eps=group["eps"], decay=group["weight_decay"],
                                      expansion=self.expansion))

    def state_dict(self) -> dict[str, Any]:
        """As torch's; of spread parameters with codes that are spread alike (every process must ask)."""
        found = super().state_dict()
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        states = {index: saved(state, parameters[index]) for index, state in found["state"].items()}
        return {**found, "state": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes a state from any number of processes. Groups that stay whole keep their bits; where a part now begins
        within a group, its numbers are stored anew."""
        # torch would cast the codes to the type of the parameters.
        super().load_state_dict({**state_dict, "state": {}})
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, state in state_dict["state"].items():
            if (state["m_exponent"] is None) != (self.expansion is None):
                raise BadInput("`optimizer.expansion` of the saved state is another: both moments are stored with it, "
                               "or both without. Put the recipe back, or start a new run.")
            self.state[parameters[index]] = restored(state, parameters[index], self.expansion)


def moment_of(state: dict[str, Any], name: str) -> Moment:
    """The moment `m` or `v` of a parameter's state, its codes flat."""
    return Moment(state[f"{name}_codes"].view(-1), state[f"{name}_largest"], state[f"{name}_exponent"])


def put(state: dict[str, Any], name: str, moment: Moment) -> None:
    """The inverse of `moment_of`."""
    state |= {f"{name}_codes": moment.codes, f"{name}_largest": moment.largest, f"{name}_exponent": moment.exponent}


def adamw_step(flat: Tensor, grad: Tensor, first: Moment, second: Moment, *, number: int, lr: float,
               betas: tuple[float, float], eps: float, decay: float, expansion: Exponent | None) -> Tensor:
    """The definition of a step, on n numbers from a group's beginning: `flat` and both moments change in place.

    number: of the step, from 1. Returns max |m / (sqrt(v) + eps)|, bias-corrected, a scalar.
    """
    grad = grad.float()
    m = dequantize_moment(first).lerp_(grad, 1 - betas[0])
    v = dequantize_moment(second).mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])
    spread = (v / (1 - betas[1]**number)).sqrt_().add_(eps)
    update = (m / (1 - betas[0]**number)).div_(spread)
    flat.copy_(flat.float().mul_(1 - lr * decay).sub_(update, alpha=lr))
    for stored, values in ((first, m), (second, v)):
        for into, new in zip(stored, quantize_moment(values, expansion), strict=True):
            if into is not None and new is not None:
                into.copy_(new)
    return update.abs().amax() if len(update) else update.new_zeros(())
