"""Create, list, lock and remove the folders of the spool: runs wait there until their server has them.

Each job has one:

Each job has one:

mlruns/outbox/20261125-174102-3f9a/
  entry.json                     for which server, and below which of its runs
  mlflow.db, artifacts/          a local store like `mlruns`, with the job's run and those below it
  delivered-<server>.jsonl       what that server has, a line each, added when it has it
  lock                           held as long as a process records or delivers
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cnnlab.errors import LabError
from cnnlab.tracking.server_checks import server_key, without_password
from cnnlab.tracking.store_location import STORE_FOLDER, sqlite_uri

DESCRIPTION = "entry.json"
REMOVED = "done-"  # what the names of folders begin with that are being removed
DAYS = 14  # that an entry is kept for a job that is resumed, as a checkpoint is


@dataclass(frozen=True)
class Entry:
    """The runs of one job."""

    folder: Path  # that holds them
    server: str  # the address that they are for, without the password in it
    parent: str | None = None  # id of the user's own run on the server that the job's runs go below
    experiment_id: str | None = None  # of the server's experiment that they go into, where one is given
    goes_on: bool = False  # whether the job, when it is resumed after an interruption, records into this entry again

    @property
    def database(self) -> Path:
        return self.folder / "mlflow.db"

    @property
    def uri(self) -> str:
        return sqlite_uri(self.database)


def spool_folder() -> Path:
    """Return the folder of all entries: beside the local store of the working folder."""
    return Path(STORE_FOLDER, "outbox").resolve()


@contextlib.contextmanager
def new_entry(
    server: str,
    parent: str | None = None,
    experiment_id: str | None = None,
    name: str | None = None,
    again: Entry | None = None,
) -> Iterator[Entry]:
    """Make an entry, without a database yet, and hold its lock inside the block; `again` is one to open again.

    One of this name for the same server is opened again too, unless another process holds it.

    Raises:
        LabError: another process holds the one to open again.
        OSError: the folder cannot be written.
    """
    fresh = spool_folder() / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    folder = again.folder if again else spool_folder() / f"{name}-{server_key(server)}" if name else fresh
    with contextlib.ExitStack() as stack:
        (folder / "artifacts").mkdir(parents=True, exist_ok=True)
        if not stack.enter_context(held(folder, timeout=1)):
            if again:
                raise LabError(f"Expected '{folder}' to be idle. Received: another process has it. Wait for its end.")
            (fresh / "artifacts").mkdir(parents=True)  # an equal job runs already
            stack.enter_context(held(fresh))
            folder = fresh
        is_resumable = bool(name or (again and again.goes_on))
        entry = Entry(folder, without_password(server), parent, experiment_id, goes_on=is_resumable)
        facts = {key: value for key, value in asdict(entry).items() if key != "folder"}
        unfinished = folder / "entry.new"
        _write(unfinished, json.dumps(facts))
        os.replace(unfinished, folder / DESCRIPTION)  # a folder without its description is no entry
        yield entry


def entries() -> list[Entry]:
    """Return all entries, oldest first; remove what is left of delivered ones."""
    for folder in spool_folder().glob(f"{REMOVED}*"):
        shutil.rmtree(folder, ignore_errors=True)
    found = []
    for file in sorted(spool_folder().glob(f"*/{DESCRIPTION}")):
        with contextlib.suppress(OSError, ValueError, TypeError):  # delivered meanwhile
            found.append(Entry(file.parent, **json.loads(file.read_text())))
    return found


def runs_of(entry: Entry) -> list[dict[str, str]]:
    """Return the runs of an entry, oldest first: `run_id` (under which it is recorded), `name`, `status`."""
    if not entry.database.exists():
        return []
    with contextlib.closing(sqlite3.connect(f"{entry.database.as_uri()}?mode=ro", uri=True, timeout=30)) as connection:
        rows = connection.execute(
            "SELECT run_uuid, name, status FROM runs WHERE lifecycle_stage = 'active' ORDER BY start_time"
        ).fetchall()
    return [dict(zip(("run_id", "name", "status"), row, strict=True)) for row in rows]


def waiting() -> list[Entry]:
    """Return the entries that `cnnlab sync` would deliver: not whole on the server, and held by no living process."""
    found = []
    for entry in entries():
        with held(entry.folder) as is_free:
            if is_free and not is_whole(entry):
                found.append(entry)
    return found


def is_whole(entry: Entry) -> bool:
    """Return whether the server has all of an entry that stays for a job that is resumed another day."""
    last = [fact["whole"] for fact in delivered(entry, entry.server) if "whole" in fact][-1:]
    return last == [True]


def undelivered() -> str | None:
    """Return a sentence about what waits to be delivered, or `None`."""
    found = waiting()
    runs = sum(len(runs_of(entry)) for entry in found)
    if not runs:
        return None
    servers = ", ".join(dict.fromkeys(entry.server for entry in found))
    several = runs > 1
    return (
        f"{runs} {'runs are' if several else 'run is'} not yet delivered to {servers}: 'cnnlab sync' delivers "
        f"{'them' if several else 'it'} from '{spool_folder()}'."
    )


def recorded_id(entry: Entry, run_id: str) -> str | None:
    """Return the id under which an entry records a run, given by the first characters of that id or the server's."""
    ids = [(run["run_id"], run["run_id"]) for run in runs_of(entry)]
    ids += [(fact["there"], fact["run"]) for fact in delivered(entry, entry.server) if "run" in fact]
    return next((recorded for known, recorded in ids if known.startswith(run_id)), None)


