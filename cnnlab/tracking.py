"""The only room that imports MLflow: the store, experiments, runs, autologging, artifacts and whole models."""

import contextlib
import hashlib
import http.client
import json
import logging
import os
import socket
import sqlite3
import tempfile
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from cnnlab.errors import LabError

# Every tag of ours starts with this, so that it stands apart from MLflow's own.
TAG = "cnnlab."
STORE_FOLDER = "mlruns"
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
HEALTH_TIMEOUT = 10  # seconds; an unreachable server is reported within 15
UI_VIEW = "cnnlab"
UI_COLUMNS = (
    "attributes.`Created`",
    "attributes.`Duration`",
    "metrics.`test_accuracy`",
    "metrics.`test_loss`",
    "metrics.`val_accuracy`",
    "metrics.`accuracy`",
    "metrics.`train_seconds`",
    "params.`model`",
    "params.`learning_rate`",
    "params.`epochs`",
)

# Chatter about schema migrations, and about alembic's context, at the first start of a store.
for _name in ("mlflow.store.db.utils", "mlflow.tracking.fluent", "alembic", "alembic.runtime.migration"):
    logging.getLogger(_name).setLevel(logging.ERROR)
# MLflow's default of 7 retries blocks for minutes on a server that went away.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
# A lab's use is its own business, and a closed network would be tried in vain.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


