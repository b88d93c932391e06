"""Hyperparameter search with KerasTuner, every trial an MLflow run."""
