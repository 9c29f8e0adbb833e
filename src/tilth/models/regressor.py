"""A decoder that reads points and values of a function, and predicts each value from what came before it.

Shapes: B sequences, K points, d coordinates of a point, D width.
"""

from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from tilth.models.config import ModelConfig, TransformerConfig
from tilth.models.transformer import Transformer, named_generator
from tilth.recipe import BadInput


def small_decoder(context: int = 64) -> TransformerConfig:
    """GPT-2's shape in small: 3 layers, width 48, 4 heads."""
    return TransformerConfig(vocab_size=0, layers=3, width=48, heads=4, feed_forward=192, activation="gelu",
                             norm="layer", positions="learned", biases=True, context=context)


class RegressorConfig(ModelConfig):
    """A transformer over sequences x_1, y_1, x_2, y_2, ... of numbers, which predicts y_i at the position of x_i.

    The set-up of Garg et al. 2022 (arXiv 2208.01066, section 3): x_i and y_i are tokens of their own, read by one
    linear map and answered by another. A token has d + 1 numbers: (x_i, 0) or (0, y_i), so that the two kinds stay
    apart at d = 1 too (Garg et al. pad y to d numbers). dims, points: d and K; left out, those of the stream.
    """

    kind: str = "regressor"
    body: TransformerConfig = Field(default_factory=small_decoder)
    dims: int | None = Field(None, ge=1)
    points: int | None = Field(None, ge=1)

    @field_validator("body")
    @classmethod
    def _reads_numbers(cls, body: TransformerConfig) -> TransformerConfig:
        if body.attention != "causal" or body.cross_attention or body.vocab_size:
            raise ValueError("the body of a regressor is a causal decoder without a vocabulary (vocab_size: 0)")
        return body.model_copy(update={"vocab_size": 0})

    def build(self) -> "Regressor":
        if self.dims is None or self.points is None:
            raise BadInput("`model.dims` and `model.points` are not known yet: the stream says them, or set them.")
        return Regressor(self)

    def parameters(self, embeddings: bool = True, active: bool = False) -> int:
        ends = self.body.width * ((self.dims or 0) + 1 + 1) + self.body.width + 1
        return self.body.parameters(embeddings, active) + (ends if embeddings else 0)

    def flops_per_token(self, length: int, training: bool = True) -> float:
        ends = 2.0 * self.body.width * ((self.dims or 0) + 1 + 0.5)  # half of the positions are read out
        return self.body.flops_per_token(length, training) + (3.0 if training else 1.0) * ends

    def flops_per_row(self) -> float:
        """Training FLOPs of a sequence of K points: 2 K - 1 tokens, since the last value is never read."""
        length = 2 * (self.points or 0) - 1
        return length * self.flops_per_token(length)


class Regressor(nn.Module):
    """`model(x (B, K, d), y (B, K)) -> (B, K)`: the prediction of y_i from x_1, y_1, ..., x_i."""

    def __init__(self, config: RegressorConfig):
        super().__init__()
        self.config = config
        assert config.dims is not None and config.points is not None
        body = config.body.model_copy(update={"context": max(config.body.context, 2 * config.points - 1)})
        self.body = Transformer(body)
        self.read_in = nn.Linear(config.dims + 1, body.width)
        self.read_out = nn.Linear(body.width, 1)

    def forward(self, x_BKd: Tensor, y_BK: Tensor) -> Tensor:
        rows, points, dims = x_BKd.shape
        if dims != self.config.dims or y_BK.shape != (rows, points):
            raise BadInput(f"The model reads points of {self.config.dims} numbers with one value each; it was given "
                           f"points {tuple(x_BKd.shape)} and values {tuple(y_BK.shape)}.")
        tokens = x_BKd.new_zeros(rows, points, 2, dims + 1)
        tokens[:, :, 0, :dims] = x_BKd
        tokens[:, :, 1, dims] = y_BK
        hidden = self.body.hidden(embeddings=self.read_in(tokens.flatten(1, 2)[:, :-1]))
        return self.read_out(hidden[:, 0::2]).squeeze(-1).float()

    @torch.no_grad()
    def initialize(self, seed: int) -> "Regressor":
        """Fill every parameter from (seed, its name) alone; predictions begin near zero."""
        self.body.initialize(seed)
        inputs, width = self.read_in.in_features, self.read_out.in_features
        for name, end, std in (("read_in", self.read_in, inputs**-0.5), ("read_out", self.read_out, 1 / width)):
            drawn = torch.empty(end.weight.shape, dtype=torch.float32, device="cpu")
            end.weight.copy_(drawn.normal_(0.0, std, generator=named_generator(seed, name)))
            end.bias.zero_()
        return self

    def rate_factors(self) -> dict[str, float]:
        return self.body.rate_factors()

    @property
    def blocks(self) -> Any:
        return self.body.blocks