def expect_usable_store() -> None:
    """Find out, within seconds and without writing anything, whether the store can be used.

    Raises:
        LabError: the server does not answer, or the local folder cannot be written.
    """
    uri = _store_uri()
    if uri.startswith(("http://", "https://")):
        _expect_reachable(uri)
    elif database := _local_database(uri):
        existing = next(folder for folder in (database.parent, *database.parent.parents) if folder.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            raise _unwritable(database.parent, f"'{existing}' is not a writable folder")


def open_store() -> str:
    """Point MLflow at the store and return its URI: `MLFLOW_TRACKING_URI` when set, else `./mlruns/mlflow.db`.

    A new sqlite store is migrated in a temporary file and renamed into place under a file lock, since MLflow migrates
    without a lock of its own and a kill half-way leaves a database that never opens again. In a folder that was moved
    or copied, the artifact paths are put right. Runs that a killed process of this machine left RUNNING are closed.

    Raises:
        LabError: the folder cannot be written, or the server does not answer.
    """
    import mlflow

    expect_usable_store()
    uri = _store_uri()
    database = _local_database(uri)
    try:
        if database:
            _open_local_store(database)
        named = TRACKING_VARIABLE in os.environ
        mlflow.set_tracking_uri(uri)
        if not named:  # MLflow sets it too, and our own default must not pass for the user's word
            os.environ.pop(TRACKING_VARIABLE, None)
        _close_stale_runs(mlflow.MlflowClient())
    except (OSError, sqlite3.Error, mlflow.MlflowException) as error:
        if database:
            raise _unwritable(database.parent, error) from error
        raise LabError(
            f"Expected an MLflow store at {uri} (MLFLOW_TRACKING_URI). Received: {_first_line(error)}. "
            "Correct the address, or unset the variable to use ./mlruns."
        ) from error
    return uri


def experiment_for(dataset) -> str:
    """The id of the data set's experiment, `cnnlab-<name>`, made on first use.

    Another data set of the same name (a folder with other files) gets an experiment of its own, with a suffix.

    Raises:
        LabError: the experiment was deleted.
    """
    import mlflow

    client = mlflow.MlflowClient()
    for name in (f"cnnlab-{dataset.name}", f"cnnlab-{dataset.name}-{_short_hash(dataset.source)}"):
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            # Beside the local database; a server decides for itself, and would be given this machine's path.
            database = _local_database(mlflow.get_tracking_uri())
            location = (database.parent / "artifacts").as_uri() if database else None
            # Two processes may both come here first; whoever is second takes the first one's.
            with contextlib.suppress(mlflow.MlflowException):
                client.create_experiment(name, artifact_location=location, tags=_experiment_tags(dataset))
            experiment = client.get_experiment_by_name(name)
        if experiment.tags.get(TAG + "source") == dataset.source:
            if experiment.lifecycle_stage == "deleted":
                raise LabError(
                    f"Expected experiment '{name}' to be active. Received: one that was deleted. "
                    f"Restore it with 'mlflow experiments restore -x {experiment.experiment_id}'."
                )
            return experiment.experiment_id
    raise LabError(f"Expected '{name}' to be the experiment of {dataset.source}. Received one without our tags.")


@contextmanager
def tracked_run(experiment_id, run_name, *, params, tags, description=None, parent_run_id=None):
    """Open a run, and close it FINISHED, FAILED or KILLED (Ctrl-C, SIGTERM), with the reason in a tag.

    Yields:
        The run's id.
    """
    import mlflow

    tags = {TAG + key: str(value) for key, value in {**tags, **_process_tags()}.items() if value is not None}
    run = mlflow.start_run(
        experiment_id=experiment_id,
        run_name=run_name,
        nested=parent_run_id is not None,
        parent_run_id=parent_run_id,
        tags=tags,
        description=description,
    )
    try:
        mlflow.log_params(params)
        yield run.info.run_id
    except BaseException as error:
        status = "KILLED" if isinstance(error, (KeyboardInterrupt, SystemExit)) else "FAILED"
        reason = f"{type(error).__name__}: {error}".strip().rstrip(":")
        # A server that is gone must not hide the error that ended the run.
        with contextlib.suppress(Exception):
            mlflow.set_tag(f"{TAG}reason", reason[:500])
        with contextlib.suppress(Exception):
            mlflow.end_run(status)
        raise
    mlflow.end_run("FINISHED")


@contextmanager
def autologging():
    """MLflow's Keras autologging for the `fit` inside; models and data sets are logged by us, once and whole."""
    import mlflow.keras

    mlflow.keras.autolog(log_models=False, log_datasets=False, silent=True)
    try:
        yield
    finally:
        mlflow.keras.autolog(disable=True, silent=True)


def log_dataset(dataset) -> None:
    """Record the data set on the active run as an MLflow dataset input (its digest cut to MLflow's 36 characters)."""
    import mlflow
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    source = CodeDatasetSource({"source": dataset.source})
    mlflow.log_input(MetaDataset(source, name=dataset.name, digest=dataset.digest[:36]), context="training")


def log_results(metrics, figures, texts, files=()) -> None:
    """Log metrics, matplotlib figures and texts (by artifact path) and files on the active run, in one upload."""
    import mlflow

    mlflow.log_metrics(metrics)
    with tempfile.TemporaryDirectory() as folder:
        for path, figure in figures.items():
            target = Path(folder, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(target)
        for path, text in texts.items():
            target = Path(folder, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        for path, write in dict(files).items():
            write(Path(folder, path))
        mlflow.log_artifacts(folder)


def log_model(model, class_names, image_shape) -> str:
    """Log the whole model on the active run, raw images in and probabilities out; return its `models:/m-...` URI.

    Requirements are given, not inferred: inferring imports TensorFlow in a subprocess, for 7 to 9 seconds.
    """
    from importlib.metadata import version

    import mlflow
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    # Unnamed: named specs break pyfunc for models with one unnamed input.
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype("uint8"), (-1, *image_shape))]),
        Schema([TensorSpec(np.dtype("float32"), (-1, len(class_names)))]),
    )
    logged = mlflow.keras.log_model(
        model,
        name="model",
        signature=signature,
        pip_requirements=[f"{name}=={version(name)}" for name in ("mlflow", "tensorflow", "keras", "numpy")],
        metadata={"class_names": list(class_names)},
    )
    return logged.model_uri


def ui_links(server_url) -> dict[str, str]:
    """Links into the MLflow UI at `server_url` that land on the newest comparison, with the metric columns shown.

    What the UI lists, and how, is kept in a tag of the experiment, which is brought up to date here.

    Returns:
        "runs" to a link to the runs, and for a comparison or a search "figures" to the figures on its parent run.
    """
    import mlflow

    client = mlflow.MlflowClient()
    ours = [e.experiment_id for e in client.search_experiments() if TAG + "source" in e.tags]
    newest = client.search_runs(ours, order_by=["attributes.start_time DESC"], max_results=1) if ours else []
    if not newest:
        return {"runs": server_url}
    [run] = newest
    experiment_id = run.info.experiment_id
    parent = run.data.tags.get("mlflow.parentRunId")
    view = {
        "selectedColumns": list(UI_COLUMNS),
        "orderByKey": "metrics.`val_accuracy`" if parent else "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        # The UI folds children away under a parent without scores; filtered, they are rows of their own.
        "searchFilter": f"tags.mlflow.parentRunId = '{parent}'" if parent else "",
    }
    client.set_experiment_tag(experiment_id, f"mlflow.sharedViewState.{UI_VIEW}", json.dumps(view))
    runs = f"{server_url}/#/experiments/{experiment_id}/runs"
    links = {"runs": f"{runs}?viewStateShareKey={UI_VIEW}&workflowType=machine_learning"}
    if parent:
        figure = client.get_run(parent).data.tags.get(TAG + "figure", "")
        links["figures"] = f"{runs}/{parent}/artifacts/{figure}?workflowType=machine_learning"
    return links


