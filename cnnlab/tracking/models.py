"""Models of the store and its registry, by their URIs."""

from pathlib import Path

import mlflow

from cnnlab.errors import LabError, first_line
from cnnlab.tracking import store


def fetch(uri) -> tuple[str, str]:
    """A registered or logged model's URI with its version in place of an alias, and the file of its Keras model.

    Raises:
        LabError: there is no such model, or it is of another kind.
    """
    store.open_store()
    try:
        info = mlflow.models.get_model_info(uri)
        folder = mlflow.artifacts.download_artifacts(uri)
    except (mlflow.MlflowException, OSError) as error:
        raise _not_of_this_store(uri, error) from error
    file = Path(folder, "data", "model.keras")
    if "keras" not in info.flavors or not file.is_file():
        raise LabError(f"Expected '{uri}' to be a Keras model. Received: another kind.")
    name, at, alias = uri.removeprefix("models:/").partition("@")
    pinned = f"models:/{name}/{mlflow.MlflowClient().get_model_version_by_alias(name, alias).version}" if at else uri
    return pinned, str(file)


def load(uri):
    """A model that cnnlab logged: `(keras.Model, class_names)`.

    Raises:
        LabError: there is no such model, or it does not carry its class names.
    """
    try:
        info = mlflow.models.get_model_info(uri)
        model = mlflow.keras.load_model(uri) if "keras" in info.flavors else None
    except (mlflow.MlflowException, OSError) as error:
        raise _not_of_this_store(uri, error) from error
    class_names = (info.metadata or {}).get("class_names")
    if model is None or not class_names:
        raise LabError(f"Expected a model that cnnlab logged, with its class names. Received: '{uri}', another kind.")
    return model, tuple(class_names)


def _not_of_this_store(uri, error):
    return LabError(
        f"Expected '{uri}' to be a model of this store. Received: {first_line(error)}. "
        "'cnnlab models' lists what is registered."
    )
