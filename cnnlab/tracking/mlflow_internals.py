"""Wrap every part of MLflow 3.17 that cnnlab uses but is not public, each with the reason for it.

Functions import Keras and server code themselves, so listing runs and models does not load either.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import logging
import os
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import mlflow
import numpy as np
import numpy.typing as npt
from mlflow import environment_variables
from mlflow.models import Model, ModelSignature
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry
from mlflow.store.db import utils as db_utils  # loads all tables
from mlflow.store.db.base_sql_model import Base
from mlflow.tracking import fluent
from mlflow.tracking._tracking_service import utils as tracking_utils
from mlflow.types import Schema, TensorSpec
from mlflow.utils import autologging_utils
from mlflow.utils.autologging_utils import safety

from cnnlab.errors import ArgumentError, first_line
from cnnlab.tracking.store_location import BESIDE, artifact_repository, local_database, sqlite_uri
from cnnlab.utils.log import log_levels

if TYPE_CHECKING:
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

KNOWN_TABLES: frozenset[str] = frozenset(Base.metadata.tables)
# Defaults of MLflow's settings while cnnlab works with MLflow; environment variables of the user's take precedence.
DEFAULTS = {
    environment_variables.MLFLOW_HTTP_REQUEST_MAX_RETRIES: 3,  # MLflow's 7 block for minutes on a server that went away
    environment_variables.MLFLOW_DISABLE_TELEMETRY: True,  # a closed network would be tried in vain
    environment_variables.MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT: True,  # two lines for every run on a server
    environment_variables.MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR: False,  # of files that are copied on this disk
}
LOG_LEVELS = {
    # What the database refuses is raised as well as logged.
    "mlflow.store.db.utils": logging.CRITICAL,
    # What a server misses is sent again, and logged by us then.
    "mlflow.utils.async_logging.async_logging_queue": logging.CRITICAL,
    "mlflow.tracking.fluent": logging.ERROR,
    "urllib3.connectionpool": logging.ERROR,
    "mlflow.store.model_registry.abstract_store": logging.ERROR,  # how long a server may take to register a model
    "alembic": logging.ERROR,  # each step of a new database's schema
    "alembic.runtime.migration": logging.ERROR,
    "tensorflow": logging.ERROR,  # takes the training of one model after another for a mistake ("retracing")
}


# The session: MLflow keeps its address, its active experiment and its repositories in module globals.


@contextmanager
def restored_globals() -> Iterator[None]:
    """Set MLflow up for cnnlab inside the block, and restore all global settings after it.

    Whoever imports cnnlab, or works with MLflow around it, finds MLflow as it is without cnnlab. Inside the block there
    is no active experiment, since MLflow does not open a run of another experiment again then, and the user's
    autologging logs nothing: MLflow's `disable_autologging` does the same, but cannot be nested. That of a training
    is turned on around its `fit`, by `keras_autologging_alone`.
    """
    saved = ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "LOGNAME")
    variables = {name: os.environ.get(name) for name in saved}
    uri, experiment = tracking_utils._tracking_uri, fluent._active_experiment_id
    with (
        contextlib.ExitStack() as defaults,
        log_levels(LOG_LEVELS),
        # A checkout on PYTHONPATH has no entry points, by which MLflow finds this where cnnlab is installed.
        mock.patch.dict(_artifact_repository_registry._registry, {"mlflow-artifacts": artifact_repository}),
        # It takes an escaped address for the path, and makes a folder `what%3Fnow` beside `what?now`.
        mock.patch.object(db_utils, "_make_parent_dirs_if_sqlite", _make_parent_folder),
        mock.patch.object(autologging_utils, "_AUTOLOGGING_GLOBALLY_DISABLED", True),
        # In a notebook the summaries of models, which MLflow and cnnlab log, leave empty outputs: Keras captures what
        # rich prints, and rich (15.0) displays what is left.
        mock.patch("rich.console._is_jupyter", return_value=False),
    ):
        try:
            fluent._active_experiment_id = None
            for setting, value in DEFAULTS.items():
                defaults.enter_context(mock.patch.object(setting, "default", value))
            try:
                getpass.getuser()
            except (KeyError, OSError):  # a user without an entry, as in many containers; MLflow asks for the name
                os.environ["LOGNAME"] = str(os.getuid())
            yield
        finally:
            mlflow.set_tracking_uri(uri)
            fluent._active_experiment_id = experiment
            for name, value in variables.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


def _make_parent_folder(uri: str) -> None:
    if database := local_database(uri):
        database.parent.mkdir(parents=True, exist_ok=True)


# The database of a local store: MLflow has no calls that migrate a copy, change artifact places, or delete some rows.


def full_places(connection: sqlite3.Connection) -> list[str]:
    """Return the artifact places of cnnlab's experiments that are full paths, as earlier versions wrote them."""
    query = (
        "SELECT DISTINCT artifact_location FROM experiments JOIN experiment_tags USING (experiment_id) "
        "WHERE key = 'cnnlab.source' AND artifact_location LIKE 'file:%/artifacts'"
    )
    return [place for (place,) in connection.execute(query)]


