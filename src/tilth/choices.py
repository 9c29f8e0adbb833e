"""Every `kind` that a recipe can name, assembled from the rooms; for listings and for tests over everything."""

from collections.abc import Mapping
from typing import Any

from tilth.curate.attributes import ATTRIBUTES
from tilth.curate.rules import RULES
from tilth.data.functions import FAMILIES
from tilth.data.inputs import INPUTS
from tilth.data.tokenizer import TOKENIZERS
from tilth.evaluate.tasks import TASKS
from tilth.models import MODELS
from tilth.objectives import OBJECTIVES
from tilth.optim import OPTIMIZERS, SCHEDULES
from tilth.precision.weights import METHODS
from tilth.recipe.errors import BadInput
from tilth.recipe.frame import Config, OneOf, nearest
from tilth.report import text_table
from tilth.select.diversity import DIVERSITIES
from tilth.select.policy import MIXTURES, SELECTORS, WEIGHERS
from tilth.select.scorers import SCORERS
from tilth.stages.stage import STAGES
from tilth.stages.unit_parts import MEASURES, STREAMS
from tilth.train.averaging import AVERAGES
from tilth.train.survive.parity import PARITIES

CHOICES: dict[str, Mapping[str, Any]] = {
    "stage": STAGES, "input": INPUTS, "attribute": ATTRIBUTES, "rule": RULES, "tokenizer": TOKENIZERS,
    "mixture": MIXTURES, "selector": SELECTORS, "weigher": WEIGHERS, "diversity": DIVERSITIES, "scorer": SCORERS,
    "model": MODELS, "objective": OBJECTIVES, "optimizer": OPTIMIZERS, "schedule": SCHEDULES, "task": TASKS,
    "parity": PARITIES, "average": AVERAGES, "compression": METHODS, "stream": STREAMS, "family": FAMILIES,
    "measure": MEASURES,
}


def list_choices(what: str | None) -> str:
    """A table of kinds: what, name, the first sentence of its documentation."""
    if what is not None and what not in CHOICES:
        raise BadInput(f"'{what}' is no choice{nearest(what, CHOICES)} There are {', '.join(CHOICES)}.")
    rows = []
    for group, known in CHOICES.items():
        for name in known if what in (None, group) else ():
            cls = OneOf(Config, known).resolve({"kind": name}, group)
            rows.append([group, name, " ".join((cls.__doc__ or "").split("\n\n")[0].split())])
    return text_table(rows, ["choice", "kind", "what it does"], widest=100)
