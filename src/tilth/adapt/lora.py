"""LoRA (Hu et al. 2021, arXiv 2106.09685): a frozen matrix W learns by a product of two thin ones beside it.

    y = x W^T + b + alpha / rank x (x A^T) B^T          A (rank, in), B (out, rank)

A begins normal with variance 1 / in, so that x A^T has the scale of x, and B with zeros: the adapted model begins as
the model it was. Only A and B have gradients and optimizer states. At the end W + alpha / rank x B A takes the place of
W, and the result is a plain model again.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tilth.models.transformer import named_generator
from tilth.precision.activations import Linear
from tilth.precision.linear import replace
from tilth.recipe import BadInput, Config
from tilth.recipe.frame import nearest

if TYPE_CHECKING:
    from tilth.models import TransformerConfig

ADAPTERS = ("adapter_in", "adapter_out")


class Lora(Config):
    """Adapters of `rank` beside the linear maps of the blocks whose names end in one of `targets`, scaled by
    alpha / rank; everything else is frozen."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    targets: list[str] = Field(default_factory=lambda: ["query", "key", "value", "out", "gate", "up", "down"],
                               min_length=1)

    def adapt(self, model: nn.Module, seed: int) -> None:
        """Freeze `model` and put adapters beside its targets, in place; initial values depend on the seed and the
        layer's name only. BadInput where a target names no map."""
        linears = {name: module for name, module in model.named_modules()
                   if isinstance(module, Linear) and name.startswith("blocks.")}
        ends = sorted({name.rpartition(".")[2] for name in linears})
        for target in self.targets:
            if target not in ends:
                raise BadInput(f"`lora.targets` names '{target}', which this model does not have"
                               f"{nearest(target, ends)} Its linear maps are {', '.join(ends)}.")
        model.requires_grad_(False)
        for name, layer in linears.items():
            if name.rpartition(".")[2] in self.targets:
                replace(model, name, LoraLinear(layer, self, named_generator(seed, f"{name}.adapter_in")))


class LoraLinear(Linear):
    """`layer` (whose tensors it takes over, frozen) with an adapter beside it. In FP8, the layer's own product runs in
    FP8 and the adapter in the type of its input."""

    def __init__(self, layer: Linear, lora: Lora, generator: torch.Generator):
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        self.weight, self.bias, self.mode = layer.weight, layer.bias, layer.mode
        self.scale = lora.alpha / lora.rank
        drawn = torch.empty(lora.rank, layer.in_features).normal_(0, layer.in_features**-0.5, generator=generator)
        self.adapter_in = nn.Parameter(drawn.to(layer.weight))
        self.adapter_out = nn.Parameter(layer.weight.new_zeros(layer.out_features, lora.rank))

    def forward(self, input: Tensor) -> Tensor:
        low = F.linear(F.linear(input, self.adapter_in), self.adapter_out)
        return super().forward(input) + self.scale * low


def merged(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` (of `model`, whole tensors) with every adapter multiplied into its matrix, under the names of the plain
    model; products in float64."""
    state = dict(state)
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLinear):
            inward, outward = (state.pop(f"{name}.{part}").double() for part in ADAPTERS)
            weight = state[f"{name}.weight"]
            state[f"{name}.weight"] = (weight.double() + layer.scale * outward @ inward).to(weight.dtype)
    return state


def training_flops(model: Any, length: int) -> float:
    """FLOPs of a token's forward and backward pass with frozen matrices: they pass the gradient on, but have none of
    their own, so their products count twice and not three times; attention's own products and adapters count in full.
    (Of the first block, what would pass the gradient on to the embedding is counted too.)"""
    config: TransformerConfig = model.config
    forward, scores = config.flops_per_token(length, training=False), config.score_flops(length)
    adapters = 0.0
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLinear):
            asked = config.experts.active / config.experts.count if config.experts and ".experts." in name else 1.0
            adapters += 2 * asked * (layer.adapter_in.numel() + layer.adapter_out.numel())
    return 2 * (forward - scores) + 3 * scores + 3 * adapters