def move_places_beside(database: Path) -> None:
    """Write the artifact places of cnnlab's experiments so that they do not depend on the folder's path.

    A run that is at work meanwhile goes on writing where it did: into the same folder.
    """
    columns = {"experiments": "artifact_location", "runs": "artifact_uri"}
    columns |= {"logged_models": "artifact_location", "model_versions": "storage_location"}
    with contextlib.closing(sqlite3.connect(database, timeout=30)) as connection, connection:
        for place in full_places(connection):
            for table, column in columns.items():
                # To `BESIDE/` of an experiment, and `BESIDE/<run>/artifacts` of a run.
                below = f"substr({column}, length(?1) + 1)"
                connection.execute(
                    f"UPDATE {table} SET {column} = ?2 || iif({column} = ?1, '/', {below}) "
                    f"WHERE {column} = ?1 OR substr({column}, 1, length(?1) + 1) = ?1 || '/'",
                    (place, BESIDE),
                )


def is_known_schema(revision: str) -> bool:
    """Return whether this MLflow knows a revision of the database's schema, so that it can bring it up to date."""
    scripts = Path(db_utils.__file__).parents[1] / "db_migrations" / "versions"
    return any(scripts.glob(f"{revision}*.py"))


def latest_schema() -> str:
    """Return the revision that this MLflow brings a database to."""
    return db_utils._get_latest_schema_revision()


@restored_globals()  # its log levels
def make_database(path: Path) -> None:
    """Make a new, empty database of MLflow's."""
    mlflow.MlflowClient(sqlite_uri(path))  # the constructor migrates


@restored_globals()  # its log levels
def upgrade_database(path: Path) -> None:
    """Bring a database of an older MLflow up to date, as `mlflow db upgrade` does, and make tables that are missing.

    Raises:
        SQLAlchemyError: a step of the migration fails.
    """
    engine = db_utils.create_sqlalchemy_engine_with_retry(sqlite_uri(path))
    try:
        db_utils._upgrade_db(engine)
        Base.metadata.create_all(engine)
    finally:
        engine.dispose()


def hard_delete(uri: str, runs: Sequence[str], models: Sequence[str], experiments: Sequence[int]) -> None:
    """Delete the rows of runs, logged models and experiments that are marked as deleted, by their ids.

    `mlflow gc` cannot leave out those that a registered version needs, and deletes no model of a deleted run.
    """
    store = tracking_utils._get_store(uri)
    for kind, ids in (("run", runs), ("logged_model", models), ("experiment", experiments)):
        for one in ids:
            getattr(store, f"_hard_delete_{kind}")(one)


# Servers: MLflow's client has no call that asks one of them once, within a few seconds.


def probe(uri: str, timeout: float) -> None:
    """Ask a tracking server whether it is up, with MLflow's own settings for certificates, proxies and passwords.

    Whatever status it answers, something is there: MLflow itself reports a missing permission and the like.

    Raises:
        MlflowException: it does not answer within `timeout` seconds.
    """
    _get(uri, "/health", timeout)


def why_unavailable(uri: str, timeout: float) -> str | None:
    """Return why a tracking server does not take runs now, within `timeout` seconds, in words; `None` if it does.

    Raises:
        MlflowException: it answers, and refuses: the password, say, or since it is another kind of server.
    """
    from mlflow.utils.rest_utils import verify_rest_response

    endpoint = "/api/2.0/mlflow/experiments/search"
    try:
        answer = _get(uri, f"{endpoint}?max_results=1", timeout)
    except (mlflow.MlflowException, OSError) as error:
        reason = short_reason(error)
        return f"no answer in {timeout} s" if "timed out" in reason else reason
    if answer.status_code == 429 or answer.status_code >= 500:
        return f"{answer.status_code} {answer.reason}"
    verify_rest_response(answer, endpoint)
    return None


def _get(uri: str, path: str, timeout: float) -> Any:
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    return http_request(get_default_host_creds(uri), path, "GET", timeout=timeout, max_retries=0, raise_on_status=False)


def short_reason(error: BaseException) -> str:
    """Return what went wrong with a connection, without the layers that each wrap the message of the one below."""
    kinds = r"\[Errno -?\d+\] ([^'\")]+)|(Read timed out)|(\d{3} [A-Z][\w ]+)|too many (\d{3}) err|error code (\d{3})"
    found = re.findall(kinds, str(error))
    return "".join(found[-1]) if found else first_line(error)[:200]


