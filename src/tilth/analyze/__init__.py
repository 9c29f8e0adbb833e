"""Looking inside models and training: how stable a recipe is in fewer bits, what a model knows of places."""
