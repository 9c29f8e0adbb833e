"""Measures of models that are no language models: what a `train` stage asks of its model at the end."""

from typing import Any

from tilth.data.streams import UnitStream
from tilth.recipe import Config


class Measure(Config):
    """`of(model, stream, device) -> figures as JSON`; the model is in evaluation mode, on that device. `kind` is one of
    `tilth.stages.unit_parts.MEASURES`."""

    kind: str = ""

    def check(self, stream: UnitStream) -> None:
        """Raise BadInput, before anything is trained, where the measure cannot be taken of a model of this stream."""

    def of(self, model: Any, stream: UnitStream, device: Any) -> dict[str, Any]:
        """stream: what the model was trained on (its vocabulary, its classes); it is not to be moved."""
        raise TypeError(f"{type(self).__name__} does not define of.")
