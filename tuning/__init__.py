"""The KerasTuner side of the lab: hypermodels on top of `cnnlab.models` and a search whose trials are MLflow runs."""
