"""Every `kind` that a recipe can name, assembled from the rooms; for listings and for tests over everything."""

from collections.abc import Mapping
from typing import Any

from tilth.curate.attributes import ATTRIBUTES
from tilth.curate.rules import RULES
from tilth.data.inputs import INPUTS
from tilth.data.tokenizer import TOKENIZERS
from tilth.evaluate.tasks import TASKS
from tilth.models import MODELS
from tilth.objectives import OBJECTIVES
from tilth.optim import OPTIMIZERS, SCHEDULES
from tilth.select.policy import MIXTURES, SELECTORS, WEIGHERS
from tilth.stages.stage import STAGES

CHOICES: dict[str, Mapping[str, Any]] = {
    "stage": STAGES, "input": INPUTS, "attribute": ATTRIBUTES, "rule": RULES, "tokenizer": TOKENIZERS,
    "mixture": MIXTURES, "selector": SELECTORS, "weigher": WEIGHERS, "model": MODELS, "objective": OBJECTIVES,
    "optimizer": OPTIMIZERS, "schedule": SCHEDULES, "task": TASKS,
}
