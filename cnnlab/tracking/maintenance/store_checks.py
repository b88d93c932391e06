"""Check the database of a local store or a server, and find runs marked RUNNING whose process has ended."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import mlflow

from cnnlab.errors import LabError, masked
from cnnlab.tracking import run_locks
from cnnlab.tracking.maintenance.findings import Finding, counted, findings_of
from cnnlab.tracking.maintenance.sqlite_files import BACKUPS, migrate, recover, state_of
from cnnlab.tracking.maintenance.stored_rows import RUN_ID, StoredRows
from cnnlab.tracking.pagination import running_runs
from cnnlab.tracking.server_checks import expect_reachable
from cnnlab.tracking.session import opened_store
from cnnlab.tracking.store_location import artifacts_folder, is_server, local_folder
from cnnlab.utils.files import is_locked
from cnnlab.utils.temporary_folders import listed


def database_findings(database: Path) -> list[Finding]:
    """Check the state of a store's database."""
    if not database.exists():
        runs = sum(bool(RUN_ID.fullmatch(path.name)) for path in listed(artifacts_folder(database)))
        if not runs:
            return []
        remedy = f"put the database back ('{database.parent / BACKUPS}' is where cnnlab doctor keeps copies)"
        return [Finding(f"no database at '{database}', but artifacts of {counted(runs, 'run')}", remedy)]
    state, reason = state_of(database)
    repair = functools.partial(_repaired, database, recover if state == "broken" else migrate)
    findings = {
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
            fix=repair,
        ),
        "half": Finding(f"the database is half-migrated: {reason}", "back it up, and end the migration", fix=repair),
        "broken": Finding(
            f"the database is broken: {reason}",
            "move it aside, and put what the program sqlite3 can read of it, or else the last backup, in its place",
            fix=repair,
        ),
    }
    return [findings[state]] if state in findings else []


def _repaired(database: Path, repair: Callable[[Path], str]) -> str:
    live = [lock.stem[:8] for lock in listed(database.parent / "running") if is_locked(lock)]
    if live:
        raise LabError(f"Expected no run at work in this store. Received: {', '.join(live)}. Wait for it, or end it.")
    return repair(database)


def run_findings(database: Path, rows: StoredRows) -> list[Finding]:
    """Check a local store for runs that processes which have ended left RUNNING."""
    running = [run for run in rows.runs.values() if run.is_ours and (run.status, run.stage) == ("RUNNING", "active")]
    stale = [run for run in running if run_locks.has_ended(run.run_id, run.tags, database.parent)]
    return _stale_findings(stale, in_database=True)


def _stale_findings(runs: list, in_database: bool = False) -> list[Finding]:
    what = f"{counted(len(runs), 'run')} left RUNNING by a process that is gone"
    return findings_of(runs, what, "mark as KILLED", _end_stale_runs, in_database=in_database)


@opened_store()  # which ends such runs
def _end_stale_runs(runs: list) -> None:
    pass


def server_findings(uri: str) -> list[Finding]:
    """Check a store that is not a file on this machine for runs that processes of this machine left RUNNING."""
    if is_server(uri):
        expect_reachable(uri)
    running = running_runs(mlflow.MlflowClient(uri))
    stale = [run for run in running if run_locks.has_ended(run.info.run_id, run.data.tags, local_folder(uri))]
    unseen = "its database, artifacts and models, and runs of other machines, were not looked at"
    note = Finding(f"the store is {masked(uri)}: {unseen}", "look there", is_fault=False)
    return [note, *_stale_findings([f"{run.info.run_id[:8]} {run.info.run_name}" for run in stale])]
