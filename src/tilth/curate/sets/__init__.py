"""Published rule sets: what they measure, as attributes, and their thresholds, as rules of a recipe."""
