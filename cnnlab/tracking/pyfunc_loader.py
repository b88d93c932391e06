"""Load a logged model for `mlflow.pyfunc`, as `mlflow.keras` does, and refuse an empty batch in one sentence.

A copy of this file is in every logged model, which MLflow loads without cnnlab: Keras ends in an UnboundLocalError.
"""

from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.keras.load import _load_pyfunc as load_keras  # pyright: ignore[reportPrivateUsage]


def _load_pyfunc(path: str) -> Any:
    model = load_keras(path)
    predict = model.predict

    def predict_some(data: Any, **further: Any) -> Any:
        if not len(data):
            raise MlflowException.invalid_parameter_value("Expected at least one image. Received an empty batch.")
        return predict(data, **further)

    model.predict = predict_some
    return model
