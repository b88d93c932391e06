"""When the store does not answer: told apart from other errors, waited for, and the results kept meanwhile."""

import re
import shutil
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import mlflow

from cnnlab.errors import LabError, StoreGone, first_line
from cnnlab.tracking.mlflow_internals import in_short, probe
from cnnlab.tracking.server_checks import HEALTH_TIMEOUT
from cnnlab.tracking.store_location import STORE_FOLDER, is_server
from cnnlab.utils.log import log

# What MLflow says of a call without an answer, and of one that a proxy answered in the server's place.
UNANSWERED = re.compile(r"failed with exception|error code 50[234]|too many 50[234] error")


def is_away() -> bool:
    """Whether the store is a server that does not answer now."""
    uri = mlflow.get_tracking_uri()
    if not is_server(uri):
        return False
    try:
        probe(uri, HEALTH_TIMEOUT)
    except (mlflow.MlflowException, OSError):
        return True
    return False


@contextmanager
def loss_of_store_said():
    """Around work that asks the store: what fails since the server does not answer is a `StoreGone`.

    It may answer again by the time that the error is here.
    """
    try:
        yield
    except (mlflow.MlflowException, OSError) as error:
        if UNANSWERED.search(str(error)) or is_away():
            raise gone(error) from error
        raise


def gone(error, more="") -> StoreGone:
    """The error to raise when the store stopped answering."""
    return StoreGone(
        f"Expected the MLflow server at {mlflow.get_tracking_uri()} to go on answering. Received: "
        f"{in_short(error)}.{more} Start the server again, and then this job."
    )


def wait_for_store(minutes) -> None:
    """Wait until the server answers again, or so many minutes have passed."""
    log.warning("the MLflow server does not answer; waiting for it.")
    deadline = time.monotonic() + 60 * minutes
    while is_away() and time.monotonic() < deadline:
        time.sleep(5)


@contextmanager
def results_kept(run_id, save):
    """Around the delivery of results: where it fails, `save(folder)` writes them to a folder that the error names.

    Raises:
        LabError: the delivery failed.
    """
    try:
        yield
    except (mlflow.MlflowException, OSError) as error:
        folder = _saved(run_id, save)
        kept = f" The trained model and all results are in '{folder}'."
        if is_away():
            raise gone(error, kept) from error
        raise LabError(f"Expected the store to take the results. Received: {first_line(error)}.{kept}") from error


def _saved(run_id, save):
    """The folder that takes the results: beside the store, or where that disk is full too, among temporary files."""
    places = (Path(STORE_FOLDER, "undelivered").resolve(), Path(tempfile.gettempdir(), "cnnlab-undelivered"))
    for place in places:
        folder = place / run_id
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save(folder)
            return folder
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            if place == places[-1]:
                raise
