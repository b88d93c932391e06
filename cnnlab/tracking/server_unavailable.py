"""Handle a tracking server that stops answering: recognise it, wait for it, and save the results on this disk."""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow

from cnnlab.errors import LabError, ServerUnavailable, first_line
from cnnlab.tracking.mlflow_internals import probe, short_reason
from cnnlab.tracking.server_checks import HEALTH_TIMEOUT
from cnnlab.tracking.store_location import STORE_FOLDER, is_server
from cnnlab.utils.log import log

# What MLflow says of a call without an answer, and of one that a proxy answered in the server's place.
UNANSWERED = re.compile(r"failed with exception|error code 50[234]|too many 50[234] error")


def is_unavailable() -> bool:
    """Return whether the store is a server that does not answer now."""
    uri = mlflow.get_tracking_uri()
    if not is_server(uri):
        return False
    try:
        probe(uri, HEALTH_TIMEOUT)
    except (mlflow.MlflowException, OSError):
        return True
    return False


@contextmanager
def unanswered_calls_told() -> Iterator[None]:
    """Raise `ServerUnavailable` for what fails inside since the server does not answer.

    The server may answer again by the time that the error is raised.
    """
    try:
        yield
    except (mlflow.MlflowException, OSError) as error:
        if UNANSWERED.search(str(error)) or is_unavailable():
            raise unavailable(error) from error
        raise


def unavailable(error: Exception, more: str = "") -> ServerUnavailable:
    """Return the error to raise when the server stopped answering."""
    return ServerUnavailable(
        f"Expected the MLflow server at {mlflow.get_tracking_uri()} to go on answering. Received: "
        f"{short_reason(error)}.{more} Start the server again, and then this job."
    )


def wait_for_server(minutes: float) -> None:
    """Wait until the server answers again, or so many minutes have passed."""
    log.warning("the MLflow server does not answer; waiting for it.")
    deadline = time.monotonic() + 60 * minutes
    while is_unavailable() and time.monotonic() < deadline:
        time.sleep(5)


@contextmanager
def results_kept(run_id: str, save: Callable[[Path], None]) -> Iterator[None]:
    """Write the results to a folder, by `save(folder)`, where the store does not take them inside the block.

    Raises:
        LabError: the store did not take them; it names the folder.
    """
    try:
        yield
    except (mlflow.MlflowException, OSError) as error:
        kept = f" The trained model and all results are in '{_saved(run_id, save)}'."
        if is_unavailable():
            raise unavailable(error, kept) from error
        raise LabError(f"Expected the store to take the results. Received: {first_line(error)}.{kept}") from error


def _saved(run_id: str, save: Callable[[Path], None]) -> Path:
    """Save results beside the store, or where that disk is full too, among temporary files; return the folder."""
    last = Path(tempfile.gettempdir(), "cnnlab-undelivered", run_id)
    for folder in (Path(STORE_FOLDER, "undelivered").resolve() / run_id, last):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save(folder)
            break
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            if folder == last:
                raise
    return folder
