"""Normalisation layers. Shapes: x (..., D); statistics in float32 whatever the type of x."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilth.models.config import TransformerConfig
from tilth.precision.activations import InMode, kept_in_fp8


class _RMSNormOnCPU(torch.autograd.Function):
    """RMSNorm in few passes over memory: PyTorch composes it of a dozen on the CPU (forward and backward of 8192 x 320
    in float32: 22 ms against 8 ms here, on one core)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True,
                                        dtype=torch.promote_types(x.dtype, torch.float32))
        scale = torch.rsqrt(norm.square() / x.shape[-1] + epsilon).to(x.dtype)
        return (x * scale).mul_(weight), scale

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, weight, ctx.epsilon = inputs
        ctx.save_for_backward(x, weight, output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        x, weight, scale = ctx.saved_tensors
        if torch.is_grad_enabled():  # second derivatives: `scale` depends on x, so let autograd see how
            y = F.rms_norm(x, weight.shape, weight, ctx.epsilon)
            grad_x, grad_weight = torch.autograd.grad(y, (x, weight), grad, create_graph=True)
            return grad_x, grad_weight, None
        product = (grad * x).flatten(0, -2)
        mean = torch.mv(product, weight).view(scale.shape) / x.shape[-1]
        grad_weight = torch.mv(product.t(), scale.flatten())
        back = mean * scale.pow(3)
        return (grad * weight).mul_(scale).addcmul_(x, back, value=-1), grad_weight, None


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon) x weight over the last axis."""
    weight = weight.to(x.dtype)
    if x.device.type == "cpu" and type(x) is Tensor and not torch.compiler.is_compiling():
        return _RMSNormOnCPU.apply(x, weight, epsilon)[0]
    return F.rms_norm(x, weight.shape, weight, epsilon)


class RMSNorm(nn.Module, InMode):
    """Root mean square normalisation (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467)."""

    def __init__(self, width: int, epsilon: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return kept_in_fp8(self.mode, partial(rms_norm, epsilon=self.epsilon), (x,), self.weight)


class LayerNorm(nn.LayerNorm, InMode):
    """Layer normalisation (Ba et al. 2016, https://arxiv.org/abs/1607.06450)."""

    def forward(self, input: Tensor) -> Tensor:
        parameters = [one for one in (self.weight, self.bias) if one is not None]
        return kept_in_fp8(self.mode, self._normed, (input,), *parameters)

    def _normed(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


def build_norm(config: TransformerConfig) -> nn.Module:
    """The norm that the configuration names, over `width` features."""
    if config.norm == "rms":
        return RMSNorm(config.width, config.norm_epsilon)
    return LayerNorm(config.width, config.norm_epsilon, bias=config.biases)
