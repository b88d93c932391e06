"""Where runs are kept: the local store in `./mlruns`, or the server that `MLFLOW_TRACKING_URI` names."""

import contextlib
import http.client
import logging
import os
import socket
import sqlite3
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import mlflow
import psutil
from filelock import FileLock

from cnnlab.errors import LabError, first_line
from cnnlab.tracking.inside_mlflow import relocate
from cnnlab.tracking.tags import TAG

STORE_FOLDER = "mlruns"
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
HEALTH_TIMEOUT = 10  # seconds; an unreachable server is reported within 15

# Chatter about schema migrations, and about alembic's context, at the first start of a store.
for _name in ("mlflow.store.db.utils", "mlflow.tracking.fluent", "alembic", "alembic.runtime.migration"):
    logging.getLogger(_name).setLevel(logging.ERROR)
# MLflow's default of 7 retries blocks for minutes on a server that went away.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
# A lab's use is its own business, and a closed network would be tried in vain.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# With a server it prints two lines for every run; ours says where to look once.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")


def expect_usable_store() -> None:
    """Find out, within seconds and without writing anything, whether the store can be used.

    Raises:
        LabError: the server does not answer, or the local folder cannot be written.
    """
    uri = _store_uri()
    if uri.startswith(("http://", "https://")):
        _expect_reachable(uri)
    elif database := local_database(uri):
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
    expect_usable_store()
    uri = _store_uri()
    database = local_database(uri)
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
            f"Expected an MLflow store at {uri} (MLFLOW_TRACKING_URI). Received: {first_line(error)}. "
            "Correct the address, or unset the variable to use ./mlruns."
        ) from error
    return uri


def _store_uri():
    return os.environ.get(TRACKING_VARIABLE) or f"sqlite:///{Path(STORE_FOLDER).resolve() / 'mlflow.db'}"


def local_database(uri) -> Path | None:
    """The sqlite file of a local store's URI; `None` for a server."""
    return Path(uri.removeprefix("sqlite:///")).resolve() if uri.startswith("sqlite:///") else None


def _unwritable(folder, reason):
    return LabError(
        f"Expected to write the MLflow store in '{folder}'. Received: {first_line(reason)}. "
        "Make the folder writable, work in another one, or set MLFLOW_TRACKING_URI."
    )


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
        relocate(database, artifacts)
        mlflow.MlflowClient(f"sqlite:///{database}")  # migrates a store of an older MLflow while we hold the lock


def _close_stale_runs(client):
    """End as KILLED what a process of this machine that is gone left RUNNING (SIGKILL, power loss)."""
    ours = our_experiments(client)
    if not ours:
        return
    here = socket.gethostname()
    for run in client.search_runs(ours, "attributes.status = 'RUNNING'", max_results=1000):
        host, _, process = run.data.tags.get(TAG + "process", "").rpartition("/")
        if host == here and not _is_alive(process):
            client.set_tag(run.info.run_id, TAG + "reason", "the process ended without closing the run")
            client.set_terminated(run.info.run_id, "KILLED")


def our_experiments(client) -> list[str]:
    """The ids of the experiments that cnnlab made."""
    return [e.experiment_id for e in client.search_experiments() if TAG + "source" in e.tags]


def process_tags() -> dict:
    """Which process of which machine a run belongs to."""
    # With the start time, since process ids are used again.
    process = f"{os.getpid()}-{psutil.Process().create_time():.0f}"
    return {"process": f"{socket.gethostname()}/{process}"}


def _is_alive(process):
    pid, _, started = process.partition("-")
    with contextlib.suppress(psutil.Error, ValueError):
        return abs(psutil.Process(int(pid)).create_time() - float(started)) < 2
    return False
