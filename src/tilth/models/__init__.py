"""Architectures from shared blocks; one transformer is decoder, prefix decoder, encoder or encoder-decoder."""

from collections.abc import Mapping

from tilth.models.cache import Cache
from tilth.models.config import ModelConfig, TransformerConfig
from tilth.models.transformer import Transformer

MODELS: Mapping[str, "type[ModelConfig] | str"] = {"transformer": TransformerConfig}

__all__ = ["MODELS", "Cache", "ModelConfig", "Transformer", "TransformerConfig"]
