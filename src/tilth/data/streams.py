"""Streams that are not packed text: where their units come from, and what fits a model to them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from tilth.data.batch import Batch
from tilth.recipe import Config

Inputs = Callable[[str], Path]


class UnitStream:
    """A stream whose units are rows of equal shape: `next(rows)` gives U = B = rows units.

    facts: what fits a model to the stream (sizes, vocabularies), by the names of the fields of its configuration.
    """

    facts: Mapping[str, Any] = {}
    needs_losses = False  # whether weights come from a first pass, whose losses `weights` is given

    def next(self, rows: int) -> Batch:
        """The next `rows` units: tensors with a leading axis of B, among them unit_id, source and weight (U,)."""
        raise NotImplementedError(f"{type(self).__name__} must say where its batches come from.")

    def observe(self, unit_id: torch.Tensor, loss: torch.Tensor) -> None:
        """Told of the mean loss of trained units, both (U,)."""

    def metrics(self) -> dict[str, float]:
        """Figures of the last step, which join its line of the metrics."""
        return {}

    def report(self) -> dict[str, Any]:
        """What was served, for the summary of the stage, as JSON."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        raise NotImplementedError(f"{type(self).__name__} must say what an exact restart needs.")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        raise NotImplementedError(f"{type(self).__name__} must take back its state.")


class StreamConfig(Config):
    """Base of the streams that a `train` stage can name; `kind` is one of `tilth.stages.unit_parts.STREAMS`."""

    kind: str = ""

    def reads(self) -> list[str]:
        """Stages of the recipe whose folders it reads."""
        return []

    def files(self) -> list[Path]:
        """Local files that it reads; a change of one runs the stage again."""
        return []

    def build(self, inputs: Inputs, seed: int) -> UnitStream:
        """The stream, at its beginning. inputs: the folder of a stage, by its name."""
        raise TypeError(f"{type(self).__name__} does not define build.")
