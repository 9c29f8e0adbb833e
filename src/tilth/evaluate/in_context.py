"""How well a model continues a function from k examples, for families it was trained on and for others."""

from typing import Any

import numpy as np
import torch
from pydantic import Field

from tilth.data.functions import FAMILIES, VARIANCE, Family, FunctionStream, draw_points
from tilth.data.seeding import generator
from tilth.data.streams import UnitStream
from tilth.evaluate.measures import Measure
from tilth.recipe import BadInput, one_of

ROWS = 512  # sequences of one forward pass


class InContext(Measure):
    """Squared error by number of examples on fresh functions of `families` (default: those trained on).

    functions: sequences of each family, from `seed` alone, so that models are compared on the same ones; late: the
    last positions whose mean stands for the family. The median stands beside the mean, which few examples (y / x) give
    heavy tails. Points and lengths are those of training: a learned position that
    was never trained would fail whatever the family.
    """

    kind: str = "in_context"
    families: dict[str, one_of(Family, FAMILIES)] = Field(default_factory=dict)  # type: ignore[valid-type]
    functions: int = Field(2048, ge=1)
    late: int = Field(5, ge=1)
    seed: int = 0

    def check(self, stream: UnitStream) -> None:
        if not isinstance(stream, FunctionStream):
            raise BadInput("The measure in_context needs a stream of functions, as the stage's `stream`.")
        if self.late > stream.config.points:
            raise BadInput(f"`late` is {self.late}, but sequences have only {stream.config.points} points.")

    def of(self, model: Any, stream: UnitStream, device: Any) -> dict[str, Any]:
        assert isinstance(stream, FunctionStream)
        found = {}
        for name, family in (self.families or stream.config.families).items():
            x, y = self.sequences(family, stream)
            squares = np.square(predictions(model, x, y, device) - y)
            errors = squares.mean(0)
            found[name] = {"error": errors.tolist(), "median": np.median(squares, 0).tolist(),
                           "late": float(errors[-self.late:].mean()), "variance": float(np.square(y).mean())}
        return {"functions": self.functions, "families": found}

    def sequences(self, family: Any, stream: FunctionStream) -> tuple[np.ndarray, np.ndarray]:
        """x (B, K, d) and y (B, K) of the test; every family gets the same points."""
        shape, kind = (self.functions, stream.config.points, stream.config.dims), stream.config.distribution
        x = draw_points(generator(self.seed, "test points"), shape, kind)
        return x, family.values(generator(self.seed, "test functions"), x, VARIANCE[kind])


@torch.no_grad()
def predictions(model: Any, x_BKd: np.ndarray, y_BK: np.ndarray, device: Any) -> np.ndarray:
    """What the model says of each value from what comes before it, (B, K)."""
    parts = []
    for at in range(0, len(x_BKd), ROWS):
        x, y = (torch.from_numpy(values[at:at + ROWS]).float().to(device) for values in (x_BKd, y_BK))
        parts.append(model(x, y).double().cpu().numpy())
    return np.concatenate(parts)
