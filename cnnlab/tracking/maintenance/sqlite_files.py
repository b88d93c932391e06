"""The database of a local store: what state it is in, copies of it, and what can be saved of a broken one."""

import contextlib
import os
import shutil
import sqlite3
import tempfile
import time
from pathlib import Path

from filelock import FileLock
from sqlalchemy.exc import SQLAlchemyError

from cnnlab.errors import LabError, first_line
from cnnlab.tracking.mlflow_internals import (
    KNOWN_TABLES,
    is_known_schema,
    latest_schema,
    make_database,
    upgrade_database,
)
from cnnlab.tracking.store_location import BESIDE
from cnnlab.utils.files import share
from cnnlab.utils.temporary_folders import private_folder

BACKUPS = "backups"
MOVED = "_alembic_tmp_"  # what a migration's copy of a table is called until it is done
FRESH = "fresh-"  # folders in which a database is made before it is renamed into place


@contextlib.contextmanager
def readable(database):
    """A connection that writes nothing: to the database, or to a copy where a transaction that was cut short must be
    rolled back before it can be read.

    Raises:
        sqlite3.Error: it cannot be read.
    """
    uri = f"{database.as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=20)) as connection:
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.OperationalError:
            pass
        else:
            yield connection
            return
    with private_folder("read") as folder:
        for file in with_journals(database):
            shutil.copyfile(file, folder / file.name)
        with contextlib.closing(sqlite3.connect(folder / database.name)) as connection:
            yield connection


def with_journals(database) -> list[Path]:
    """The files that a database is made of."""
    return [file for end in ("", "-journal", "-wal", "-shm") if (file := Path(f"{database}{end}")).exists()]


def state_of(database) -> tuple[str, str]:
    """`(state, reason)`: "good", "broken", "foreign" (not MLflow's), "newer", "older" or "half" (migrated)."""
    try:
        with readable(database) as connection:
            said = "\n".join(row[0] for row in connection.execute("PRAGMA integrity_check(3)"))
            said = said.removeprefix("*** in database main ***\n")
            tables = _tables(connection)
            revision = _schema(connection, tables)
    except sqlite3.Error as error:
        return "broken", first_line(error)
    some, moved = sorted(tables)[:5], sorted(table for table in tables if table.startswith(MOVED))
    missing = sorted(KNOWN_TABLES - tables)[:5] if revision == latest_schema() else ()
    reasons = {
        "broken": "it is empty" if not tables else first_line(said) if said != "ok" else "",
        "foreign": "" if tables & {"experiments", "runs"} else f"it has the tables {', '.join(some)}",
        "newer": revision if revision and not is_known_schema(revision) else "",
        "half": f"{', '.join(moved)} are left"
        if moved
        else f"without the tables {', '.join(missing)}"
        if missing
        else "",
        "older": "" if revision == latest_schema() else revision or "one without a number",
    }
    return next(((state, reason) for state, reason in reasons.items() if reason), ("good", ""))


def schema_of(database) -> str:
    """The revision of a database's schema; none where it has no tables yet, or none that say it.

    Raises:
        sqlite3.Error: it cannot be read.
    """
    with readable(database) as connection:
        return _schema(connection, _tables(connection))


def _schema(connection, tables):
    rows = (
        connection.execute("SELECT version_num FROM alembic_version").fetchall() if "alembic_version" in tables else ()
    )
    return rows[0][0] if rows else ""


def backup(database) -> Path:
    """A copy in the store's folder of backups, by sqlite's own means: whole, also while others write."""
    copy = _new_name(database, "")
    _copy(database, copy)
    share(copy)
    return copy


def migrate(database) -> Path:
    """Bring an older or half-migrated database up to date; returns the backup.

    Everything is done on a copy, which then takes the place of the original.

    Raises:
        LabError: it does not come out whole, and is left as it was.
    """
    kept = backup(database)
    with FileLock(f"{database}.lock"), tempfile.TemporaryDirectory(dir=database.parent, prefix=FRESH) as folder:
        fresh = Path(folder, database.name)
        shutil.copyfile(kept, fresh)
        _end_renames(fresh)
        # Some of a migration's steps may be done, so that it cannot be done again, or does not end well.
        with contextlib.suppress(SQLAlchemyError):
            upgrade_database(fresh)
        if state_of(fresh)[0] != "good":
            fresh.unlink()
            make_database(fresh)
            _copy_rows(kept, fresh)
        state, reason = state_of(fresh)
        if state != "good":
            raise LabError(f"Expected the migration to end well. Received: {reason}. The database is as it was.")
        _copy(fresh, database)  # into the same file, since a UI may have it open
    return kept


def _end_renames(database):
    """Do the last step of a migration that was cut short: a table's changed copy gets its name."""
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        tables = _tables(connection)
        for table in sorted(table for table in tables if table.startswith(MOVED)):
            # The old table goes before the copy gets its name: without one, the copy is all there is.
            done = (name := table.removeprefix(MOVED)) not in tables
            connection.execute(f'ALTER TABLE "{table}" RENAME TO "{name}"' if done else f'DROP TABLE "{table}"')


def _copy(source, target):
    with (
        contextlib.closing(sqlite3.connect(source, timeout=30)) as whole,
        contextlib.closing(sqlite3.connect(target, timeout=30)) as connection,
    ):
        whole.backup(connection)


