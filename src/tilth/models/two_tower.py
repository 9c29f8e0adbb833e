"""Two towers that bring images and captions to one space, where a pair lies close together (CLIP's shape, in small).

Shapes: B pairs, H x W pixels of C colours, P patches, L tokens, J numbers of the joint space.
"""

import math
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from tilth.models.config import ModelConfig, TransformerConfig
from tilth.models.transformer import Transformer, named_generator
from tilth.recipe import BadInput


def small_tower(**more: Any) -> TransformerConfig:
    """Two layers of width 64, bidirectional."""
    return TransformerConfig(**{"layers": 2, "width": 64, "heads": 4, "attention": "bidirectional",
                                "positions": "learned", "norm": "layer", "biases": True, **more})


class TwoTowerConfig(ModelConfig):
    """An image encoder over patches and a text encoder over tokens, each averaged and mapped to `joint` numbers of
    length one; their products times a learned scale are the logits (Radford et al. 2021, arXiv 2103.00020, figure 3).

    image_shape (H, W, C), vocab_size and caption_length, left out, are those of the stream. patch: pixels of a side of
    a patch, which must divide H and W. The scale starts at 1 / temperature and stays below `scale_most`.
    """

    kind: str = "two_tower"
    image: TransformerConfig = Field(default_factory=lambda: small_tower(vocab_size=0))
    text: TransformerConfig = Field(default_factory=small_tower)
    joint: int = Field(64, ge=1)
    patch: int = Field(4, ge=1)
    temperature: float = Field(0.07, gt=0)
    scale_most: float = Field(100.0, gt=0)
    image_shape: tuple[int, int, int] | None = None
    vocab_size: int | None = Field(None, ge=1)
    caption_length: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _towers(self) -> "TwoTowerConfig":
        for name in ("image", "text"):
            if (tower := getattr(self, name)).attention != "bidirectional" or tower.cross_attention:
                raise ValueError(f"the {name} tower is an encoder: set its attention to bidirectional")
        return self

    def patches(self) -> int:
        """P; BadInput where the patch does not divide the image."""
        height, width, _ = self._known(self.image_shape, "image_shape")
        if height % self.patch or width % self.patch:
            raise BadInput(f"`model.patch` is {self.patch}, which does not divide an image of {height} x {width} "
                           f"pixels; choose another patch, or another `size` of the images.")
        return (height // self.patch) * (width // self.patch)

    def towers(self) -> tuple[TransformerConfig, TransformerConfig]:
        """The configurations of both encoders, fitted to the data."""
        length, vocabulary = self._known(self.caption_length, "caption_length"), self._known(self.vocab_size,
                                                                                            "vocab_size")
        return (self.image.model_copy(update={"vocab_size": 0, "context": self.patches()}),
                self.text.model_copy(update={"vocab_size": vocabulary, "context": length}))

    def build(self) -> "TwoTower":
        return TwoTower(self)

    def parameters(self, embeddings: bool = True, active: bool = False) -> int:
        image, text = self.towers()
        ends = self._pixels_of_a_patch() * image.width + image.width + (image.width + text.width) * self.joint + 1
        return image.parameters(embeddings, active) + text.parameters(embeddings, active) + ends

    def flops_per_row(self) -> float:
        """Training FLOPs of a pair: both encoders (the text tower predicts no token), patches read in, both ends. The
        products of pairs with each other are not counted: B J of them beside all matrices."""
        image, text = self.towers()
        wordless = text.model_copy(update={"vocab_size": 0})
        patches, length = self.patches(), text.context
        ends = 6.0 * (patches * self._pixels_of_a_patch() * image.width + (image.width + text.width) * self.joint)
        return patches * image.flops_per_token(patches) + length * wordless.flops_per_token(length) + ends

    def _pixels_of_a_patch(self) -> int:
        return self.patch**2 * self._known(self.image_shape, "image_shape")[2]

    def _known(self, value: Any, name: str) -> Any:
        if value is None:
            raise BadInput(f"`model.{name}` is not known yet: the stream says it, or set it.")
        return value


class TwoTower(nn.Module):
    """`images(pixels)` and `texts(tokens, held)`, both (B, J) of length one; `scale()` multiplies their products."""

    def __init__(self, config: TwoTowerConfig):
        super().__init__()
        self.config = config
        image, text = config.towers()
        self.image, self.text = Transformer(image), Transformer(text)
        self.read_in = nn.Linear(config._pixels_of_a_patch(), image.width)
        self.image_out = nn.Linear(image.width, config.joint, bias=False)
        self.text_out = nn.Linear(text.width, config.joint, bias=False)
        self.log_scale = nn.Parameter(torch.empty(()))

    def images(self, pixels: Tensor) -> Tensor:
        """pixels: (B, H, W, C) uint8."""
        if tuple(pixels.shape[1:]) != tuple(self.config.image_shape or ()):
            raise BadInput(f"The model reads images of shape {self.config.image_shape}, not "
                           f"{tuple(pixels.shape[1:])}.")
        rows, height, width, colours = pixels.shape
        patch = self.config.patch
        cut = pixels.view(rows, height // patch, patch, width // patch, patch, colours).permute(0, 1, 3, 2, 4, 5)
        patches_BPX = cut.reshape(rows, self.config.patches(), -1).float() / 127.5 - 1
        hidden_BPD = self.image.hidden(embeddings=self.read_in(patches_BPX))
        return F.normalize(self.image_out(hidden_BPD.mean(1)).float(), dim=-1)

    def texts(self, tokens: Tensor, held: Tensor) -> Tensor:
        """tokens: (B, L) int64; held: (B, L) bool, false on padding, which is neither seen nor averaged."""
        hidden_BLD = self.text.hidden(tokens, segments=torch.where(held, 0, -1))
        weights = held / held.sum(1, keepdim=True).clamp(min=1)
        return F.normalize(self.text_out((hidden_BLD * weights[:, :, None]).sum(1)).float(), dim=-1)

    def scale(self) -> Tensor:
        return self.log_scale.exp().clamp(max=self.config.scale_most)

    def forward(self, pixels: Tensor, tokens: Tensor, held: Tensor) -> Tensor:
        """Logits of every image with every text, (B, B)."""
        return self.scale() * self.images(pixels) @ self.texts(tokens, held).T

    @torch.no_grad()
    def initialize(self, seed: int) -> "TwoTower":
        """Fill every parameter from (seed, its name) alone; the towers from seeds of their own."""
        self.image.initialize(2 * seed)
        self.text.initialize(2 * seed + 1)
        for name in ("read_in", "image_out", "text_out"):
            end = getattr(self, name)
            drawn = torch.empty(end.weight.shape, dtype=torch.float32, device="cpu")
            end.weight.copy_(drawn.normal_(0.0, end.in_features**-0.5, generator=named_generator(seed, name)))
        self.read_in.bias.zero_()
        self.log_scale.fill_(math.log(1 / self.config.temperature))
        return self

    @property
    def blocks(self) -> Any:
        return [*self.image.blocks, *self.text.blocks]
