"""Find artifacts without a database row, rows without artifacts, models without a run, and unsent runs."""

from __future__ import annotations

import functools
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import mlflow

from cnnlab.evaluation.predictions import PREDICTIONS_FILE
from cnnlab.tracking.maintenance.findings import Finding, counted, findings_of, in_mb, leftovers
from cnnlab.tracking.maintenance.sqlite_files import state_of
from cnnlab.tracking.maintenance.store_checks import database_findings
from cnnlab.tracking.maintenance.stored_rows import MODEL_ID, RUN_ID, LoggedModel, Run, StoredRows, folder_of
from cnnlab.tracking.offline import spool
from cnnlab.tracking.session import opened_store
from cnnlab.tracking.store_database import FRESH
from cnnlab.tracking.store_location import STORE_FOLDER, artifacts_folder
from cnnlab.tracking.tag_names import TAG
from cnnlab.utils.files import is_locked
from cnnlab.utils.temporary_folders import listed, size_of

LOST = "lost"  # the folder in the store's folder for files that the database does not know
MISSING = TAG + "lost"  # the tag of a run that names its missing files


def artifact_folders(database: Path) -> list[Path]:
    """List the folders of runs and models in a store. List them before the rows are read: a run that starts meanwhile
    has its row first.
    """
    home = artifacts_folder(database)
    runs = [path for path in listed(home) if RUN_ID.fullmatch(path.name)]
    return [*runs, *(path for path in listed(home / "models") if MODEL_ID.fullmatch(path.name))]


def unknown_files(database: Path, rows: StoredRows, folders: list[Path]) -> list[Finding]:
    """Check for artifacts of runs and models that the database does not know, among `artifact_folders`, and for those
    that were set aside as such and that it knows now, since it was put back from a copy.
    """
    home, found = database.parent, []
    for kind, pattern, known in (("run", RUN_ID, rows.runs), ("model", MODEL_ID, rows.models)):
        unknown = [path for path in folders if pattern.fullmatch(path.name) and path.name not in known]
        size, number = in_mb(sum(map(size_of, unknown))), counted(len(unknown), kind)
        what = f"artifacts of {number} that the database does not know ({size})"
        remedy = f"move them to '{home / LOST}', since they cannot be made again"
        found += findings_of(unknown, what, remedy, functools.partial(set_aside, home), [one.name for one in unknown])
    aside = [path for folder in ("artifacts", "artifacts/models") for path in listed(home / LOST / folder)]
    places = {path: home / path.relative_to(home / LOST) for path in aside if path.name in {*rows.runs, *rows.models}}
    places = {path: place for path, place in places.items() if not place.exists()}
    what = f"{counted(len(places), 'folder')} in '{home / LOST}' that the database knows"
    return [*found, *findings_of(places, what, "put back", _move, [path.name for path in places])]


def set_aside(home: Path, paths: Iterable[Path]) -> None:
    """Move files and folders to the folder of lost ones in a store's folder, beside what lies there already."""
    targets = {path: home / LOST / path.relative_to(home) for path in paths}
    _move({path: to.with_name(f"{to.name}-{time.time_ns()}") if to.exists() else to for path, to in targets.items()})


def _move(places: dict[Path, Path]) -> None:
    for path, target in places.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)


def missing_files(database: Path, rows: StoredRows) -> list[Finding]:
    """Check for finished runs without artifacts that they had, and for registered versions without their model."""
    lost, again = {}, {}
    for run in rows.runs.values():
        if run.is_ours and run.stage == "active" and run.status == "FINISHED":
            missing, tagged = ", ".join(_missing(run, rows, database)), run.tags.get(MISSING, "")
            if missing != tagged:
                (lost if missing else again)[run] = missing
    named = []
    for run, missing in lost.items():
        versions = ", ".join(map(str, rows.needed_by(run_id=run.run_id)))
        named.append(f"{run}: {missing}" + f" ({versions})" * bool(versions))
    what = f"{counted(len(lost), 'finished run')} without artifacts that it had"
    remedy = f"say so in the run's tag {MISSING}; if you have a copy of the files, put it back"
    found = findings_of(lost, what, remedy, _tag_missing, named, in_database=True)
    what = f"{counted(len(again), 'run')} said to be without artifacts, which are there"
    found += findings_of(again, what, f"take the tag {MISSING} away", _tag_missing, in_database=True)
    versions = [v for v in rows.versions if v.model_id and not _has_files(v.model_id, rows, database)]
    remedy = "put the files back from a copy, or delete the version in 'cnnlab ui' and register another run"
    return found + findings_of(versions, f"{counted(len(versions), 'registered version')} without its model", remedy)