def salvage(database) -> tuple[Path, dict, Path | None]:
    """Replace a broken database by a new one with every row that can still be read.

    Returns:
        `(aside, rows, last)`: where the broken one is now; how many rows of which table were saved; and, where none
        were, the backup that took its place, `None` for a new, empty database.
    """
    last = None
    with FileLock(f"{database}.lock"), replacing(database) as fresh:
        make_database(fresh)
        rows = _copy_rows(_with_empty_pages(database, fresh.parent / "whole.db"), fresh)
        if not rows and (last := _last_backup(database)):
            shutil.copyfile(last, fresh)
        aside = _new_name(database, ".broken")
        for file in with_journals(database):
            os.replace(file, aside.with_name(aside.name + file.name.removeprefix(database.name)))
    return aside, rows, last


@contextlib.contextmanager
def replacing(database):
    """A path for a new database, which takes the place of the old one, if any, at the end of the block.

    Whoever opens the store does so under its lock, which must be held around this.
    """
    with tempfile.TemporaryDirectory(dir=database.parent, prefix=FRESH) as folder:
        fresh = Path(folder, database.name)
        yield fresh
        share(fresh)
        os.replace(fresh, database)


def _tables(connection):
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def _copy_rows(source, target):
    """What can be read of each table that both have, in the columns that both have; returns how many by table."""
    copied = {}
    with contextlib.closing(sqlite3.connect(target)) as connection, connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        try:
            with contextlib.closing(sqlite3.connect(source)) as old:
                old.execute("PRAGMA writable_schema = ON")  # read on, whatever is wrong in the list of tables
                there = _tables(old)
                for table in sorted(_tables(connection) - {"alembic_version"}):
                    name = table if table in there else MOVED + table
                    if name in there and (count := _copy_table(old, name, connection, table)):
                        copied[table] = count
        except sqlite3.Error:  # not even its list of tables can be read
            return {}
        if "runs" in copied:
            _add_lost_experiments(connection)
            _drop_dangling(connection)
    return copied


def _copy_table(old, name, connection, table):
    theirs = [row[1] for row in old.execute(f'PRAGMA table_info("{name}")')]
    columns = [row[1] for row in connection.execute(f'PRAGMA table_info("{table}")') if row[1] in theirs]
    names, places = ", ".join(f'"{column}"' for column in columns), ", ".join("?" * len(columns))
    insert = f'INSERT OR REPLACE INTO "{table}" ({names}) VALUES ({places})'
    read = set()
    # From the other end too where there is a damaged page, so that it loses its own rows only.
    for order in ("ASC", "DESC"):
        try:
            for row in old.execute(f'SELECT rowid, {names} FROM "{name}" ORDER BY rowid {order}'):
                with contextlib.suppress(sqlite3.IntegrityError):  # damaged values
                    connection.execute(insert, row[1:])
                    read.add(row[0])
            break
        except sqlite3.Error:
            continue
    return len(read)


def _add_lost_experiments(connection):
    """Experiments for the runs whose own could not be read."""
    connection.execute(
        "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage) "
        f"SELECT DISTINCT experiment_id, 'recovered-' || experiment_id, '{BESIDE}/', 'active' FROM runs "
        "WHERE experiment_id NOT IN (SELECT experiment_id FROM experiments)"
    )


def _drop_dangling(connection):
    """Remove rows that belong to rows which were lost."""
    while dangling := connection.execute("PRAGMA foreign_key_check").fetchall():
        for table, row, *_ in dangling:
            connection.execute(f'DELETE FROM "{table}" WHERE rowid = ?', (row,))


def _with_empty_pages(database, target):
    """A copy in which pages that were cut off, or are all zeros, hold one row without values: with such a page in the
    list of tables sqlite reads no table at all, nor does it with one that has no row.
    """
    for file in with_journals(database):
        shutil.copyfile(file, f"{target}{file.name.removeprefix(database.name)}")
    with target.open("r+b") as file:
        header = file.read(100)
        if not header.startswith(b"SQLite format 3\0"):
            return target
        size = int.from_bytes(header[16:18])
        size = 65536 if size == 1 else size
        # A leaf of a table (13) with one cell at the page's end: 6 bytes, of row 0, a header of five columns without
        # values. https://www.sqlite.org/fileformat2.html#b_tree_pages
        cell = b"\6\0\6\0\0\0\0\0"
        start = (size - len(cell)).to_bytes(2)
        empty = (b"\r\0\0\0\1" + start + b"\0" + start).ljust(size - len(cell), b"\0") + cell
        there = os.path.getsize(target) // size
        for page in range(1, max(there, int.from_bytes(header[28:32]))):
            file.seek(page * size)
            if page >= there or not any(file.read(size)):
                file.seek(page * size)
                file.write(empty)
    return target


def _last_backup(database):
    """The newest copy that is whole and of this MLflow's schema, or `None`."""
    copies = sorted(database.parent.glob(f"{BACKUPS}/{database.stem}-*.db"), reverse=True)
    return next((copy for copy in copies if state_of(copy)[0] == "good"), None)


def _new_name(database, kind):
    folder = database.parent / BACKUPS
    folder.mkdir(exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    names = (folder / f"{database.stem}-{stamp}{more}{kind}.db" for more in ("", *(f"-{i}" for i in range(1, 1000))))
    return next(name for name in names if not name.exists())
