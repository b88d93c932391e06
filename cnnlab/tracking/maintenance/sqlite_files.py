"""Find out the state of a local store's SQLite database, back it up, bring it up to date, and recover a broken one."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Literal

from filelock import FileLock
from sqlalchemy.exc import SQLAlchemyError

from cnnlab.errors import LabError, first_line
from cnnlab.tracking.maintenance.findings import counted
from cnnlab.tracking.mlflow_internals import (
    KNOWN_TABLES,
    is_known_schema,
    latest_schema,
    make_database,
    upgrade_database,
)
from cnnlab.tracking.store_database import FRESH, copy_database, readable, replacing, revision_of, tables_of
from cnnlab.utils.files import share

State = Literal["good", "broken", "foreign", "newer", "half", "older"]

BACKUPS = "backups"  # the folder of copies and of broken databases, in the store's folder
MOVED = "_alembic_tmp_"  # what a migration calls its copy of a table until it renames it


def state_of(database: Path) -> tuple[State, str]:
    """Examine a database without changing it, and return its state and the reason for it.

    A "foreign" one is not MLflow's, a "newer" one is of a newer MLflow, and a "half" one was left half-migrated.
    """
    try:
        with readable(database) as connection:
            report = "\n".join(row[0] for row in connection.execute("PRAGMA integrity_check(3)"))
            tables, revision = tables_of(connection), revision_of(connection)
    except sqlite3.Error as error:
        return "broken", first_line(error)
    damage = "" if report == "ok" else first_line(report.removeprefix("*** in database main ***\n"))
    moved = sorted(table for table in tables if table.startswith(MOVED))
    missing = sorted(KNOWN_TABLES - tables)[:5]
    is_latest = revision == latest_schema()
    faults: list[tuple[bool, State, str]] = [
        (not tables, "broken", "it is empty"),
        (bool(damage), "broken", damage),
        (not tables & {"experiments", "runs"}, "foreign", f"it has the tables {', '.join(sorted(tables)[:5])}"),
        (bool(revision) and not is_known_schema(revision), "newer", revision),
        (bool(moved), "half", f"{', '.join(moved)} are left"),
        (is_latest and bool(missing), "half", f"without the tables {', '.join(missing)}"),
        (not is_latest, "older", revision or "one without a number"),
    ]
    for applies, state, reason in faults:
        if applies:
            return state, reason
    return "good", ""


def backup(database: Path) -> Path:
    """Copy a database into the store's folder of backups and return the copy."""
    copy = _new_name(database)
    copy_database(database, copy)
    share(copy)
    return copy


def migrate(database: Path) -> str:
    """Bring an older or half-migrated database up to date, on a copy that then takes its place.

    Returns:
        What was done, and where a backup of the database as it was is, in words.

    Raises:
        LabError: the migration does not end well. The database is as it was.
    """
    kept = backup(database)
    with FileLock(f"{database}.lock"), tempfile.TemporaryDirectory(dir=database.parent, prefix=FRESH) as folder:
        fresh = Path(folder, database.name)
        shutil.copyfile(kept, fresh)
        _rename_moved_tables(fresh)
        try:
            upgrade_database(fresh)
        except SQLAlchemyError as error:
            state, reason = "half", first_line(error)
        else:
            state, reason = state_of(fresh)
        if state != "good":
            raise LabError(
                f"Expected the migration to end well. Received: {reason}. The database is as it was: put one from "
                f"'{kept.parent}' in its place."
            )
        copy_database(fresh, database)  # into the same file, which a UI may have open
    return f"brought it up to date; the database as it was is '{kept}'"


def _rename_moved_tables(database: Path) -> None:
    """Do the last step of a migration that was interrupted: a table's changed copy gets the name of the table."""
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        tables = tables_of(connection)
        for copy in sorted(table for table in tables if table.startswith(MOVED)):
            # A migration drops the old table before it renames the copy. While both are there, the copy may be partial.
            name = copy.removeprefix(MOVED)
            connection.execute(f'DROP TABLE "{copy}"' if name in tables else f'ALTER TABLE "{copy}" RENAME TO "{name}"')


def recover(database: Path) -> str:
    """Replace a broken database by what the program sqlite3 reads of it, or by the newest backup where sqlite3 is not
    installed or reads too little, or by a new, empty database where there is no backup; return what was done, in words.
    """
    with FileLock(f"{database}.lock"), replacing(database) as fresh:
        copies = sorted(database.parent.glob(f"{BACKUPS}/{database.stem}-*.db"), reverse=True)
        if runs := _recovered_runs(database, fresh):
            outcome = f"what sqlite3 could read of it is in its place, with {counted(runs, 'run')}"
        elif last := next((copy for copy in copies if state_of(copy)[0] == "good"), None):
            shutil.copyfile(last, fresh)
            outcome = f"the backup '{last}', without what was written after it, is in its place"
        else:
            make_database(fresh)
            outcome = "no run in it could be read, and a new, empty database is in its place"
        aside = _new_name(database, ".broken")
        for file in _files_of(database):
            os.replace(file, aside.with_name(aside.name + file.name.removeprefix(database.name)))
    return f"{outcome}; the broken one is '{aside}'"


def _recovered_runs(database: Path, target: Path) -> int:
    """Let the program sqlite3 read what it can of a database into a new one. Return the number of runs in it, 0 where
    that fails.
    """
    program = shutil.which("sqlite3")
    if program is None:
        return 0
    source = target.with_name("source.db")
    for file in _files_of(database):
        shutil.copyfile(file, source.with_name(source.name + file.name.removeprefix(database.name)))
    for command in (".recover", ".dump"):  # the first reads more, and not every build of sqlite3 has it
        read = subprocess.run([program, "-batch", str(source), command], capture_output=True, check=False).stdout
        # What a dump with errors ends with, so that nobody takes it for a whole one.
        statements = read.replace(b"ROLLBACK; -- due to errors", b"COMMIT;")
        subprocess.run([program, "-batch", str(target)], input=statements, capture_output=True, check=False)
        if state_of(target)[0] == "good":
            with readable(target) as connection:
                return connection.execute("SELECT count(*) FROM runs").fetchone()[0]
        target.unlink(missing_ok=True)
    return 0


def _files_of(database: Path) -> list[Path]:
    """Return the files that a database is made of, with its journals."""
    return [file for end in ("", "-journal", "-wal", "-shm") if (file := Path(f"{database}{end}")).exists()]


def _new_name(database: Path, kind: str = "") -> Path:
    folder = database.parent / BACKUPS
    folder.mkdir(exist_ok=True)
    return folder / f"{database.stem}-{datetime.now():%Y%m%d-%H%M%S-%f}{kind}.db"
