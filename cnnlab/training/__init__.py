"""Build and train the compiled model of a recipe, without knowing where its run is recorded."""
