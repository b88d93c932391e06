"""The only room that imports MLflow: the store, experiments, runs, autologging, artifacts and whole models."""

import contextlib
import json
import logging
import os
import socket
import sqlite3
import sys
import tempfile
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from cnnlab.errors import ArgumentError, LabError

# Every tag of ours starts with this, so that it stands apart from MLflow's own.
TAG = "cnnlab."
STORE_FOLDER = "mlruns"
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


def open_store() -> str:
    """Point MLflow at the store and return its URI: `MLFLOW_TRACKING_URI` when set, else `./mlruns/mlflow.db`.

    A new local store is migrated in a temporary file and renamed into place under a file lock, since MLflow migrates
    without a lock of its own and a kill half-way leaves a database that never opens again. In a folder that was moved
    or copied, the artifact paths are put right. Runs that a killed process of this machine left RUNNING are closed.

    Raises:
        LabError: the folder cannot be written, or the server does not answer.
    """
    import mlflow

    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        _expect_reachable(uri)
        mlflow.set_tracking_uri(uri)
        return uri
    root = Path(STORE_FOLDER).resolve()
    uri = f"sqlite:///{root / 'mlflow.db'}"
    try:
        _open_local_store(root)
    except (OSError, sqlite3.Error, mlflow.MlflowException) as error:
        raise LabError(
            f"Expected to write the MLflow store in '{root}'. Received: {error}. Make the folder writable, work in "
            "another folder, or set MLFLOW_TRACKING_URI."
        ) from error
    mlflow.set_tracking_uri(uri)
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
            location = None
            if mlflow.get_tracking_uri().startswith("sqlite:///"):
                location = _artifact_root(mlflow.get_tracking_uri())
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
            mlflow.flush_async_logging()
        with contextlib.suppress(Exception):
            mlflow.end_run(status)
        raise
    mlflow.flush_async_logging()
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


def ui_link(server_url, experiment_id) -> str:
    """A link into the MLflow UI at `server_url` that lands on the experiment's runs with the metric columns shown."""
    return (
        f"{server_url}/#/experiments/{experiment_id}/runs?viewStateShareKey={UI_VIEW}&workflowType=machine_learning"
    )


def latest_experiment_id() -> str | None:
    """The experiment of ours with the newest run, or `None` in a store without any."""
    import mlflow

    client = mlflow.MlflowClient()
    ours = [e for e in client.search_experiments() if TAG + "source" in e.tags]
    if not ours:
        return None
    runs = client.search_runs([e.experiment_id for e in ours], order_by=["attributes.start_time DESC"], max_results=1)
    return runs[0].info.experiment_id if runs else ours[0].experiment_id


def _expect_reachable(uri):
    """Answer quickly for a server that is down; MLflow's own client would retry for minutes."""
    if not uri.startswith(("http://", "https://")):
        return
    try:
        urllib.request.urlopen(uri.rstrip("/") + "/health", timeout=HEALTH_TIMEOUT).close()
    except urllib.error.HTTPError:
        pass  # something answers: authentication and the like are MLflow's to report
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise LabError(
            f"Expected an MLflow server at {uri} (MLFLOW_TRACKING_URI). Received no answer: {reason}. "
            "Start the server, correct the address, or unset the variable to use ./mlruns."
        ) from error


def _open_local_store(root):
    import mlflow
    from filelock import FileLock

    root.mkdir(parents=True, exist_ok=True)
    (root / "artifacts").mkdir(exist_ok=True)
    database = root / "mlflow.db"
    with FileLock(root / "mlflow.db.lock"):
        if not database.exists():
            with tempfile.TemporaryDirectory(dir=root) as folder:
                fresh = Path(folder) / "mlflow.db"
                # The constructor migrates.
                mlflow.MlflowClient(f"sqlite:///{fresh}").search_experiments()
                _forget_engine(fresh)
                os.replace(fresh, database)
        elif not os.access(database, os.W_OK):
            raise PermissionError(f"'{database}' is read-only")
        _relocate(database, root / "artifacts")
        _close_stale_runs(mlflow.MlflowClient(f"sqlite:///{database}"))


def _forget_engine(database):
    """Merge the write-ahead log, should there be one, into the file before it is renamed."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _relocate(database, artifacts):
    """Rewrite artifact paths that end in our folder but start elsewhere: the store was moved or copied."""
    here = artifacts.as_uri()
    columns = (
        ("experiments", "artifact_location"),
        ("runs", "artifact_uri"),
        ("logged_models", "artifact_location"),
        ("model_versions", "storage_location"),
    )
    with contextlib.closing(sqlite3.connect(database, timeout=30)) as connection, connection:
        rows = connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        suffix = f"/{STORE_FOLDER}/artifacts"
        for (there,) in rows:
            if there and there.startswith("file://") and there.endswith(suffix) and there != here:
                for table, column in columns:
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {column} LIKE ? || '%'",
                        (here, len(there) + 1, there),
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
    view = {
        "selectedColumns": list(UI_COLUMNS),
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
    }
    return {
        TAG + "source": dataset.source,
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.note.content": f"Image classification on **{dataset.name}** ({len(dataset.class_names)} classes: "
        f"{', '.join(dataset.class_names[:20])}{', ...' if len(dataset.class_names) > 20 else ''}).",
        f"mlflow.sharedViewState.{UI_VIEW}": json.dumps(view),
    }


def _artifact_root(uri):
    return (Path(uri.removeprefix("sqlite:///")).parent / "artifacts").as_uri()


def _short_hash(text):
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:6]
