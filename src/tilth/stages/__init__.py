"""The stages of a run, each assembled from the rooms; the recipe; what runs it."""

from tilth.stages.load import load_recipe
from tilth.stages.stage import STAGES, Context, Hardware, Recipe, Stage

__all__ = ["STAGES", "Context", "Hardware", "Recipe", "Stage", "load_recipe"]
