"""A linear layer whose weight stays compressed: it decodes a piece of rows at a time, multiplies and forgets.

On a CUDA device with Triton, one token at a time goes through a kernel that reads the packed weights once
(`tilth.precision.spqr_kernel`).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilth.precision.matrix import CompressedMatrix, Layout


class CompressedLinear(nn.Module):
    """y = x W^T + b with a `CompressedMatrix` as W; the stored parts are buffers, so that they move with the model and
    are in its state. Not trainable."""

    bias: Tensor | None

    def __init__(self, matrix: CompressedMatrix, bias: Tensor | None = None):
        super().__init__()
        self.layout: Layout = matrix.layout
        self.in_features, self.out_features = matrix.layout.columns, matrix.layout.rows
        for part, tensor in matrix.tensors.items():
            self.register_buffer(part, tensor)
        self.register_buffer("bias", None if bias is None else bias.detach())

    @property
    def matrix(self) -> CompressedMatrix:
        parts = {name: tensor for name, tensor in self.named_buffers(recurse=False) if name != "bias"}
        return CompressedMatrix(self.layout, parts)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I) -> (..., O), in the type of x."""
        matrix = self.matrix
        if "order" in matrix.tensors:
            x = x[..., matrix.tensors["order"].long()]
        if x.is_cuda and x.numel() == self.in_features and not torch.is_grad_enabled():
            from tilth.precision.spqr_kernel import available, multiply
            if available():
                y = multiply(matrix, x.reshape(-1)).view(*x.shape[:-1], self.out_features).to(x.dtype)
                return y if self.bias is None else y + self.bias.to(x.dtype)
        y = torch.empty(*x.shape[:-1], self.out_features, dtype=x.dtype, device=x.device)
        for rows, weight in matrix.pieces():
            y[..., rows] = F.linear(x, weight.to(x.dtype))
        return y if self.bias is None else y + self.bias.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, {self.layout.bits} bits, groups of {self.layout.group}"


def compressed_layers(model: nn.Module) -> dict[str, CompressedLinear]:
    """The compressed layers of a model, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, CompressedLinear)}


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` in the place of the submodule called `name`."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def expand(model: Any) -> Any:
    """Every compressed layer as a plain `nn.Linear` again, in place: for speed where memory is no concern."""
    for name, layer in compressed_layers(model).items():
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        plain.weight = nn.Parameter(layer.matrix.weight(), requires_grad=False)
        if layer.bias is not None:
            plain.bias = nn.Parameter(layer.bias, requires_grad=False)
        replace(model, name, plain)
    return model
