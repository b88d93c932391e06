"""What we reach for inside MLflow, where it has no public way; seen in MLflow 3.17.2.

What loads Keras or a server is imported in functions: the UI and the registry's lists answer without.
"""

import contextlib
import getpass
import json
import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import mlflow
import numpy as np
from mlflow.models import Model, ModelSignature
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry
from mlflow.store.db import utils as db_utils
from mlflow.tracking import fluent
from mlflow.tracking._tracking_service import utils as tracking_utils
from mlflow.types import Schema, TensorSpec

from cnnlab.errors import ArgumentError, first_line
from cnnlab.tracking.store_location import BESIDE, artifact_repository, local_database, sqlite_uri

KNOWN_TABLES = frozenset(db_utils.Base.metadata.tables)  # that it works with

DEFAULTS = {  # of MLflow's own environment variables, while cnnlab works with MLflow
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # MLflow's 7 block for minutes on a server that went away
    "MLFLOW_DISABLE_TELEMETRY": "true",  # a closed network would be tried in vain
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # two lines for every run on a server
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
}
PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)
FULL_PLACES = (
    "SELECT DISTINCT artifact_location FROM experiments JOIN experiment_tags USING (experiment_id) "
    "WHERE key = 'cnnlab.source' AND artifact_location LIKE 'file:%/artifacts'"
)


def full_places(connection) -> list[str]:
    """The artifact places of our experiments that are full paths, as earlier versions wrote them."""
    return [place for (place,) in connection.execute(FULL_PLACES)]


def put_beside(database) -> None:
    """Make the artifact places of our experiments independent of the mount; earlier versions wrote full paths.

    A run that goes on meanwhile keeps writing where it did: to the same folder.
    """
    with contextlib.closing(sqlite3.connect(database, timeout=30)) as connection, connection:
        for there in full_places(connection):
            # `BESIDE` or `BESIDE/<run>/artifacts`; an experiment's own place needs its slash.
            move_place(connection, there, BESIDE, f"{BESIDE}/")


def move_place(connection, there, here, itself=None) -> None:
    """Put `here` for `there` in every artifact place that starts with it, `itself` where it is all of the place.

    MLflow has no call that changes them.
    """
    for table, column in PLACES:
        connection.execute(
            f"UPDATE {table} SET {column} = iif({column} = ?, ?, ? || substr({column}, ?)) "
            f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
            (there, itself or here, here, len(there) + 1, there, len(there) + 1, there + "/"),
        )


def is_known_schema(revision) -> bool:
    """Whether this MLflow knows a revision of the database's schema, so that it can bring it up to date."""
    scripts = Path(db_utils.__file__).parents[1] / "db_migrations" / "versions"
    return any(scripts.glob(f"{revision}*.py"))


def latest_schema() -> str:
    """The revision that this MLflow brings a database to."""
    return db_utils._get_latest_schema_revision()


def make_database(path) -> None:
    """A new, empty database of MLflow's."""
    mlflow.MlflowClient(sqlite_uri(path))  # the constructor migrates


def upgrade_database(path) -> None:
    """Bring a database of an older MLflow up to date, as `mlflow db upgrade` does.

    Raises:
        SQLAlchemyError: a step of it does not go.
    """
    engine = db_utils.create_sqlalchemy_engine_with_retry(sqlite_uri(path))
    try:
        db_utils._upgrade_db(engine)
    finally:
        engine.dispose()


def hard_delete(uri, runs, models, experiments) -> None:
    """Delete the rows of runs, logged models and experiments that are marked as deleted, by their ids.

    `mlflow gc` has no way to leave some of them out, and deletes no model of a deleted run.
    """
    kept = tracking_utils._get_store(uri)
    for delete, numbers in (
        (kept._hard_delete_run, runs),
        (kept._hard_delete_logged_model, models),
        (kept._hard_delete_experiment, experiments),
    ):
        for number in numbers:
            delete(number)


def probe(uri, timeout) -> None:
    """Ask a tracking server whether it is up, with MLflow's own settings for certificates, proxies and passwords.

    Raises:
        MlflowException: it does not answer within so many seconds.
    """
    # Whatever it answers, something is there: authentication and the like are for MLflow to report.
    _asked(uri, "/health", timeout)


def why_away(uri, timeout) -> str | None:
    """Why a tracking server does not take runs now, in words; `None` if it does. It has so many seconds to answer.

    Raises:
        MlflowException: it answers, and refuses: the password, say, or since it is another kind of server.
    """
    from mlflow.utils.rest_utils import verify_rest_response

    endpoint = "/api/2.0/mlflow/experiments/search"
    try:
        answer = _asked(uri, f"{endpoint}?max_results=1", timeout)
    except (mlflow.MlflowException, OSError) as error:
        said = in_short(error)
        return f"no answer in {timeout} s" if "timed out" in said else said
    if answer.status_code == 429 or answer.status_code >= 500:
        return f"{answer.status_code} {answer.reason}"
    verify_rest_response(answer, endpoint)
    return None


def _asked(uri, path, timeout):
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    return http_request(get_default_host_creds(uri), path, "GET", timeout=timeout, max_retries=0, raise_on_status=False)


def in_short(error) -> str:
    """What went wrong with a connection, without the layers that each wrap the last one's words."""
    kinds = r"\[Errno -?\d+\] ([^'\")]+)|(Read timed out)|(\d{3} [A-Z][\w ]+)|too many (\d{3}) err|error code (\d{3})"
    found = re.findall(kinds, str(error))
    return "".join(found[-1]) if found else first_line(error)[:200]


