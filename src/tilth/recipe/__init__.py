"""The frame of typed configuration: loading, overrides, errors that name the key; the stage graph; manifests."""

from tilth.recipe.console import Progress, duration, quantity, say
from tilth.recipe.errors import BadInput, Interrupted, RunFailed
from tilth.recipe.frame import Config, one_of, parse

__all__ = ["BadInput", "Config", "Interrupted", "Progress", "RunFailed", "duration", "one_of", "parse", "quantity",
           "say"]
