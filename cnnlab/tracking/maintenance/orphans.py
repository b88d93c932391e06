"""What lies in a store's folder without a row in the database, and rows without their files; and the repairs."""

import functools
import os
import tempfile
import time
from pathlib import Path

import mlflow

from cnnlab.evaluation.predictions import PREDICTIONS_FILE
from cnnlab.tracking.checkpoint_files import stored_checkpoints, unfinished_checkpoints, why_stray
from cnnlab.tracking.maintenance.findings import Finding, counted, in_mb, lines
from cnnlab.tracking.maintenance.sqlite_files import FRESH, state_of
from cnnlab.tracking.maintenance.store_checks import database_findings
from cnnlab.tracking.maintenance.stored_rows import MODEL_ID, RUN_ID, folder_of
from cnnlab.tracking.offline import spool
from cnnlab.tracking.session import opened_store
from cnnlab.tracking.store_location import STORE_FOLDER, artifacts_folder
from cnnlab.tracking.tag_names import TAG
from cnnlab.utils.files import is_locked
from cnnlab.utils.temporary_folders import listed, remove, size_of

LOST = "lost"  # in the store's folder: what the database does not know
MISSING = TAG + "lost"  # on a run: which of its files are gone


def artifact_folders(database) -> list:
    """The folders of runs and models in a store. To be seen before the rows are read: a run that starts meanwhile has
    its row first.
    """
    home = artifacts_folder(database)
    runs = [path for path in listed(home) if RUN_ID.fullmatch(path.name)]
    return [*runs, *(path for path in listed(home / "models") if MODEL_ID.fullmatch(path.name))]


def unknown_files(database, rows, folders) -> list[Finding]:
    """Artifacts of runs and models that the database does not know.

    Args:
        folders: as `artifact_folders` gives them.
    """
    found = []
    for known, what in ((rows.runs, "run"), (rows.models, "model")):
        pattern = RUN_ID if what == "run" else MODEL_ID
        unknown = [path for path in folders if pattern.fullmatch(path.name) and path.name not in known]
        if unknown:
            found.append(_to_set_aside(database.parent, unknown, f"artifacts of {counted(len(unknown), what)}"))
    return found


def _to_set_aside(home, paths, what):
    return Finding(
        f"{what} that the database does not know ({in_mb(sum(map(size_of, paths)))})",
        f"move them to '{home / LOST}', since they cannot be made again",
        lines(path.name for path in paths),
        functools.partial(set_aside, home, paths),
    )


def found_again(database, rows) -> list[Finding]:
    """What was set aside, and is known to the database by now: it was put back from a copy."""
    home = database.parent
    aside = [path for folder in ("artifacts", "artifacts/models") for path in listed(home / LOST / folder)]
    known = {path: home / path.relative_to(home / LOST) for path in aside if path.name in {*rows.runs, *rows.models}}
    known = {path: place for path, place in known.items() if not place.exists()}
    if not known:
        return []
    what = f"{counted(len(known), 'folder')} in '{home / LOST}' that the database knows"
    return [Finding(what, "put back", lines(path.name for path in known), functools.partial(_put_back, known))]


def _put_back(places):
    for path, place in places.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, place)


def set_aside(home, paths) -> None:
    """Move what nothing knows of to the store's folder of lost things; what lies there already stays."""
    for path in paths:
        target = home / LOST / path.relative_to(home)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target if not target.exists() else target.with_name(f"{target.name}-{time.time_ns()}"))


def missing_files(database, rows) -> list[Finding]:
    """Finished runs without artifacts that they had, and registered versions without their model."""
    lost, again = {}, {}
    for run in rows.runs.values():
        if run.is_ours and run.stage == "active" and run.status == "FINISHED":
            missing, noted = ", ".join(_missing(run, rows, database)), run.tags.get(MISSING, "")
            if missing != noted:
                (lost if missing else again)[run] = missing
    found = []
    if lost:
        what = f"{counted(len(lost), 'finished run')} without artifacts that it had"
        remedy = f"say so in the run's tag {MISSING}; if you have a copy of the files, put it back"
        items = [f"{run}: {missing}{_needed(rows.needed_by(run_id=run.run_id))}" for run, missing in lost.items()]
        found.append(Finding(what, remedy, lines(items), functools.partial(_note_missing, lost), in_database=True))
    if again:
        what = f"{counted(len(again), 'run')} said to be without artifacts, which are there"
        remedy = f"take the tag {MISSING} away"
        found.append(Finding(what, remedy, lines(again), functools.partial(_note_missing, again), in_database=True))
    if versions := [v for v in rows.versions if v.model_id and not _has_model(v.model_id, rows, database)]:
        what = f"{counted(len(versions), 'registered version')} without its model"
        remedy = "put the files back from a copy, or delete the version in 'cnnlab ui' and register another run"
        found.append(Finding(what, remedy, lines(versions)))
    return found


def _needed(versions):
    return f" ({', '.join(map(str, versions))})" if versions else ""


def _missing(run, rows, database):
    """The names of a run's files that are gone; none where they are not on this disk."""
    folder = folder_of(run.place, database)
    if folder is None:
        return
    models = [model for model in rows.models.values() if model.run_id == run.run_id and model.is_whole]
    if not listed(folder):
        yield "all artifacts"
    elif models:  # what reads a run with a model back wants these
        yield from (name for name in ("recipe.json", PREDICTIONS_FILE) if not (folder / name).exists())
    if any(model.stage == "active" and not _has_model(model.model_id, rows, database) for model in models):
        yield "its model"


def _has_model(model_id, rows, database):
    """Whether a logged model has files; where they are not on this disk, it has."""
    if model_id not in rows.models:
        return False
    folder = folder_of(rows.models[model_id].place, database)
    return folder is None or bool(listed(folder))


