"""The outbox: what is recorded for a server lies on this disk until the server has all of it. One folder a job:

    mlruns/outbox/20261125-174102-3f9a/
      entry.json                     for which server, and below which of its runs
      mlflow.db, artifacts/          a local store like `mlruns`, with the job's run and those below it
      delivered-<server>.jsonl       what that server has, a line each, added when it has it
      lock                           held as long as a process records or delivers

Light, and without MLflow: this is what else wants to know of the outbox.
"""

import contextlib
import json
import os
import secrets
import shutil
import sqlite3
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from cnnlab.errors import LabError, masked
from cnnlab.tracking.store_location import STORE_FOLDER, sqlite_uri
from cnnlab.utils.text import short_hash
from cnnlab.utils.user_cache import cache_folder

DESCRIPTION, GONE = "entry.json", "done-"
DAYS = 14  # that an entry is kept for a job that goes on, as a checkpoint is


@dataclass(frozen=True)
class Entry:
    """A job: its `folder`; the `server` that it is for, without the password in its address; and of that server the
    ids of a run of the user's that it goes below (`parent`) and of the experiment, where they are given. A job that
    `goes_on` where it was interrupted (a search) has its entry again.
    """

    folder: Path
    server: str
    parent: str | None = None
    experiment_id: str | None = None
    goes_on: bool = False

    @property
    def database(self) -> Path:
        return self.folder / "mlflow.db"

    @property
    def uri(self) -> str:
        return sqlite_uri(self.database)


def outbox_folder() -> Path:
    """Where the entries are: beside the local store of the working folder."""
    return Path(STORE_FOLDER, "outbox").resolve()


@contextlib.contextmanager
def new_entry(server, parent=None, experiment_id=None, name=None, again=None):
    """Make an entry, without a database yet, and have it for oneself inside.

    Args:
        server, parent, experiment_id: as `Entry` has them.
        name: of the entry. One of that name for the same server is opened again, unless another process has it.
        again: an entry to open again.

    Raises:
        LabError: another process has the one to open again.
        OSError: the folder cannot be written.
    """
    fresh = outbox_folder() / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    folder = again.folder if again else outbox_folder() / f"{name}-{_hash(server)}" if name else fresh
    with contextlib.ExitStack() as stack:
        (folder / "artifacts").mkdir(parents=True, exist_ok=True)
        if not stack.enter_context(held(folder, timeout=1)):
            if again:
                raise LabError(f"Expected '{folder}' to be idle. Received: another process has it. Wait for its end.")
            (fresh / "artifacts").mkdir(parents=True)  # an equal job runs already
            stack.enter_context(held(fresh))
            folder = fresh
        entry = Entry(folder, public(server), parent, experiment_id, goes_on=bool(name or (again and again.goes_on)))
        facts = {key: value for key, value in asdict(entry).items() if key != "folder"}
        unfinished = folder / "entry.new"
        _write(unfinished, json.dumps(facts))
        os.replace(unfinished, folder / DESCRIPTION)  # an entry once it says what it is
        yield entry


def entries() -> list[Entry]:
    """All entries, oldest first; rests of delivered ones are removed."""
    for rest in outbox_folder().glob(f"{GONE}*"):
        shutil.rmtree(rest, ignore_errors=True)
    found = []
    for file in sorted(outbox_folder().glob(f"*/{DESCRIPTION}")):
        with contextlib.suppress(OSError, ValueError, TypeError):  # delivered meanwhile
            found.append(Entry(file.parent, **json.loads(file.read_text())))
    return found


def runs_of(entry) -> list[dict]:
    """The runs of an entry, oldest first: `run_id` (under which it is recorded), `name`, `status`."""
    if not entry.database.exists():
        return []
    with contextlib.closing(sqlite3.connect(f"{entry.database.as_uri()}?mode=ro", uri=True, timeout=30)) as connection:
        rows = connection.execute(
            "SELECT run_uuid, name, status FROM runs WHERE lifecycle_stage = 'active' ORDER BY start_time"
        ).fetchall()
    return [dict(zip(("run_id", "name", "status"), row, strict=True)) for row in rows]


def waiting() -> list[Entry]:
    """The entries with something to deliver that no living process records or delivers: for `cnnlab sync`."""
    found = []
    for entry in entries():
        with held(entry.folder) as free:
            if free and not is_whole(entry):
                found.append(entry)
    return found


