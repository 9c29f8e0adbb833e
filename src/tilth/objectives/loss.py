"""What an objective returns, and the protocol it follows."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from tilth.recipe.frame import Config

Batch = dict[str, Tensor]
Couples = Literal["none", "batch", "global"]


@dataclass
class Loss:
    """Sums and counts per unit, so that units of unequal length average rightly over any number of micro-batches.

    total (U,): summed loss of each unit, in nats (or the objective's own unit); count (U,): its number of predictions.
    terms: penalties that belong to no unit, each a scalar already scaled; under accumulation a micro-batch's penalty
    counts by its share of the global batch's predictions. figures: numbers of any shape that are told in the metrics,
    averaged in the same way, and part of no loss. couples: whether the loss of a unit depends on the others.
    """

    total: Tensor
    count: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    figures: dict[str, Tensor] = field(default_factory=dict)
    couples: Couples = "none"


class Objective(Config):
    """`objective(model, batch, rng, state) -> Loss`; `rng` is seeded by (run seed, step, micro-batch).

    couples: what its losses say of themselves, known before there is one.
    """

    couples: ClassVar[Couples] = "none"
    kind: str = ""

    def __call__(self, model: Any, batch: Batch, rng: torch.Generator, state: dict[str, Any]) -> Loss:
        raise TypeError(f"{type(self).__name__} does not say how to compute its loss: define __call__.")

    def first_pass(self) -> Any:
        """What a step must see of the whole global batch before it trains on a part of it (a
        `tilth.train.learner.FirstPass`); None, as for most, where units are told apart by themselves."""
        return None

    def count(self, batch: Batch) -> Tensor:
        """(U,) predictions of each unit, known before any forward pass (the loop divides by their sum)."""
        raise TypeError(f"{type(self).__name__} does not say how many predictions a unit holds: define count.")


def penalties_of(model: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Terms and figures that a model adds to whatever it is trained to do (a mixture of experts its balance), taken
    once after its forward pass; nothing from a model that has none. A learner's `loss` asks for them."""
    penalties = getattr(model, "penalties", None)
    return ({}, {}) if penalties is None else penalties()


def units_of(batch: Batch) -> int:
    """U, the number of units in a batch."""
    return batch["unit_id"].shape[0]


def sum_by_unit(values: Tensor, unit_index: Tensor, units: int) -> Tensor:
    """Sum `values` over the positions of each unit; `unit_index` has the same shape, -1 is padding. Returns (U,)."""
    flat, where = values.reshape(-1), unit_index.reshape(-1)
    # Padding goes to an extra last cell, which is cut off: cheaper than a boolean selection.
    sums = torch.zeros(units + 1, dtype=values.dtype, device=values.device)
    return sums.index_add(0, torch.where(where < 0, units, where), flat)[:units]
