"""Read, copy and replace the SQLite database of a local store without MLflow, which would change what it opens."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cnnlab.utils.files import share

FRESH = "fresh-"  # what the names of folders begin with in which a database is made before it is renamed into place


@contextlib.contextmanager
def readable(database: Path) -> Iterator[sqlite3.Connection]:
    """Connect to a database that is there, to read it."""
    address = f"{database.as_uri()}?mode=rw"  # so that an interrupted transaction is rolled back; it makes no file
    with contextlib.closing(sqlite3.connect(address, uri=True, timeout=20)) as connection:
        yield connection


def tables_of(connection: sqlite3.Connection) -> set[str]:
    """Return the names of a database's tables."""
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def revision_of(connection: sqlite3.Connection) -> str:
    """Return the revision of a database's schema, "" where it has no tables yet or does not name one."""
    if "alembic_version" not in tables_of(connection):
        return ""
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return row[0] if row else ""


def schema_of(database: Path) -> str:
    """Return `revision_of` a database file."""
    with readable(database) as connection:
        return revision_of(connection)


def copy_database(source: Path, target: Path) -> None:
    """Copy a database into another file: whole, also while others write. What the target held is overwritten."""
    with readable(source) as old, contextlib.closing(sqlite3.connect(target, timeout=30)) as new:
        old.backup(new)


@contextlib.contextmanager
def replacing(database: Path) -> Iterator[Path]:
    """Give a path for a new database, which takes the place of the old one, if any, at the end of the block.

    The store's lock must be held around the block, as whoever opens the store holds it.
    """
    with tempfile.TemporaryDirectory(dir=database.parent, prefix=FRESH) as folder:
        fresh = Path(folder, database.name)
        yield fresh
        share(fresh)
        os.replace(fresh, database)