def is_whole(entry) -> bool:
    """Whether the server has all of an entry that stays for a job that goes on another day."""
    last = [fact["whole"] for fact in delivered(entry, entry.server) if "whole" in fact][-1:]
    return last == [True]


def undelivered() -> str | None:
    """A sentence about what waits to be delivered, or `None`."""
    found = waiting()
    runs = sum(len(runs_of(entry)) for entry in found)
    if not runs:
        return None
    servers = ", ".join(dict.fromkeys(entry.server for entry in found))
    several = runs > 1
    return (
        f"{runs} {'runs are' if several else 'run is'} not yet delivered to {servers}: 'cnnlab sync' delivers "
        f"{'them' if several else 'it'} from '{outbox_folder()}'."
    )


def entry_with(run_id) -> Entry | None:
    """The entry that records a run, given by its id or the first characters of it."""
    return next((e for e in entries() if any(run["run_id"].startswith(run_id) for run in runs_of(e))), None)


def recorded_run(run_id) -> tuple[Entry, str] | None:
    """The entry that has a run, given by the first characters of its id here or on the server, and its id here."""
    for entry in entries():
        ids = [(run["run_id"], run["run_id"]) for run in runs_of(entry)]
        ids += [(fact["there"], fact["run"]) for fact in delivered(entry, entry.server) if "run" in fact]
        for known, here in ids:
            if known.startswith(run_id):
                return entry, here
    return None


def sweep() -> None:
    """Remove entries that stayed for a job that did not go on: delivered, and older than `DAYS`."""
    for entry in entries():
        if is_whole(entry) and time.time() - _journal(entry, entry.server).stat().st_mtime > DAYS * 86400:
            with held(entry.folder) as free:
                if free:
                    discard(entry)


@contextlib.contextmanager
def held(folder, timeout=0):
    """Have an entry for oneself inside, as long as this process lives; yields whether nobody else has it."""
    with contextlib.ExitStack() as stack:
        free = True
        try:
            stack.enter_context(FileLock(folder / "lock", timeout=timeout))
        except Timeout:
            free = False
        except (OSError, NotImplementedError):  # there are file systems without locks
            free = folder.is_dir()
        yield free


def delivered(entry, server) -> list[dict]:
    """What was noted of an entry as delivered to a server, oldest first."""
    facts = []
    with contextlib.suppress(FileNotFoundError), open(_journal(entry, server), encoding="utf-8") as lines:
        for line in lines:
            with contextlib.suppress(ValueError):  # half a line, of a process that was killed
                facts.append(json.loads(line))
    return facts


def note(entry, server, **fact) -> None:
    """Note something as delivered, for good."""
    _write(_journal(entry, server), f"\n{json.dumps(fact)}\n", mode="a")  # after half a line, on one of its own


_recording = []


def recording() -> Entry | None:
    """The entry that this process records into now, if any."""
    return _recording[-1] if _recording else None


@contextlib.contextmanager
def recording_into(entry):
    """Inside, this process records into an entry."""
    _recording.append(entry)
    try:
        yield
    finally:
        _recording.remove(entry)


def discard(entry) -> None:
    """Remove an entry, at once to whoever looks."""
    gone = entry.folder.with_name(f"{GONE}{entry.folder.name}")
    os.replace(entry.folder, gone)
    shutil.rmtree(gone, ignore_errors=True)


def fsync_tree(folder) -> None:
    """Bring all files of a folder to the disk, past the caches of the system."""
    for path in [*Path(folder).rglob("*"), Path(folder)]:
        if hasattr(os, "O_DIRECTORY") or path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def public(server) -> str:
    """A server's address without the user and password in it."""
    return masked(server).replace("***@", "")


def reached_before(server) -> bool:
    """Whether this user has ever reached a server at this address."""
    return _reached(server).exists()


def remember_reached(server) -> None:
    """Note that there is a server at this address."""
    with contextlib.suppress(OSError):  # the cache is somebody else's
        _reached(server).parent.mkdir(parents=True, exist_ok=True)
        _reached(server).touch()


def _reached(server):
    return cache_folder("servers") / _hash(server)


def _journal(entry, server):
    return entry.folder / f"delivered-{_hash(server)}.jsonl"


def _hash(server):
    return short_hash(public(server).rstrip("/"))


def _write(file, text, mode="w"):
    with open(file, mode, encoding="utf-8") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
