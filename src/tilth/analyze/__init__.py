"""Looking inside models and training: how stable a recipe is in fewer bits."""
