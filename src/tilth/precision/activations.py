"""Matrix products in FP8, and activations that wait for the backward pass in FP8 (COAT, Xi et al. 2025, arXiv
2410.19313, section on mixed-granularity activation quantization).

fp8: the products of `Linear` layers. Inputs and weights in E4M3, gradients in E5M2, one scale a tensor from its own
largest magnitude (no history); what waits for the backward pass is the input's codes.
coat: besides, the inputs of norms and activation functions wait in E4M3 with a scale for each 16 features. What these
functions compute in the forward pass is exact; their gradient is that at the rounded input, which is computed again.
Weights, the residual stream, queries, keys and values, and the output matrix stay as they are.

Where a device has no FP8 products, they are emulated: quantize, multiply the codes in the type of the input, scale.
Shapes: N rows (all leading axes), K features in, M features out.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilth.precision import fp8, kernels
from tilth.precision.fp8 import E4M3, E5M2, Scaled, dequantize
from tilth.recipe.errors import BadInput

Mode = Literal["plain", "fp8", "coat"]
ALIGNMENT = 16  # FP8 tensor cores want every side of a product to be a multiple of it


class InMode:
    """A module that runs as `use_mode` last said; how it runs, not what it is, so no part of its state."""

    mode: Mode = "plain"


class Linear(nn.Linear, InMode):
    """y = x W^T + b, in FP8 unless `mode` is plain."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if self.mode == "plain" else linear(input, self.weight, self.bias)


def use_mode(module: nn.Module, mode: Mode) -> None:
    """Let all layers of `module` run in `mode`. BadInput where it has none, or a layer does not fit FP8 products."""
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, InMode)}
    if mode != "plain":
        if not layers:
            raise BadInput(f"`precision: {mode}` needs a model built of Tilth's transformer blocks, which "
                           f"{type(module).__name__} is not. Use precision bf16 or fp32.")
        for name, layer in layers.items():
            if isinstance(layer, Linear) and (layer.in_features % ALIGNMENT or layer.out_features % ALIGNMENT):
                raise BadInput(f"`precision: {mode}` needs sizes that are multiples of {ALIGNMENT}, but '{name}' is "
                               f"{layer.out_features} x {layer.in_features}. Change model.width, model.feed_forward "
                               f"or model.head_width.")
    for layer in layers.values():
        layer.mode = mode


def has_products(device: torch.device) -> bool:
    """Whether the device multiplies FP8 matrices: NVIDIA from compute capability 8.9 (Ada, Hopper)."""
    nvidia = device.type == "cuda" and torch.version.cuda is not None
    return nvidia and torch.cuda.get_device_capability(device) >= (8, 9)


def quantize_tensor(x: Tensor, dtype: torch.dtype = E4M3) -> Scaled:
    """`fp8.quantize_tensor`, by a kernel on GPUs that have Triton."""
    return (kernels if x.is_cuda and kernels.available() else fp8).quantize_tensor(x, dtype)


def quantize_groups(x: Tensor) -> Scaled:
    """`fp8.quantize_groups` with groups of 1 x 16, by a kernel on GPUs that have Triton."""
    whole = x.shape[-1] % fp8.ACTIVATION_GROUP == 0
    return (kernels if x.is_cuda and whole and kernels.available() else fp8).quantize_groups(x)


def product(a_NK: Scaled, b_MK: Scaled, dtype: torch.dtype) -> Tensor:
    """a b^T, (N, M) in `dtype`; both with one scale."""
    if has_products(a_NK.codes.device):
        return scaled_mm(a_NK, b_MK, dtype)
    return F.linear(a_NK.codes.to(dtype), b_MK.codes.to(dtype)) * (a_NK.scale * b_MK.scale).to(dtype)