@contextmanager
def without_retries() -> Iterator[None]:
    """Let calls to a server that is known to be away fail at once inside the block."""
    with mock.patch.dict(os.environ, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0"):
        yield


def artifacts_of(
    client: mlflow.MlflowClient, *, run_id: str | None = None, model_id: str | None = None
) -> ArtifactRepository:
    """Return the repository with the artifacts of a run or a logged model.

    `MlflowClient` sends single files of a run only, not of a model.
    """
    resource = "run" if run_id else "logged_model"
    return client._tracking_client._get_artifact_repo(run_id or model_id or "", resource=resource)


# Autologging of Keras: it has no option for one training only, nor against metrics that are logged twice.


@contextmanager
def keras_autologging_alone() -> Iterator[None]:
    """Autolog Keras inside the block, whatever the user turned on; after it that is as it was.

    MLflow cannot be asked to restore it: its `autolog` does not take all settings that it stores. Therefore the
    settings and the replaced `fit` are kept, and put back.
    """
    import keras
    from mlflow.keras import autolog

    def replace_fit(attributes: Mapping[str, Any]) -> dict[str, Any]:
        before = {name: value for name, value in vars(keras.Model).items() if name == "fit" or "_gorilla_" in name}
        for name in before:
            delattr(keras.Model, name)
        for name, value in attributes.items():
            setattr(keras.Model, name, value)
        return before

    with (
        mock.patch.object(autologging_utils, "_AUTOLOGGING_GLOBALLY_DISABLED", False),
        mock.patch.dict(autologging_utils.AUTOLOGGING_INTEGRATIONS, clear=True),  # without settings all are off
        mock.patch.dict(safety._AUTOLOGGING_PATCHES, clear=True),
    ):
        before = replace_fit({})
        try:
            autolog(log_models=False, log_datasets=False, silent=True)
            yield
        finally:
            replace_fit(before)


@contextmanager
def nothing_logged_twice() -> Iterator[None]:
    """Keep autologging from logging again what the run has from us, under a name of its own or with another value.

    It logs `val_*` a second time as `validation_*`, all at step 0, after every validation. And it logs the `epochs` of
    the fit: the first of several fits has fewer than the recipe, MLflow refuses the second value of the parameter, and
    with it everything else that autologging would have logged. So it is with `initial_epoch` of a run that goes on.
    """
    import keras
    from mlflow.keras import MlflowCallback, autologging

    log_arguments = autologging.log_fn_args_as_params  # pyright: ignore[reportPrivateImportUsage]

    def log_other_arguments(fn: Callable, args: Sequence, kwargs: Mapping, unlogged: Sequence[str]) -> None:
        log_arguments(fn, args, kwargs, [*unlogged, "epochs", "initial_epoch"])

    with (
        mock.patch.object(MlflowCallback, "on_test_end", keras.callbacks.Callback.on_test_end),
        mock.patch.object(autologging, "log_fn_args_as_params", log_other_arguments),
    ):
        yield


# The UI and the scoring server: formats that MLflow does not document.


def show_runs(
    client: mlflow.MlflowClient, experiment_id: str, view: str, columns: Sequence[str], condition: str
) -> str:
    """Set in a tag which columns and runs the UI lists of an experiment; return the part of a link that asks for it.

    They are sorted by a score. In the order of their time the UI would fold runs away below those that have no scores.
    """
    state = {
        **{"selectedColumns": list(columns), "searchFilter": condition, "datasetsFilter": []},
        "orderByKey": "metrics.`val_accuracy`" if condition else "metrics.`test_accuracy`",
        **{"orderByAsc": False, "startTime": "ALL", "lifecycleFilter": "Active", "modelVersionFilter": "All Runs"},
    }
    try:
        client.set_experiment_tag(experiment_id, f"mlflow.sharedViewState.{view}", json.dumps(state))
    except mlflow.MlflowException:  # who may only read gets the link without the columns
        return "workflowType=machine_learning"
    return f"viewStateShareKey={view}&workflowType=machine_learning"


def scoring_app(
    predict: Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]], image_shape: Sequence[int], num_classes: int
) -> Callable[..., Any]:
    """Build MLflow's scoring server around a function, as `mlflow models serve` builds it around a logged model.

    JSON numbers are taken as float64: with the model's own uint8 signature MLflow would cut them, and images scaled to
    0..1 would be scored as black ones.

    Args:
        predict: images `(N, *image_shape)` to probabilities `(N, num_classes)`; an `ArgumentError` is answered with
            status 400.

    Returns:
        An ASGI app.
    """
    from mlflow.pyfunc import scoring_server

    class Scorer:
        metadata = Model(
            signature=ModelSignature(
                Schema([TensorSpec(np.dtype("float64"), (-1, *image_shape))]),
                Schema([TensorSpec(np.dtype("float32"), (-1, num_classes))]),
            )
        )

        def predict(self, data: Any) -> npt.NDArray[np.float32]:
            try:
                return predict(np.asarray(data))
            except ArgumentError as error:
                raise mlflow.MlflowException(str(error), INVALID_PARAMETER_VALUE) from error

    return scoring_server.init(Scorer())
