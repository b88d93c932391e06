"""Open the store of runs: that of the user's active run, else `MLFLOW_TRACKING_URI`, else `./mlruns`."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from filelock import FileLock
from sqlalchemy.exc import SQLAlchemyError

from cnnlab.errors import LabError, first_line
from cnnlab.tracking.mlflow_internals import (
    is_known_schema,
    latest_schema,
    make_database,
    move_places_beside,
    restored_globals,
    upgrade_database,
)
from cnnlab.tracking.pagination import running_runs
from cnnlab.tracking.run_locks import has_ended, lock_file, remove_lock
from cnnlab.tracking.server_checks import expect_database, expect_reachable, reached_before
from cnnlab.tracking.store_database import copy_database, replacing, schema_of
from cnnlab.tracking.store_location import (
    STORE_FOLDER,
    TRACKING_VARIABLE,
    artifacts_folder,
    is_in_memory,
    is_server,
    local_database,
    local_folder,
    sqlite_uri,
    store_uri,
)
from cnnlab.tracking.tag_names import TAG
from cnnlab.utils.environment import read_variable
from cnnlab.utils.temporary_folders import private_folder

if TYPE_CHECKING:
    from cnnlab.tracking.recorder import Recorder

LEAST_BYTES = 10**6  # free on the disk of a local store
DRIVERS = {"postgresql": "psycopg[binary]", "mysql": "pymysql", "mssql": "pyodbc"}


@dataclass
class ProcessState:
    """What this process has open: MLflow has one address a process, which all verbs and threads share."""

    users: int = 0  # how many blocks are inside the open store; the first opens it, the last restores MLflow's address
    lock: Any = field(default_factory=threading.RLock)  # held while `users` changes
    # What is released with the store, such as a temporary copy.
    resources: contextlib.ExitStack[bool | None] = field(default_factory=contextlib.ExitStack)
    recorder: Recorder | None = None  # of the verb that records now; verbs that it calls record with it too


process: ProcessState = ProcessState()


@contextlib.contextmanager
def opened(writes: bool = True) -> Iterator[bool]:
    """Point MLflow at the store inside the block, and at what it pointed at before afterwards.

    The store is that of the user's own active run where there is one, so that ours nests below it. Blocks may be
    nested; the outermost one counts. Without `writes`, a store that may not be written is read from a copy of its
    database.

    Yields:
        Whether this block is the outermost one.

    Raises:
        LabError: as `open_store`.
    """
    with process.lock:
        if is_outermost := not process.users:
            with contextlib.ExitStack() as until_open:
                until_open.enter_context(restored_globals())
                open_store(writes)
                process.resources.push(until_open.pop_all())
        process.users += 1
    try:
        yield is_outermost
    finally:
        with process.lock:
            process.users -= 1
            if not process.users:
                process.resources.close()


@contextlib.contextmanager
def opened_at(uri: str) -> Iterator[None]:
    """Point MLflow and `opened` at this store inside the block, whichever the user's is."""
    with restored_globals():
        open_store(elsewhere=uri)
        with process.lock:
            process.users += 1
        try:
            yield
        finally:
            with process.lock:
                process.users -= 1


