"""What may be wrong with a store's database, with its runs and with where their artifacts are; and the repairs."""

import contextlib
import functools
import sqlite3

import mlflow

from cnnlab.errors import LabError, masked
from cnnlab.tracking import run_locks
from cnnlab.tracking.maintenance.findings import Finding, counted, lines
from cnnlab.tracking.maintenance.sqlite_files import BACKUPS, migrate, salvage, state_of
from cnnlab.tracking.maintenance.stored_rows import RUN_ID, folder_of
from cnnlab.tracking.mlflow_internals import move_place
from cnnlab.tracking.pagination import running_runs
from cnnlab.tracking.server_checks import expect_reachable
from cnnlab.tracking.session import opened_store
from cnnlab.tracking.store_location import BESIDE, artifacts_folder, is_server, local_folder
from cnnlab.utils.files import is_locked
from cnnlab.utils.temporary_folders import listed


def database_findings(database) -> list[Finding]:
    """The state of the database."""
    if not database.exists():
        here = sum(bool(RUN_ID.fullmatch(path.name)) for path in listed(artifacts_folder(database)))
        if not here:
            return []
        remedy = f"put the database back ('{database.parent / BACKUPS}' is where cnnlab doctor keeps copies)"
        return [Finding(f"no database at '{database}', but artifacts of {counted(here, 'run')}", remedy)]
    state, reason = state_of(database)
    if state == "good":
        return []
    found = {
        "newer": Finding(
            f"the database is one of a newer MLflow than {mlflow.__version__} (schema {reason})",
            "use that version: pip install -U mlflow",
        ),
        "foreign": Finding(
            f"'{database}' is no database of MLflow's: {reason}", "correct MLFLOW_TRACKING_URI, or move the file away"
        ),
        "older": Finding(
            f"the database is one of an older MLflow (schema {reason})",
            f"back it up, and bring it up to date for MLflow {mlflow.__version__}",
            fix=functools.partial(_migrated, database),
        ),
        "half": Finding(
            f"the database is half-migrated: {reason}",
            "back it up, and end the migration",
            fix=functools.partial(_migrated, database),
        ),
        "broken": Finding(
            f"the database is broken: {reason}",
            "move it aside, and put every row that can still be read into a new one",
            fix=functools.partial(_salvaged, database),
        ),
    }
    return [found[state]]


def _migrated(database):
    _expect_idle(database)
    return f"brought it up to date; the database as it was is '{migrate(database)}'"


def _salvaged(database):
    _expect_idle(database)
    aside, rows, last = salvage(database)
    if not rows:
        instead = f"the backup '{last}', without what was written after it," if last else "a new, empty database"
        return f"nothing in it could be read; {instead} is in its place, the broken one is '{aside}'"
    saved = ", ".join(counted(rows.get(table, 0), what) for table, what in (("runs", "run"), ("metrics", "metric")))
    return f"saved {saved} and {counted(sum(rows.values()), 'row')} in all; the broken one is '{aside}'"


def _expect_idle(database):
    """Raises: LabError: a run is at work with the database."""
    live = [lock.stem[:8] for lock in listed(database.parent / "running") if is_locked(lock)]
    if live:
        raise LabError(f"Expected no run at work in this store. Received: {', '.join(live)}. Wait for it, or end it.")


def run_findings(database, rows) -> list[Finding]:
    """Runs left RUNNING by processes that are gone, and their locks."""
    locks = listed(database.parent / "running")
    stale = [
        run
        for run in rows.runs.values()
        if run.status == "RUNNING" and run.stage == "active" and run.is_ours
        if run_locks.is_gone(run.run_id, run.tags, database.parent)
    ]
    running = {run.run_id for run in rows.runs.values() if run.status == "RUNNING" and run.stage == "active"}
    idle = [lock for lock in locks if lock.suffix == ".lock" and lock.stem not in running and not is_locked(lock)]
    found = []
    if stale:
        what = f"{counted(len(stale), 'run')} left RUNNING by a process that is gone"
        found.append(Finding(what, "mark as KILLED", lines(stale), _open_store, in_database=True))
    if idle:
        what = counted(len(idle), "lock of a process that is gone", "locks of processes that are gone")
        found.append(Finding(what, "remove", lines(idle), functools.partial(_unlock, idle)))
    return found


def _open_store():
    """Every opening of a store ends such runs and changes such places."""
    with opened_store():
        pass


def _unlock(locks):
    for lock in locks:
        run_locks.remove_lock(lock)


def place_findings(database, rows) -> list[Finding]:
    """Artifact places that depend on where the store was."""
    found = []
    if places := rows.full_places:
        what = f"the database has full paths ({', '.join(places)}), as earlier versions wrote them"
        remedy = "name the places beside the database instead, so that the store may be moved and copied"
        found.append(Finding(what, remedy, fix=_open_store, in_database=True))
    if moved := _moved_places(database, rows):
        what = f"{counted(len(moved), 'artifact place')} of where the store was before, with the same runs here"
        items = (f"{there} is {here}" for there, here in moved.items())
        repair = functools.partial(_move_places, database, moved)
        found.append(Finding(what, "name the places here", lines(items), repair, in_database=True))
    return found


def with_present_places(database, rows):
    """The rows as they are once `place_findings` are repaired."""
    return rows.moved({**dict.fromkeys(rows.full_places, BESIDE), **_moved_places(database, rows)})


def _moved_places(database, rows):
    """The places of experiments that were in this store's folder when it was elsewhere, to those that they are now."""
    places = [place for place in rows.experiments.values() if place not in rows.full_places]
    return {place: here.as_uri() for place in places if (here := _moved_to(place, database, rows))}


def _moved_to(place, database, rows):
    """The folder in this store's folder with the runs of a place outside of it, or `None`."""
    there, home = folder_of(place, database), database.parent
    runs = [run.run_id for run in rows.runs.values() if run.place.startswith(place.rstrip("/") + "/")]
    if there is None or there.resolve().is_relative_to(home):
        return None
    for length in range(1, len(there.parts)):
        here = home.joinpath(*there.parts[-length:])
        if any((here / run_id).is_dir() for run_id in runs):
            return here
    return None


def _move_places(database, places):
    with contextlib.closing(sqlite3.connect(database, timeout=30)) as connection, connection:
        for there, here in places.items():
            move_place(connection, there, here)


def statuses(uri):
    """A function from a run's id to its status on a server; `None` for a run that is deleted or gone."""
    client = mlflow.MlflowClient(uri)

    def status_of(run_id):
        try:
            run = client.get_run(run_id)
        except mlflow.MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return run.info.status if run.info.lifecycle_stage == "active" else None

    return status_of


def server_findings(uri) -> list[Finding]:
    """Of a store that is no file of this machine: runs that this machine's processes left RUNNING."""
    if is_server(uri):
        expect_reachable(uri)
    client = mlflow.MlflowClient(uri)
    stale = [
        run for run in running_runs(client) if run_locks.is_gone(run.info.run_id, run.data.tags, local_folder(uri))
    ]
    unseen = "its database, artifacts and models, and runs of other machines, were not looked at"
    found = [Finding(f"the store is {masked(uri)}: {unseen}", "look there", is_fault=False)]
    if stale:
        what = f"{counted(len(stale), 'run')} left RUNNING by a process that is gone"
        names = (f"{run.info.run_id[:8]} {run.info.run_name}" for run in stale)
        found.append(Finding(what, "mark as KILLED", lines(names), _open_store))
    return found
