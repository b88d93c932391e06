"""Training of a compiled model; knows nothing of MLflow."""
