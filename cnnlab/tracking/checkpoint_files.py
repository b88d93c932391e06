"""Find checkpoint files and the runs that can be resumed from them, and delete checkpoints that nobody can use.

A checkpoint is the file `RUN_ID.npz`. For a local store it lies beside the database, for a server it lies in the
user's cache. `cnnlab.training.checkpointing` reads and writes it.
"""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import mlflow
from mlflow.entities import Run

from cnnlab.tracking.store_location import local_folder
from cnnlab.tracking.tag_names import TAG
from cnnlab.utils.files import UNFINISHED
from cnnlab.utils.log import log

DAYS = 14  # that one is kept for


@dataclass(frozen=True)
class Stored:
    """A checkpoint on the disk: its `run_id`, `file`, `bytes`, and when it was `written` (seconds since the epoch)."""

    run_id: str
    file: Path
    bytes: int
    written: float


def checkpoint_folder() -> Path:
    """Return the folder of the open store's checkpoints."""
    return local_folder(mlflow.get_tracking_uri()) / "checkpoints"


def checkpoint_file(run_id: str) -> Path:
    """Return the file of a run's checkpoint, whether or not it has one, for the open store."""
    return checkpoint_folder() / f"{run_id}.npz"


def stored_checkpoints() -> list[Stored]:
    """Return the checkpoints of the open store, newest first."""
    found = []
    for file in checkpoint_folder().glob("*.npz"):
        if not re.fullmatch("[0-9a-f]{32}", file.stem):  # somebody else's
            continue
        with contextlib.suppress(OSError):  # removed meanwhile
            about = file.stat()
            found.append(Stored(file.stem, file, about.st_size, about.st_mtime))
    return sorted(found, key=lambda one: -one.written)


def sweep() -> None:
    """Remove checkpoints that nobody resumes, and say so: of finished and deleted runs, and those older than `DAYS`.

    Files that a kill left half-written are removed too.
    """
    for one in stored_checkpoints():
        run = _run(one.run_id)
        if why := _why_useless(one, run.info.status if run else None):
            one.file.unlink(missing_ok=True)
            log.info(f"Removed the checkpoint of run {one.run_id[:8]}, {why} ({one.bytes / 1e6:,.1f} MB).")
    for file in checkpoint_folder().glob(f"*{UNFINISHED}"):
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime > 3600:  # no disk takes as long
                file.unlink(missing_ok=True)


def _why_useless(stored: Stored, status: str | None) -> str:
    """Return why nobody resumes from a checkpoint whose run has this status, `None` where it was deleted."""
    if status is None:
        return "whose run was deleted"
    if status == "FINISHED":
        return "whose run is finished"
    if status != "RUNNING" and time.time() - stored.written > DAYS * 86400:
        return f"from {datetime.fromtimestamp(stored.written):%Y-%m-%d}; they are kept for {DAYS} days"
    return ""


def interrupted_runs(experiment_id: str, parent_run_id: str | None = None, **tags: str | None) -> list[str]:
    """Return the ids of an experiment's runs that can be resumed, the one whose checkpoint was written last first.

    They are below this run, or below none; they ended without finishing, have a checkpoint, and carry these tags.
    """
    found = []
    for one in stored_checkpoints():
        run = _run(one.run_id)
        if run is None or run.info.status in ("FINISHED", "RUNNING") or run.info.experiment_id != experiment_id:
            continue
        expected = {"mlflow.parentRunId": parent_run_id, **{TAG + name: value for name, value in tags.items()}}
        if all(run.data.tags.get(name) == value for name, value in expected.items()):
            found.append(one.run_id)
    return found


def _run(run_id: str) -> Run | None:
    """Return the run, or `None` where there is none, or a deleted one."""
    try:
        run = mlflow.MlflowClient().get_run(run_id)
    except mlflow.MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None
