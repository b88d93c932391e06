"""Save a model as MLflow's Keras flavour does; load it so that it predicts in silence and refuses an empty batch.

A copy of this file goes with each logged model, since MLflow's own loader cannot be told to be quiet. It therefore
imports nothing of cnnlab.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from mlflow import keras as mlflow_keras
from mlflow.exceptions import MlflowException
from mlflow.models import Model


class QuietModel:
    """A Keras model as MLflow's `pyfunc` calls it."""

    def __init__(self, model: Any) -> None:
        self.model: Any = model

    def get_raw_model(self) -> Any:
        """Return the Keras model."""
        return self.model

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> Any:
        """Predict images `(N, H, W, 3) uint8`; return `(N, num_classes) float32`."""
        if not len(data):  # Keras would end in an UnboundLocalError
            raise MlflowException.invalid_parameter_value("Expected at least one image. Received an empty batch.")
        return self.model.predict(data, verbose=0)


def save_model(path: str, mlflow_model: Model, **options: Any) -> None:
    """Write a model into a folder, as `mlflow.keras.save_model` does, with this file as its loader."""
    mlflow_keras.save_model(path=path, mlflow_model=mlflow_model, **options)
    code = Path(path, "code")
    code.mkdir()
    shutil.copy(__file__, code)
    mlflow_model.flavors["python_function"].update(loader_module=Path(__file__).stem, code=code.name)
    mlflow_model.save(str(Path(path, "MLmodel")))


def _load_pyfunc(path: str) -> QuietModel:
    """Load the model of a folder; MLflow calls this."""
    return QuietModel(mlflow_keras.load_model(path))