def artifacts_of(client, *, run_id=None, model_id=None):
    """Where the artifacts of a run or a logged model go, file by file; MLflow's client has folders only for a model."""
    resource = "run" if run_id else "logged_model"
    return client._tracking_client._get_artifact_repo(run_id or model_id, resource=resource)


@contextmanager
def tried_once():
    """Calls to a server that is known to be away fail at once inside."""
    with mock.patch.dict(os.environ, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0"):
        yield


@contextmanager
def globals_kept() -> Iterator[None]:
    """Set MLflow up for cnnlab inside the block, and restore all global settings after it.

    Whoever imports cnnlab, or works with MLflow around it, finds MLflow as it is without cnnlab. Inside the block there
    is no active experiment, since MLflow does not open a run of another experiment again then.
    """
    saved = ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "LOGNAME", *DEFAULTS)
    variables = {name: os.environ.get(name) for name in saved}
    uri, experiment = tracking_utils._tracking_uri, fluent._active_experiment_id
    levels = {name: logging.getLogger(name).level for name in LOG_LEVELS}
    with (
        # A checkout on PYTHONPATH has no entry points, by which MLflow finds this where cnnlab is installed.
        mock.patch.dict(_artifact_repository_registry._registry, {"mlflow-artifacts": artifact_repository}),
        # Takes an escaped address for the path, and makes a folder `what%3Fnow` beside `what?now`.
        mock.patch.object(db_utils, "_make_parent_dirs_if_sqlite", _make_parent_folder),
    ):
        try:
            fluent._active_experiment_id = None
            for name, value in DEFAULTS.items():
                os.environ.setdefault(name, value)
            try:
                getpass.getuser()
            except (KeyError, OSError):  # a user without an entry, as in many containers; MLflow asks for the name
                os.environ["LOGNAME"] = str(os.getuid())
            for name, level in LOG_LEVELS.items():
                logging.getLogger(name).setLevel(level)
            yield
        finally:
            mlflow.set_tracking_uri(uri)
            fluent._active_experiment_id = experiment
            for name, value in variables.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def _make_parent_folder(uri: str) -> None:
    if database := local_database(uri):
        database.parent.mkdir(parents=True, exist_ok=True)


@contextmanager
def keras_autologging_alone():
    """Autologging of Keras for the block, whatever else the user turned on, and afterwards as it was."""
    from mlflow.utils.autologging_utils import AUTOLOGGING_INTEGRATIONS

    before = {name: dict(settings) for name, settings in AUTOLOGGING_INTEGRATIONS.items()}
    for settings in AUTOLOGGING_INTEGRATIONS.values():
        settings["disable"] = True
    mlflow.keras.autolog(log_models=False, log_datasets=False, silent=True)
    try:
        yield
    finally:
        mlflow.keras.autolog(disable=True, silent=True)
        for name, settings in before.items():
            if name != "keras":
                AUTOLOGGING_INTEGRATIONS[name].update(settings)
        if not before.get("keras", {"disable": True}).get("disable"):
            mlflow.keras.autolog(**before["keras"])


@contextmanager
def no_validation_copies():
    """Keep autologging from logging `val_*` a second time as `validation_*`, all at step 0.

    Its callback does so after every validation, and has no option against it.
    """
    import keras

    with mock.patch.object(mlflow.keras.MlflowCallback, "on_test_end", keras.callbacks.Callback.on_test_end):
        yield


def show_runs(client, experiment_id, view, columns, condition) -> str:
    """Set which columns and runs the UI lists of an experiment; returns the part of a link that asks for it.

    In the order of their time the UI would fold runs away below others, which have no scores.

    The UI reads it from a tag of the experiment, `mlflow.sharedViewState.<name>`, which is not documented.
    """
    state = {
        "selectedColumns": list(columns),
        "orderByKey": "metrics.`val_accuracy`" if condition else "metrics.`test_accuracy`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "searchFilter": condition,
    }
    try:
        client.set_experiment_tag(experiment_id, f"mlflow.sharedViewState.{view}", json.dumps(state))
    except mlflow.MlflowException:  # who may only read gets the link without the columns
        return "workflowType=machine_learning"
    return f"viewStateShareKey={view}&workflowType=machine_learning"


def scoring_app(predict, image_shape, num_classes):
    """MLflow's scoring server around a function, as `mlflow models serve` has it around a logged model.

    Its app takes an object with `metadata` and `predict`, which is not documented either. JSON numbers are taken as
    float64: with the model's own uint8 signature MLflow would cut them, and images scaled to 0..1 would be scored as
    black ones without a word.

    Args:
        predict: `(N, *image_shape)` to `(N, num_classes)`; an `ArgumentError` is an answer of status 400.
    """
    from mlflow.pyfunc import scoring_server

    class Scorer:
        metadata = Model(
            signature=ModelSignature(
                Schema([TensorSpec(np.dtype("float64"), (-1, *image_shape))]),
                Schema([TensorSpec(np.dtype("float32"), (-1, num_classes))]),
            )
        )

        def predict(self, data):
            try:
                return predict(np.asarray(data))
            except ArgumentError as error:
                raise mlflow.MlflowException(str(error), INVALID_PARAMETER_VALUE) from error

    return scoring_server.init(Scorer())