def sweep() -> None:
    """Remove entries that stayed for a job that was not resumed: delivered, and older than `DAYS`."""
    for entry in entries():
        if is_whole(entry) and time.time() - _journal(entry, entry.server).stat().st_mtime > DAYS * 86400:
            with held(entry.folder) as is_free:
                if is_free:
                    remove(entry)


@contextlib.contextmanager
def held(folder: Path, timeout: float = 0) -> Iterator[bool]:
    """Hold the lock of an entry inside the block, as long as this process lives; yield whether it was free."""
    with contextlib.ExitStack() as stack:
        is_free = True
        try:
            stack.enter_context(FileLock(folder / "lock", timeout=timeout))
        except Timeout:
            is_free = False
        except (OSError, NotImplementedError):  # there are file systems without locks
            is_free = folder.is_dir()
        yield is_free


def delivered(entry: Entry, server: str) -> list[dict[str, Any]]:
    """Return what was noted of an entry as delivered to a server, oldest first."""
    facts = []
    with contextlib.suppress(FileNotFoundError), open(_journal(entry, server), encoding="utf-8") as lines:
        for line in lines:
            with contextlib.suppress(ValueError):  # half a line, of a process that was killed
                facts.append(json.loads(line))
    return facts


def note(entry: Entry, server: str, **fact: Any) -> None:
    """Note something as delivered, for good."""
    _write(_journal(entry, server), f"\n{json.dumps(fact)}\n", mode="a")  # after half a line, on one of its own


def remove(entry: Entry) -> None:
    """Remove an entry, in one step for other processes."""
    removed = entry.folder.with_name(f"{REMOVED}{entry.folder.name}")
    os.replace(entry.folder, removed)
    shutil.rmtree(removed, ignore_errors=True)


def fsync_tree(folder: Path) -> None:
    """Write all files of a folder to the disk, past the caches of the system."""
    for path in [*Path(folder).rglob("*"), Path(folder)]:
        if hasattr(os, "O_DIRECTORY") or path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _journal(entry: Entry, server: str) -> Path:
    return entry.folder / f"delivered-{server_key(server)}.jsonl"


def _write(file: Path, text: str, mode: str = "w") -> None:
    with open(file, mode, encoding="utf-8") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