def expect_usable_store(writes: bool = True) -> None:
    """Find out, within seconds and without writing anything, whether the store can be used; or read, without `writes`.

    Raises:
        LabError: the server does not answer, or the local folder cannot be written.
    """
    uri = address()
    if is_server(uri):
        if not reached_before(uri):  # it may be a typing error; what is recorded waits for one that was reached before
            expect_reachable(uri)
        _expect_space(Path(STORE_FOLDER).resolve())  # where runs wait for the server
    elif (database := local_database(uri)) and (writes or not database.exists()):
        existing = next(folder for folder in (database.parent, *database.parent.parents) if folder.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            raise _unwritable(database.parent, f"'{existing}' is not a writable folder")
        if database.exists() and not os.access(database, os.W_OK):
            raise _unwritable(database.parent, f"'{database}' is read-only")
        _expect_space(database.parent)


def open_store(writes: bool = True, elsewhere: str | None = None) -> None:
    """Point MLflow at the store, or at the one at `elsewhere`; `writes` is as in `opened`.

    A new sqlite store is migrated in a temporary file and renamed into place under a file lock, since MLflow migrates
    without a lock of its own and a kill half-way leaves a database that never opens again. Runs that a killed process
    left RUNNING are closed.

    Raises:
        LabError: the folder cannot be written, or the server does not answer.
    """
    uri = elsewhere or address()
    database = local_database(uri)
    try:
        if not writes and database and database.exists() and not _may_write(database):
            uri = sqlite_uri(copied(database))
            database = None  # the runs of others stay as they are
            mlflow.set_tracking_uri(uri)
            mlflow.MlflowClient()
            return
        if is_server(uri):
            expect_reachable(uri)
        elif not elsewhere:
            expect_usable_store()
            if _kind(uri) in DRIVERS:
                expect_database(uri)
        if database:
            _open_local_store(database)
        named = read_variable(TRACKING_VARIABLE) is not None
        mlflow.set_tracking_uri(uri)
        if not named:  # MLflow sets it too, and our own default must not pass for the user's choice
            os.environ.pop(TRACKING_VARIABLE, None)
        client = mlflow.MlflowClient()
        # On a server who may only read closes nothing.
        with contextlib.suppress(mlflow.MlflowException) if is_server(uri) else contextlib.nullcontext():
            _close_stale_runs(client)
    except (ModuleNotFoundError, OSError, sqlite3.Error, SQLAlchemyError, mlflow.MlflowException) as error:
        raise _cannot_open(uri, database, error) from error


def _cannot_open(uri: str, database: Path | None, error: Exception) -> LabError:
    """Return the error to raise for a store that does not open: expected, received, what to do."""
    if isinstance(error, ModuleNotFoundError):
        return LabError(
            f"Expected a driver for the store at {uri}. Received: {first_line(error)}. "
            f"Install one: pip install '{DRIVERS.get(_kind(uri), error.name)}'."
        )
    if found := re.search(r"found version (\w+)", str(error)):
        cure = f"Copy its database, then bring it up to date: mlflow db upgrade '{uri}'."
        return _of_another_mlflow(uri, found[1], cure)
    if database:
        is_broken = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
        return _unwritable(database.parent, error, *["Save what can be read with 'cnnlab doctor --fix'."] * is_broken)
    hint = f" Did you mean http://{uri}?" if "://" not in uri and ":" in uri else ""
    return LabError(
        f"Expected an MLflow store at {uri} (MLFLOW_TRACKING_URI). Received: {first_line(error)}.{hint} "
        "Correct the address, or unset the variable to use ./mlruns."
    )


def is_read_only() -> bool:
    """Return whether the store that is open is a copy of one that may not be written."""
    database = local_database(mlflow.get_tracking_uri())
    return database is not None and database.parent.name.startswith("cnnlab-read-")  # as `copied` makes it


def address() -> str:
    """Return the address of the store that a verb will open: of the user's active run, or `store_location.store_uri`.

    A store in memory raises `LabError`.
    """
    if mlflow.active_run():
        return mlflow.get_tracking_uri()
    uri = store_uri()
    if is_in_memory(uri):
        raise LabError(
            f"Expected a store that outlives this process. Received: {uri} (MLFLOW_TRACKING_URI), which is in memory. "
            "Name a file, such as sqlite:///mlruns/mlflow.db, or unset the variable to use ./mlruns."
        )
    return uri


def _kind(uri: str) -> str:
    """Return the kind of a database from its address: postgresql, say."""
    return uri.partition("://")[0].partition("+")[0]


def _may_write(database: Path) -> bool:
    folder = database.parent
    return os.access(database, os.W_OK) and os.access(folder, os.W_OK) and not _is_full(folder)


def _is_full(folder: Path) -> bool:
    """Return whether not even a run's entries have room; there are file systems that do not say how large they are."""
    disk = shutil.disk_usage(folder)
    return disk.total > 0 and disk.free < LEAST_BYTES


def _expect_space(folder: Path) -> None:
    if _is_full(next(existing for existing in (folder, *folder.parents) if existing.exists())):
        raise LabError(
            f"Expected space on the disk for the MLflow store in '{folder}'. Received: less than 1 MB. "
            "Free some, work in another folder, or set MLFLOW_TRACKING_URI."
        )


def copied(database: Path) -> Path:
    """Copy a database that may not be written, and bring the copy up to date; its artifacts stay where they are.

    The copy is removed when the store is closed.
    """
    copy = process.resources.enter_context(private_folder("read")) / database.name
    copy_database(database, copy)
    if (revision := schema_of(copy)) not in ("", latest_schema()) and is_known_schema(revision):
        upgrade_database(copy)
    mlflow.MlflowClient(sqlite_uri(copy))
    move_places_beside(copy)
    artifacts_folder(copy).symlink_to(artifacts_folder(database))
    return copy


def _of_another_mlflow(uri: str, revision: str, cure: str) -> LabError:
    older = is_known_schema(revision)
    return LabError(
        f"Expected a store of MLflow {mlflow.__version__} at {uri}. Received: one of "
        + (f"an older MLflow. {cure}" if older else "a newer MLflow. Use that version: pip install -U mlflow.")
    )


def _unwritable(
    folder: Path,
    reason: str | Exception,
    cure: str = "Make the folder writable, work in another one, or set MLFLOW_TRACKING_URI.",
) -> LabError:
    return LabError(f"Expected to write the MLflow store in '{folder}'. Received: {first_line(reason)}. {cure}")


def copy_empty_store(database: Path) -> None:
    """Make a new store by copying an empty one, which takes a millisecond instead of seconds."""
    empty = database.parents[1] / "empty" / f"{mlflow.__version__}.db"
    _open_local_store(empty)
    with replacing(database) as fresh:
        shutil.copyfile(empty, fresh)


def _open_local_store(database: Path) -> None:
    artifacts_folder(database).mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock"):
        if not database.exists():
            with replacing(database) as fresh:
                make_database(fresh)
        # MLflow would migrate some of an older one's tables where they are, and leave them broken if it is killed.
        if (revision := schema_of(database)) not in ("", latest_schema()):
            cure = "Bring it up to date with 'cnnlab doctor --fix', which keeps a copy of its database."
            raise _of_another_mlflow(sqlite_uri(database), revision, cure)
        mlflow.MlflowClient(sqlite_uri(database))
        move_places_beside(database)


def _close_stale_runs(client: mlflow.MlflowClient) -> None:
    """End as KILLED the runs that an ended process left RUNNING (SIGKILL, power loss)."""
    folder = local_folder(mlflow.get_tracking_uri())
    for run in list(running_runs(client)):
        if has_ended(run.info.run_id, run.data.tags, folder):
            client.set_tag(run.info.run_id, TAG + "reason", "the process ended without closing the run")
            client.set_terminated(run.info.run_id, "KILLED")
            remove_lock(lock_file(folder, run.info.run_id))
