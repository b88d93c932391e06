"""Remove what deleted runs, experiments and models still take on disk, for `cnnlab gc`: MLflow only marks them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mlflow

from cnnlab.errors import LabError, masked
from cnnlab.tracking import mlflow_store, run_locks
from cnnlab.tracking.maintenance.findings import Finding, counted, in_mb
from cnnlab.tracking.maintenance.stored_rows import Run, StoredRows, Version, folder_of, read_rows
from cnnlab.tracking.mlflow_internals import hard_delete
from cnnlab.tracking.session import opened_store
from cnnlab.tracking.store_location import local_database
from cnnlab.utils.temporary_folders import remove, size_of


@dataclass(frozen=True)
class Garbage:
    """What can be freed."""

    runs: list[str]  # ids of deleted runs
    models: list[str]  # ids of logged models that are deleted, or of such runs
    experiments: list[int]  # ids of deleted experiments that are empty without them
    paths: list[Path]  # their artifacts and checkpoints
    size: int  # of these, in bytes
    kept: dict[str, str]  # ids of deleted runs and models that must stay, with the reason


def find_garbage(database: Path, rows: StoredRows) -> Garbage:
    """Find what deleted runs hold, but for what a registered version needs, live runs, and what is not on this disk."""
    deleted = [run for run in rows.runs.values() if run.stage == "deleted"]
    kept = {run.run_id: why for run in deleted if (why := _why_kept(run, database, rows))}
    runs = [run.run_id for run in deleted if run.run_id not in kept]
    models = []
    for model in rows.models.values():
        if versions := rows.needed_by(model_id=model.model_id):
            if model.stage == "deleted":
                kept[model.model_id] = _needed(versions)
        elif folder_of(model.place, database) and (model.stage == "deleted" or model.run_id in runs):
            models.append(model.model_id)
    in_use = {run.experiment_id for run in rows.runs.values() if run.run_id not in runs}
    in_use |= {model.experiment_id for model in rows.models.values() if model.model_id not in models}
    experiments = [number for number in rows.deleted_experiments if number not in in_use]
    places = [rows.runs[key].place for key in runs] + [rows.models[key].place for key in models]
    folders = [folder for place in places if (folder := folder_of(place, database))]
    paths = [path for path in folders if path.exists()]
    paths += [path for key in runs if (path := database.parent / "checkpoints" / f"{key}.npz").exists()]
    return Garbage(runs, models, experiments, paths, sum(map(size_of, paths)), kept)


def _why_kept(run: Run, database: Path, rows: StoredRows) -> str:
    """Return why a deleted run is not freed, "" where it is."""
    if folder_of(run.place, database) is None:
        return f"its artifacts are at {run.place}: use 'mlflow gc'"
    if run.status == "RUNNING" and not run_locks.has_ended(run.run_id, run.tags, database.parent):
        return "it is at work"
    models = [model.model_id for model in rows.models.values() if model.run_id == run.run_id]
    versions = [*rows.needed_by(run_id=run.run_id), *(v for key in models for v in rows.needed_by(model_id=key))]
    return _needed(list(dict.fromkeys(versions))) if versions else ""


def _needed(versions: list[Version]) -> str:
    return f"{', '.join(map(str, versions))} {'needs' if len(versions) == 1 else 'need'} it"


def deleted_findings(database: Path, rows: StoredRows) -> list[Finding]:
    """Note what deleted runs and models hold: no fault, since they can be restored."""
    garbage = find_garbage(database, rows)
    if not garbage.runs and not garbage.models:
        return []
    runs, models = counted(len(garbage.runs), "deleted run"), counted(len(garbage.models), "deleted model")
    remedy = "'cnnlab gc' frees them, 'mlflow runs restore' brings a run back"
    return [Finding(f"{runs} and {models} hold {in_mb(garbage.size)}", remedy, is_fault=False)]


def collect(free: bool = False) -> Garbage:
    """Find what deleted runs hold in the local store, and with `free` delete it; raise `LabError` on another store."""
    uri = mlflow_store.address()
    database = local_database(uri)
    if database is None:
        raise LabError(
            f"Expected a local store. Received: {masked(uri)}. Use 'mlflow gc' where its database and artifacts are."
        )
    with opened_store():
        garbage = find_garbage(database, read_rows(database))
        if free:
            # The rows last: after a kill in between, the next call finds the rest by them.
            remove(garbage.paths)
            for path in garbage.paths:
                if path.name == "artifacts" and not any(path.parent.iterdir()):
                    path.parent.rmdir()
            hard_delete(mlflow.get_tracking_uri(), garbage.runs, garbage.models, garbage.experiments)
    return garbage