def scaled_mm(a_NK: Scaled, b_MK: Scaled, dtype: torch.dtype) -> Tensor:
    """The same by the device's FP8 units, which take the first row by row and the second column by column, and a K
    that is a multiple of 16."""
    a, b = a_NK.codes, b_MK.codes
    if short := -a.shape[1] % ALIGNMENT:
        a, b = (F.pad(x.view(torch.uint8), (0, short)).view(x.dtype) for x in (a.contiguous(), b.contiguous()))
    a, b = a.contiguous(), b.contiguous()
    return torch._scaled_mm(a, b.t(), scale_a=a_NK.scale, scale_b=b_MK.scale, out_dtype=dtype)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, codes_NK: Tensor, scale: Tensor, weight_MK: Tensor, bias_M: Tensor | None,
                dtype: torch.dtype) -> Tensor:
        y = product(Scaled(codes_NK, scale), quantize_tensor(weight_MK), dtype)
        ctx.save_for_backward(codes_NK, scale, weight_MK)
        ctx.with_bias, ctx.dtype = bias_M is not None, x.dtype
        y = y if bias_M is None else y + bias_M.to(dtype)
        return y.view(*x.shape[:-1], len(weight_MK))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        codes_NK, scale, weight_MK = ctx.saved_tensors
        rows_NM = grad.reshape(-1, len(weight_MK))
        g_NM = quantize_tensor(rows_NM, E5M2)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            weight = quantize_tensor(weight_MK)
            grad_NK = product(g_NM, Scaled(weight.codes.t(), weight.scale), grad.dtype)
            grad_x = grad_NK.to(ctx.dtype).view(*grad.shape[:-1], codes_NK.shape[1])
        if ctx.needs_input_grad[3]:
            g_MN = Scaled(g_NM.codes.t(), g_NM.scale)
            grad_weight = product(g_MN, Scaled(codes_NK.t(), scale), grad.dtype).to(weight_MK.dtype)
        return grad_x, None, None, grad_weight, rows_NM.sum(0) if ctx.with_bias else None, None


def linear(x: Tensor, weight_MK: Tensor, bias_M: Tensor | None = None) -> Tensor:
    """x W^T + b with FP8 products: x (..., K), y (..., M) in the type of x, or autocast's where that is on."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    codes = shared_codes(x)
    return _Linear.apply(x, codes.codes.view(-1, x.shape[-1]), codes.scale, weight_MK, bias_M, dtype)


def shared_codes(x: Tensor) -> Scaled:
    """E4M3 codes of x with one scale, computed once for all layers that read the same tensor (query, key and value;
    gate and up), so that they also wait for the backward pass only once."""
    if x.is_inference():
        return quantize_tensor(x)
    kept = getattr(x, "_fp8_codes", None)
    if kept is None or kept[0] != x._version:
        kept = (x._version, quantize_tensor(x.detach()))
        x._fp8_codes = kept  # type: ignore[attr-defined]
    return kept[1]


class _Kept(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], activations: int, *inputs: Tensor) -> Tensor:
        kind = inputs[0].device.type
        ctx.function, ctx.dtypes = function, [x.dtype for x in inputs[:activations]]
        ctx.autocast = {"device_type": kind, "enabled": torch.is_autocast_enabled(kind),
                        "dtype": torch.get_autocast_dtype(kind)}
        ctx.save_for_backward(*inputs[activations:], *(part for x in inputs[:activations] for part in
                                                       quantize_groups(x)))
        return function(*inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: activation checkpointing allows no second look
        first = len(saved) - 2 * len(ctx.dtypes)
        stored = [Scaled(*saved[at : at + 2]) for at in range(first, len(saved), 2)]
        rounded = [dequantize(one, dtype) for one, dtype in zip(stored, ctx.dtypes, strict=True)]
        inputs = [x.detach().requires_grad_(needed) for x, needed in
                  zip([*rounded, *saved[:first]], ctx.needs_input_grad[2:], strict=True)]
        with torch.enable_grad(), torch.autocast(**ctx.autocast):
            out = ctx.function(*inputs)
        found = iter(torch.autograd.grad(out, [x for x in inputs if x.requires_grad], grad))
        return None, None, *(next(found) if x.requires_grad else None for x in inputs)


def kept_in_fp8(mode: Mode, function: Callable[..., Tensor], activations: tuple[Tensor, ...],
                *parameters: Tensor) -> Tensor:
    """`function(*activations, *parameters)`; under `coat`, the activations wait for its backward pass in FP8, in groups
    of 1 x 16 along their last axis."""
    if mode != "coat" or not torch.is_grad_enabled():
        return function(*activations, *parameters)
    return _Kept.apply(function, len(activations), *activations, *parameters)
