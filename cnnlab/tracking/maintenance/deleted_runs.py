"""What deleted runs hold, and its end: MLflow only marks runs, experiments and models as deleted."""

from dataclasses import dataclass
from pathlib import Path

import mlflow

from cnnlab.errors import LabError, masked
from cnnlab.tracking import mlflow_store, run_locks
from cnnlab.tracking.maintenance.stored_rows import Rows, folder_of, read_rows
from cnnlab.tracking.mlflow_internals import hard_delete
from cnnlab.tracking.session import opened_store
from cnnlab.tracking.store_location import local_database
from cnnlab.utils.temporary_folders import remove, size_of


@dataclass(frozen=True)
class Garbage:
    """What can be freed.

    Attributes:
        runs: ids of deleted runs.
        models: ids of logged models that are deleted, or of such runs.
        experiments: ids of deleted experiments that are empty without them.
        paths: their artifacts and checkpoints.
        size: bytes of these.
        kept: of each deleted run or model that must stay, why.
    """

    runs: list[str]
    models: list[str]
    experiments: list[str]
    paths: list[Path]
    size: int
    kept: dict[str, str]


def find_garbage(database, rows: Rows) -> Garbage:
    """What deleted runs hold, except for what a registered version needs, a live run, and what is not on this disk."""
    deleted = [run for run in rows.runs.values() if run.stage == "deleted"]
    kept = {run.run_id: why for run in deleted if (why := _why_kept(run, database, rows))}
    runs = [run.run_id for run in deleted if run.run_id not in kept]
    models = []
    for model in rows.models.values():
        if versions := rows.needed_by(model_id=model.model_id):
            if model.stage == "deleted":
                kept[model.model_id] = _in_words(versions)
        elif folder_of(model.place, database) and (model.stage == "deleted" or model.run_id in runs):
            models.append(model.model_id)
    left = {run.experiment_id for run in rows.runs.values() if run.run_id not in runs}
    left |= {model.experiment_id for model in rows.models.values() if model.model_id not in models}
    experiments = [number for number in rows.deleted_experiments if number not in left]
    places = [folder_of(rows.runs[key].place, database) for key in runs]
    places += [folder_of(rows.models[key].place, database) for key in models]
    places += [database.parent / "checkpoints" / f"{key}.npz" for key in runs]
    paths = [path for path in places if path.exists()]
    return Garbage(runs, models, experiments, paths, sum(map(size_of, paths)), kept)


def _why_kept(run, database, rows):
    """Why a deleted run is not freed, or nothing."""
    if folder_of(run.place, database) is None:
        return f"its artifacts are at {run.place}: use 'mlflow gc'"
    if run.status == "RUNNING" and not run_locks.is_gone(run.run_id, run.tags, database.parent):
        return "it is at work"
    models = [model.model_id for model in rows.models.values() if model.run_id == run.run_id]
    needed = [*rows.needed_by(run_id=run.run_id), *(v for key in models for v in rows.needed_by(model_id=key))]
    return _in_words(dict.fromkeys(needed)) if needed else ""


def _in_words(versions):
    return f"{', '.join(map(str, versions))} {'needs' if len(versions) == 1 else 'need'} it"


def collect(free=False) -> Garbage:
    """Find what deleted runs hold in the local store, and free it.

    Args:
        free: without, nothing is deleted.

    Raises:
        LabError: the store is no local one.
    """
    uri = mlflow_store.address()
    database = local_database(uri)
    if database is None:
        raise LabError(
            f"Expected a local store. Received: {masked(uri)}. Use 'mlflow gc' where its database and artifacts are."
        )
    with opened_store():
        garbage = find_garbage(database, read_rows(database))
        if free:
            # The rows last: what is left of a kill between is found again.
            remove(garbage.paths)
            for path in garbage.paths:
                if path.name == "artifacts" and not any(path.parent.iterdir()):
                    path.parent.rmdir()
            hard_delete(mlflow.get_tracking_uri(), garbage.runs, garbage.models, garbage.experiments)
    return garbage
