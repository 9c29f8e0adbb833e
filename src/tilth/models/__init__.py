"""Architectures from shared blocks; one transformer is decoder, prefix decoder, encoder or encoder-decoder."""

from collections.abc import Mapping

from tilth.models.cache import Cache
from tilth.models.card import model_card
from tilth.models.config import ModelConfig, TransformerConfig
from tilth.models.experts import Experts
from tilth.models.generate import generate
from tilth.models.huggingface import export_llama, import_llama
from tilth.models.output import token_losses
from tilth.models.transformer import Transformer

MODELS: Mapping[str, "type[ModelConfig] | str"] = {
    "transformer": TransformerConfig, "regressor": "tilth.models.regressor:RegressorConfig",
    "two_tower": "tilth.models.two_tower:TwoTowerConfig"}

__all__ = ["MODELS", "Cache", "Experts", "ModelConfig", "Transformer", "TransformerConfig", "export_llama", "generate",
           "import_llama", "model_card", "token_losses"]
