"""Models of the store and its registry, by their URIs."""

import atexit
import contextlib
import re
from pathlib import Path

import mlflow

from cnnlab.errors import LabError, first_line
from cnnlab.models import custom_model
from cnnlab.tracking import mlflow_store, run_queries
from cnnlab.tracking.session import opened_store
from cnnlab.tracking.tag_names import MODEL_SOURCE
from cnnlab.utils.temporary_folders import private_folder

CARD_FILE = "model_card.md"  # beside the model

_until_exit = contextlib.ExitStack()
atexit.register(_until_exit.close)


@opened_store(writes=False)
def fetch(uri) -> tuple[str, str]:
    """A registered or logged model's URI with its version in place of an alias, and the file of its Keras model.

    Raises:
        LabError: there is no such model, or it is of another kind.
    """
    try:
        info = mlflow.models.get_model_info(uri)
        folder = _local(uri)
    except (mlflow.MlflowException, OSError) as error:
        raise _not_of_this_store(uri, error) from error
    file = Path(folder, "data", "model.keras")
    if "keras" not in info.flavors or not file.is_file():
        raise LabError(f"Expected '{uri}' to be a Keras model. Received: another kind.")
    return pinned(uri), str(file)


def pinned(uri) -> str:
    """A model's URI with its version in place of an alias, which may be moved at any time.

    Raises:
        LabError: nothing has that alias.
    """
    name, at, alias = uri.removeprefix("models:/").partition("@")
    try:
        return f"models:/{name}/{mlflow.MlflowClient().get_model_version_by_alias(name, alias).version}" if at else uri
    except mlflow.MlflowException as error:
        raise _not_of_this_store(uri, error) from error


def about(uri) -> dict:
    """What a model is called: its "name", its "version", or `None` of one that is not registered, and its "card".

    Args:
        uri: with a version in place of an alias.
    """
    registered = re.fullmatch(r"models:/(.+)/(\d+)", uri)
    name, version = (registered[1], int(registered[2])) if registered else (uri, None)
    return {"name": name, "version": version, "card": _card(uri)}


@opened_store(writes=False)
def _card(uri):
    with private_folder("files") as folder:
        try:
            file = mlflow.artifacts.download_artifacts(f"{uri}/{CARD_FILE}", dst_path=folder)
        except (OSError, mlflow.MlflowException):  # a model that is not registered has none
            return None
        return Path(file).read_text(encoding="utf-8")


def origin(uri) -> tuple[str, str | None]:
    """A model's URI with its version in place of an alias, and the id of the run that logged it, in the open store."""
    return pinned(uri), mlflow.models.get_model_info(uri).run_id


def load(uri):
    """A model that cnnlab logged: `(keras.Model, metadata)`, with its "class_names", "fit" and "grey_range".

    Raises:
        LabError: there is no such model, it does not load, or it does not carry its class names.
    """
    try:
        info = mlflow.models.get_model_info(uri)
        model = _load_keras(uri, info) if "keras" in info.flavors else None
    except (mlflow.MlflowException, OSError) as error:
        raise _not_of_this_store(uri, error) from error
    metadata = info.metadata or {}
    if model is None or not metadata.get("class_names"):
        raise LabError(f"Expected a model that cnnlab logged, with its class names. Received: '{uri}', another kind.")
    return model, metadata


def _local(uri):
    """The folder of a model: in the store, where MLflow adds a file of its own, or a copy where it may not."""
    if not mlflow_store.is_read_only():
        return mlflow.artifacts.download_artifacts(uri)
    folder = _until_exit.enter_context(private_folder("model"))
    return mlflow.artifacts.download_artifacts(uri, dst_path=folder)


def _load_keras(uri, info):
    """The model; one with layers of the user's own after the file that registers them with Keras, as the run has it."""
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


def _not_of_this_store(uri, error):
    return LabError(
        f"Expected '{uri}' to be a model of this store. Received: {first_line(error)}. "
        "'cnnlab models' lists what is registered."
    )