def _note_missing(missing):
    with opened_store():
        client = mlflow.MlflowClient()
        for run, names in missing.items():
            if names:
                client.set_tag(run.run_id, MISSING, names)
            else:
                client.delete_tag(run.run_id, MISSING)


def useless_models(rows) -> list[Finding]:
    """Logged models whose run is gone, which `mlflow gc` leaves behind, and such as a kill left half-written; unless a
    registered version needs them.
    """
    models = [m for m in rows.models.values() if m.stage == "active" and m.run_id]
    models = [m for m in models if not rows.needed_by(model_id=m.model_id)]
    orphans = [m for m in models if m.run_id not in rows.runs]
    ended = {run.run_id for run in rows.runs.values() if run.is_ours and run.status != "RUNNING"}
    partial = [m for m in models if m.run_id in ended and not m.is_whole]
    found, remedy = [], "mark as deleted, for 'cnnlab gc' to free"
    for some, why in ((orphans, "of runs that are gone"), (partial, "half-written when their runs were stopped")):
        if some:
            what = f"{counted(len(some), 'model')} {why}, which no registered version needs"
            items = (f"{model.model_id} of run {model.run_id[:8]}" for model in some)
            found.append(Finding(what, remedy, lines(items), functools.partial(_to_bin, some), in_database=True))
    return found


def _to_bin(models):
    with opened_store():
        for model in models:
            mlflow.MlflowClient().delete_logged_model(model.model_id)


def held_by_deleted(database, rows) -> list[Finding]:
    """What deleted runs and models hold: no fault, since they can be restored."""
    runs = [run for run in rows.runs.values() if run.stage == "deleted"]
    gone = {run.run_id for run in runs}
    models = [model for model in rows.models.values() if model.stage == "deleted" or model.run_id in gone]
    if not runs and not models:
        return []
    folders = [folder for one in (*runs, *models) if (folder := folder_of(one.place, database))]
    size = in_mb(sum(map(size_of, folders)))
    what = f"{counted(len(runs), 'deleted run')} and {counted(len(models), 'deleted model')} hold {size}"
    return [Finding(what, "'cnnlab gc' frees them, 'mlflow runs restore' brings a run back", is_fault=False)]


def stray_checkpoints(home, status_of) -> list[Finding]:
    """Checkpoints that no training will go on from: what the next training would sweep away.

    Args:
        home: the store's folder.
        status_of: a run's id to its status; `None` for one that is deleted or gone.
    """
    folder = home / "checkpoints"
    stray = {one: why for one in stored_checkpoints(folder) if (why := why_stray(one, status_of(one.run_id)))}
    partial, found = unfinished_checkpoints(folder), []
    if stray:
        what = (
            f"{counted(len(stray), 'checkpoint')} that no training goes on from ({in_mb(sum(c.bytes for c in stray))})"
        )
        items = (f"of run {one.run_id[:8]}, {why}" for one, why in stray.items())
        repair = functools.partial(remove, [one.file for one in stray])
        found.append(Finding(what, "remove, as the next training does", lines(items), repair))
    if partial:
        what = counted(len(partial), "half-written checkpoint")
        found.append(Finding(what, "remove", lines(partial), functools.partial(remove, partial)))
    return found


def undelivered() -> list[Finding]:
    """What a server has not got yet, and entries of the outbox that cannot be read; not what a live process records."""
    found = []
    entries = spool.waiting()
    for entry in entries:
        if entry.database.exists() and state_of(entry.database)[0] == "broken":
            found += database_findings(entry.database)
    readable = [entry for entry in entries if entry.database.exists() and state_of(entry.database)[0] != "broken"]
    runs = [
        f"{run['run_id'][:8]} {run['name']}, for {entry.server}" for entry in readable for run in spool.runs_of(entry)
    ]
    if runs:
        what = f"{counted(len(runs), 'run')} in '{spool.spool_folder()}', not yet delivered"
        found.append(Finding(what, "deliver with 'cnnlab sync'", lines(runs)))
    folders = [path for path in listed(spool.spool_folder()) if (path / "mlflow.db").exists()]
    unknown = [path for path in folders if not (path / spool.DESCRIPTION).exists() and not _is_recorded(path)]
    if unknown:
        what = counted(len(unknown), "folder") + " of the outbox that does not say for which server it is"
        remedy = f"none is known: its runs are in the store mlflow.db there ({spool.DESCRIPTION} is missing)"
        found.append(Finding(what, remedy, lines(unknown)))
    for place in (Path(STORE_FOLDER, "undelivered").resolve(), Path(tempfile.gettempdir(), "cnnlab-undelivered")):
        if kept := [path for path in listed(place) if path.is_dir()]:
            what = f"results of {counted(len(kept), 'run')} in '{place}', which no store would take"
            found.append(
                Finding(what, "take model and results from there, then remove it", lines(p.name for p in kept))
            )
    return found


def _is_recorded(entry):
    return (entry / "lock").exists() and is_locked(entry / "lock")


def unfinished_databases(database) -> list[Finding]:
    """What a first start, or a repair, that was killed has left."""
    folders = [path for path in listed(database.parent) if path.name.startswith((FRESH, "tmp")) and path.is_dir()]
    # Those of earlier versions have no name of their own.
    folders = [path for path in folders if path.name.startswith(FRESH) or (path / database.name).exists()]
    if not folders or is_locked(f"{database}.lock"):
        return []
    what = counted(len(folders), "unfinished database")
    return [Finding(what, "remove", lines(path.name for path in folders), functools.partial(remove, folders))]
