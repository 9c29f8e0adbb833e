"""Word-level counting: exact, endless, label-free tasks with balanced answers."""

from tilth.evaluate.counting.tasks import WordCounting
from tilth.evaluate.counting.words import count, distinct, perturb

__all__ = ["WordCounting", "count", "distinct", "perturb"]
