"""Load models of the store and its registry, by their `models:/...` URIs."""

from __future__ import annotations

import atexit
import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
from mlflow.artifacts import download_artifacts
from mlflow.models import get_model_info
from mlflow.models.model import ModelInfo

from cnnlab.errors import LabError, did_you_mean, expecting, first_line
from cnnlab.models import custom_model
from cnnlab.tracking import mlflow_store, run_queries
from cnnlab.tracking.pagination import paginate
from cnnlab.tracking.session import opened_store
from cnnlab.tracking.tag_names import MODEL_SOURCE
from cnnlab.utils.signals import signals_held
from cnnlab.utils.temporary_folders import private_folder

if TYPE_CHECKING:
    import keras

CARD_FILE = "model_card.md"  # beside the model

_until_exit = contextlib.ExitStack()  # holds the folders of loaded models, which Keras may read from again
atexit.register(_until_exit.close)


@opened_store(writes=False)
def fetch(uri: str) -> tuple[str, str]:
    """Fetch a registered or logged model.

    Returns:
        The URI with the version in place of an alias, and the file of the Keras model.

    Raises:
        LabError: there is no such model, or it is of another kind.
    """
    try:
        info = get_model_info(uri)
        folder = _local(uri)
    except (mlflow.MlflowException, OSError) as error:
        raise _not_of_this_store(uri, error) from error
    file = Path(folder, "data", "model.keras")
    if "keras" not in info.flavors or not file.is_file():
        raise LabError(f"Expected '{uri}' to be a Keras model. Received: another kind.")
    return pinned(uri), str(file)


def pinned(uri: str) -> str:
    """Return a model's URI with its version in place of an alias, which may be moved at any time.

    Raises:
        LabError: nothing has that alias.
    """
    name, at, alias = uri.removeprefix("models:/").partition("@")
    try:
        return f"models:/{name}/{mlflow.MlflowClient().get_model_version_by_alias(name, alias).version}" if at else uri
    except mlflow.MlflowException as error:
        raise _not_of_this_store(uri, error) from error


def about(uri: str) -> dict[str, Any]:
    """Describe a model: its "name", its "version", or `None` of one that is not registered, and its "card".

    Args:
        uri: with a version in place of an alias.
    """
    registered = re.fullmatch(r"models:/(.+)/(\d+)", uri)
    name, version = (registered[1], int(registered[2])) if registered else (uri, None)
    return {"name": name, "version": version, "card": _card(uri)}


@opened_store(writes=False)
def _card(uri: str) -> str | None:
    with private_folder("files") as folder:
        try:
            file = download_artifacts(f"{uri}/{CARD_FILE}", dst_path=str(folder))
        except (OSError, mlflow.MlflowException):  # a model that is not registered has none
            return None
        return Path(file).read_text(encoding="utf-8")


def origin(uri: str) -> tuple[str, str | None]:
    """Return a model's URI with its version in place of an alias, and the id of the run that logged it.

    Of an exported file return what it says of itself.
    """
    if uri.endswith(".keras"):
        from cnnlab.models import safe_loading  # in here, as what only reads the store takes no Keras

        about = safe_loading.read_description(uri)
        return about["model"], about["run_id"]
    return pinned(uri), get_model_info(uri).run_id


def load_exported(file: str) -> tuple[keras.Model, dict[str, Any]]:
    """Load a `.keras` file that cnnlab exported, and its metadata, as `load` does.

    Raises:
        ArgumentError: it is no such file.
        LabError: the model in it does not load.
    """
    from cnnlab.models import safe_loading  # in here, as what only reads the store takes no Keras

    about = safe_loading.read_description(file)
    cure = f"Name the run that it was exported from: {about['run_id']}."
    with expecting(f"'{file}' to be a model of Keras's layers", cure, "a file that does not load"):
        return safe_loading.load_model(file), about


def load(uri: str) -> tuple[keras.Model, dict[str, Any]]:
    """Load a model that cnnlab logged, and its metadata, with "class_names", "fit" and "grey_range".

    Raises:
        LabError: there is no such model, it does not load, it diverged, or it does not carry its class names.
    """
    try:
        info = get_model_info(uri)
        model = _load_keras(uri, info) if "keras" in info.flavors else None
    except (mlflow.MlflowException, OSError) as error:
        raise _not_of_this_store(uri, error) from error
    metadata = info.metadata or {}
    if model is None or not metadata.get("class_names"):
        raise LabError(f"Expected a model that cnnlab logged, with its class names. Received: '{uri}', another kind.")
    _expect_finite(uri, model)
    return model, metadata


def _expect_finite(uri: str, model: keras.Model) -> None:
    """Raise `LabError` where weights, or the probabilities of a picture of noise, are NaN or infinite."""
    noise = np.random.default_rng(0).integers(
        256, size=(1, *(side or 32 for side in model.input_shape[1:])), dtype=np.uint8
    )
    with signals_held():
        arrays = [*model.get_weights(), np.asarray(model(noise, training=False))]
    if not all(np.isfinite(array).all() for array in arrays):
        raise LabError(
            f"Expected '{uri}' to have finite weights and probabilities. Received: NaN or infinity, from a training "
            "that diverged. Train it again with a lower learning rate, or name another model."
        )


def _local(uri: str) -> str:
    """Return the folder of a model: in the store, where MLflow adds a file of its own, or a copy where it may not."""
    if not mlflow_store.is_read_only():
        return download_artifacts(uri)
    folder = _until_exit.enter_context(private_folder("model"))
    return download_artifacts(uri, dst_path=str(folder))


def _load_keras(uri: str, info: ModelInfo) -> keras.Model | None:
    """Load the model; one with custom layers after the file that registers them with Keras, as the run has it."""
    from cnnlab.models import safe_loading  # in here, as what only reads the store takes no Keras

    # By its place, not by what its description says of it: that names loaders, code and other kinds of files.
    file = Path(_local(uri), "data", "model.keras")
    if not file.is_file():
        return None
    try:
        return safe_loading.load_model(file)
    except Exception as error:  # of whatever layer
        reason = error
    try:
        run = mlflow.MlflowClient().get_run(info.run_id)
        name = run_queries.read_recipe(run).model  # the param of that name is for people
        if custom_model.is_custom(name):
            with custom_model.pinned_sources([name], run_queries.read_text(run, MODEL_SOURCE)):
                custom_model.load(name)
                return safe_loading.load_model(file)
    except LabError:
        raise
    except Exception as error:
        reason = error
    raise LabError(
        f"Expected '{uri}' to load again. Received {type(reason).__name__}: {first_line(reason)}. Build it from "
        "Keras's layers, without Lambda, or in a function FILE.py:FUNCTION whose file registers its layers with "
        "keras.saving.register_keras_serializable."
    ) from reason


def _not_of_this_store(uri: str, error: Exception) -> LabError:
    known: list[str] = []
    with contextlib.suppress(mlflow.MlflowException):  # the store may be what fails
        for model in paginate(mlflow.MlflowClient().search_registered_models):
            known += [f"models:/{model.name}@{alias}" for alias in model.aliases]
            known += [f"models:/{model.name}/{version.version}" for version in model.latest_versions or ()]
    return LabError(
        f"Expected '{uri}' to be a model of this store. Received: {first_line(error)}. "
        f"'cnnlab models' lists what is registered.{did_you_mean(uri, known)}"
    )
