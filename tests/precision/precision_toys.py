"""A small model with weights that matter, and text for it."""

import numpy as np
import torch

from tilth.models import TransformerConfig


def small(**changes):
    """Two layers of width 32, evaluation mode; the same weights at every call."""
    fields = {"vocab_size": 300, "layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "feed_forward": 48, "context": 64,
              "init_std": 0.2}
    model = TransformerConfig(**{**fields, **changes}).build().initialize(0).eval()
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=rng))
    return model


def tokens():
    """(8, 64) int64, the same at every call."""
    return torch.randint(0, 257, (8, 64), generator=torch.Generator().manual_seed(2))


def texts(seed):
    """Some kilobytes of words."""
    rng = np.random.default_rng(seed)
    words = ["field", "seed", "rain", "plough", "harvest", "the", "a", "grows", "waits", "in", "under", "and"]
    return "\n".join(" ".join(rng.choice(words, 8)) for _ in range(60))