def _store_uri():
    return os.environ.get(TRACKING_VARIABLE) or f"sqlite:///{Path(STORE_FOLDER).resolve() / 'mlflow.db'}"


def _local_database(uri):
    return Path(uri.removeprefix("sqlite:///")).resolve() if uri.startswith("sqlite:///") else None


def _unwritable(folder, reason):
    return LabError(
        f"Expected to write the MLflow store in '{folder}'. Received: {_first_line(reason)}. "
        "Make the folder writable, work in another one, or set MLFLOW_TRACKING_URI."
    )


def _first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _expect_reachable(uri):
    """Answer quickly for a server that is down; MLflow's own client would retry for minutes."""
    try:
        urllib.request.urlopen(uri.rstrip("/") + "/health", timeout=HEALTH_TIMEOUT).close()
    except urllib.error.HTTPError:
        pass  # something answers: authentication and the like are MLflow's to report
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise LabError(
            f"Expected an MLflow server at {uri} (MLFLOW_TRACKING_URI). Received no answer: {reason}. "
            "Start the server, correct the address, or unset the variable to use ./mlruns."
        ) from error


def _open_local_store(database):
    import mlflow
    from filelock import FileLock

    artifacts = database.parent / "artifacts"
    artifacts.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock"):
        if not database.exists():
            with tempfile.TemporaryDirectory(dir=database.parent) as folder:
                fresh = Path(folder, database.name)
                mlflow.MlflowClient(f"sqlite:///{fresh}")  # the constructor migrates
                os.replace(fresh, database)
        elif not os.access(database, os.W_OK):
            raise PermissionError(f"'{database}' is read-only")
        _relocate(database, artifacts)
        mlflow.MlflowClient(f"sqlite:///{database}")  # migrates a store of an older MLflow while we hold the lock


def _relocate(database, artifacts):
    """Rewrite artifact paths that end in our folder but start elsewhere: the store was moved or copied."""
    here = artifacts.as_uri()
    suffix = f"/{artifacts.parent.name}/artifacts"
    columns = (
        ("experiments", "artifact_location"),
        ("runs", "artifact_uri"),
        ("logged_models", "artifact_location"),
        ("model_versions", "storage_location"),
    )
    with contextlib.closing(sqlite3.connect(database, timeout=30)) as connection, connection:
        rows = connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        for (there,) in rows:
            if there and there.startswith("file://") and there.endswith(suffix) and there != here:
                for table, column in columns:
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                        (here, len(there) + 1, len(there), there),
                    )


def _close_stale_runs(client):
    """End as KILLED what a process of this machine that is gone left RUNNING (SIGKILL, power loss)."""
    ours = [e.experiment_id for e in client.search_experiments() if TAG + "source" in e.tags]
    if not ours:
        return
    here = socket.gethostname()
    for run in client.search_runs(ours, "attributes.status = 'RUNNING'", max_results=1000):
        host, _, process = run.data.tags.get(TAG + "process", "").rpartition("/")
        if host == here and not _is_alive(process):
            client.set_tag(run.info.run_id, TAG + "reason", "the process ended without closing the run")
            client.set_terminated(run.info.run_id, "KILLED")


def _process_tags():
    import psutil

    # With the start time, since process ids are used again.
    process = f"{os.getpid()}-{psutil.Process().create_time():.0f}"
    return {"process": f"{socket.gethostname()}/{process}"}


def _is_alive(process):
    import psutil

    pid, _, started = process.partition("-")
    with contextlib.suppress(psutil.Error, ValueError):
        return abs(psutil.Process(int(pid)).create_time() - float(started)) < 2
    return False


def _experiment_tags(dataset):
    return {
        TAG + "source": dataset.source,
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.note.content": f"Image classification on **{dataset.name}** ({len(dataset.class_names)} classes: "
        f"{', '.join(dataset.class_names[:20])}{', ...' if len(dataset.class_names) > 20 else ''}).",
    }


def _short_hash(text):
    return hashlib.sha256(text.encode()).hexdigest()[:6]