def _missing(run: Run, rows: StoredRows, database: Path) -> Iterator[str]:
    """Name the files that a run had and has no more; none where they are not on this disk."""
    folder = folder_of(run.place, database)
    if folder is None:
        return
    models = [model for model in rows.models.values() if model.run_id == run.run_id and model.is_whole]
    if not listed(folder):
        yield "all artifacts"
    elif models:  # a run with a model is read back from these
        yield from (name for name in ("recipe.json", PREDICTIONS_FILE) if not (folder / name).exists())
    if any(model.stage == "active" and not _has_files(model.model_id, rows, database) for model in models):
        yield "its model"


def _has_files(model_id: str, rows: StoredRows, database: Path) -> bool:
    """Return whether a logged model has files. Where they are not on this disk, it has."""
    if model_id not in rows.models:
        return False
    folder = folder_of(rows.models[model_id].place, database)
    return folder is None or bool(listed(folder))


def _tag_missing(missing: dict[Run, str]) -> None:
    with opened_store():
        client = mlflow.MlflowClient()
        for run, names in missing.items():
            if names:
                client.set_tag(run.run_id, MISSING, names)
            else:
                client.delete_tag(run.run_id, MISSING)


def useless_models(rows: StoredRows) -> list[Finding]:
    """Check for logged models that no registered version needs, and whose run does not exist, as `mlflow gc` leaves
    them behind, or that a kill left half-written.
    """
    models = [m for m in rows.models.values() if m.stage == "active" and m.run_id]
    models = [m for m in models if not rows.needed_by(model_id=m.model_id)]
    without_run = [m for m in models if m.run_id not in rows.runs]
    ended = {run.run_id for run in rows.runs.values() if run.is_ours and run.status != "RUNNING"}
    partial = [m for m in models if m.run_id in ended and not m.is_whole]
    found, remedy = [], "mark as deleted, for 'cnnlab gc' to free"
    for some, why in ((without_run, "of runs that are gone"), (partial, "half-written when their runs were stopped")):
        what = f"{counted(len(some), 'model')} {why}, which no registered version needs"
        items = [f"{model.model_id} of run {str(model.run_id)[:8]}" for model in some]
        found += findings_of(some, what, remedy, _delete, items, in_database=True)
    return found


def _delete(models: list[LoggedModel]) -> None:
    with opened_store():
        for model in models:
            mlflow.MlflowClient().delete_logged_model(model.model_id)


def undelivered() -> list[Finding]:
    """Check for runs that a server does not have yet, and that no live process records, for broken databases among
    them, and for results that no store took.
    """
    found, runs = [], []
    for entry in spool.waiting():
        if entry.database.exists() and state_of(entry.database)[0] == "broken":
            found += database_findings(entry.database)
        elif entry.database.exists():
            runs += [f"{run['run_id'][:8]} {run['name']}, for {entry.server}" for run in spool.runs_of(entry)]
    what = f"{counted(len(runs), 'run')} in '{spool.spool_folder()}', not yet delivered"
    found += findings_of(runs, what, "deliver with 'cnnlab sync'")
    for place in (Path(STORE_FOLDER, "undelivered").resolve(), Path(tempfile.gettempdir(), "cnnlab-undelivered")):
        kept = [path.name for path in listed(place) if path.is_dir()]
        what = f"results of {counted(len(kept), 'run')} in '{place}', which no store would take"
        found += findings_of(kept, what, "take model and results from there, then remove it")
    return found


def unfinished_databases(database: Path) -> list[Finding]:
    """Check for databases that a first start or a repair was making when it was killed."""
    folders = [path for path in listed(database.parent) if path.name.startswith(FRESH) and path.is_dir()]
    # Those of earlier versions, which had no name of their own.
    folders += [path for path in database.parent.glob("tmp*") if (path / database.name).exists()]
    if not folders or is_locked(f"{database}.lock"):
        return []
    return leftovers(folders, counted(len(folders), "unfinished database"))
