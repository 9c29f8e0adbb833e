"""Normalisation layers. Shapes: x (..., D); statistics in float32 whatever the type of x."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from tilth.models.config import TransformerConfig


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) x weight over the last axis (Zhang and Sennrich 2019)."""

    def __init__(self, width: int, epsilon: float):
        super().__init__()
        self.weight = Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.epsilon)


def build_norm(config: TransformerConfig) -> nn.Module:
    """The norm that the configuration names, over `width` features."""
    if config.norm == "rms":
        return RMSNorm(config.width, config.norm_epsilon)
    return nn.LayerNorm(config.width, config.norm_epsilon, bias=config.biases)
