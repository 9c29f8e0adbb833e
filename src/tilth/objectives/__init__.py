"""What a model is trained to do: losses as sums and counts per unit."""

from tilth.objectives.causal import Causal
from tilth.objectives.loss import Batch, Loss, Objective, penalties_of, sum_by_unit, units_of

OBJECTIVES: dict[str, type[Objective] | str] = {
    "causal": Causal, "in_context_regression": "tilth.objectives.in_context:InContextRegression",
    "contrastive": "tilth.objectives.contrastive:Contrastive",
    "contrastive_gathered": "tilth.objectives.contrastive:GatheredContrastive"}

__all__ = ["OBJECTIVES", "Batch", "Causal", "Loss", "Objective", "penalties_of", "sum_by_unit", "units_of"]
