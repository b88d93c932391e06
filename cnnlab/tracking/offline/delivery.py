"""Disk first, the server later: with a server as the store, what trains records into the outbox and never waits.

A thread copies what is recorded to the server while the training goes. What is not there at the end, since the server
was away, stays on the disk, and `cnnlab sync` delivers it.
"""

import contextlib
import dataclasses
import os
import socket
import threading
from dataclasses import dataclass

import mlflow

from cnnlab.errors import LabError, masked
from cnnlab.tracking import mlflow_store
from cnnlab.tracking.mlflow_internals import globals_kept, in_short, why_away
from cnnlab.tracking.offline import spool
from cnnlab.tracking.offline.run_copy import Transfer, Unwanted
from cnnlab.tracking.server_checks import expect_reachable
from cnnlab.tracking.store_location import is_server
from cnnlab.tracking.tracked_run import outer_run
from cnnlab.utils.log import log

INTERVAL = 2  # seconds between two looks at what is new
PATIENCE = 20  # seconds that a command waits at its end for what is still on its way
ASKED = 1  # seconds that a server has for its first answer, where it has answered some day before
LONGEST_PAUSE = 30  # seconds between two attempts

_direct = []  # blocks that do without the outbox


@contextlib.contextmanager
def recorded(writes=True, experiment_id=None, directly=False, goes_on=None, again=None):
    """Around what trains: like `store.opened`, but what is for a server is recorded in the outbox, and sent from there.

    Blocks may be nested; the outermost one decides, and delivers.

    Args:
        writes: as in `store.opened`.
        experiment_id: of the store, for the runs inside; see `run.experiment_here`.
        goes_on: a name. A later block of that name has what is recorded in this one, unless it ended without an error.
        again: an entry to record into.
        directly: to the server without the outbox, for what processes on several machines read from each other.

    Yields:
        A dict that is empty inside. Afterwards it has the server's ids of runs and addresses of models, if all of it
        is there, by those that they had inside; see `renamed`.

    Raises:
        LabError: the local store cannot be opened, or nobody ever reached the server.
    """
    uri = mlflow_store.address()
    if spool.recording() or _direct or directly or not is_server(uri):
        with mlflow_store.opened(writes), _directly(directly):
            yield {}
        return
    with contextlib.ExitStack() as at_server:
        at_server.enter_context(globals_kept())
        mlflow.set_tracking_uri(uri)
        mlflow_store.expect_usable_store()
        away = why_away(uri, ASKED)
        entry = at_server.enter_context(spool.new_entry(uri, *_around(away, experiment_id), name=goes_on, again=again))
        spool.sweep()
        if entry.database.exists():
            spool.note(entry, uri, whole=False)
        if not entry.database.exists():
            mlflow_store.copy_empty_store(entry.database)
        if entry.experiment_id:  # as it is called here, also for processes that are started
            at_server.enter_context(_environment("MLFLOW_EXPERIMENT_NAME", entry.experiment_id))
        if said := spool.undelivered():
            log.warning(said)
        sender = Sender(entry, uri, away, stays=goes_on is not None)
        ids = {}
        with spool.recording_into(entry), mlflow_store.opened_at(entry.uri):
            sender.start()
            try:
                yield ids
                sender.stays = False
            finally:
                spool.fsync_tree(entry.folder)
                ids.update(sender.finish())


def renamed(value, ids):
    """A result with the server's ids in place of those that its runs were recorded under."""
    if not ids:
        return value
    if isinstance(value, str):
        return ids.get(value, value)
    if dataclasses.is_dataclass(value):
        changes = {f.name: renamed(getattr(value, f.name), ids) for f in dataclasses.fields(value) if f.init}
        return dataclasses.replace(value, **changes)
    if isinstance(value, list):
        return [renamed(one, ids) for one in value]
    if isinstance(value, dict):
        return {key: renamed(one, ids) for key, one in value.items()}
    return value


def _end(entry, uri, stays):
    if stays or any((entry.folder / "checkpoints").glob("*.npz")):  # what an interrupted training goes on from
        spool.note(entry, uri, whole=True)
    else:
        spool.discard(entry)


@contextlib.contextmanager
def _environment(name, value):
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


@contextlib.contextmanager
def _directly(directly):
    _direct.extend([True] * directly)
    try:
        yield
    finally:
        del _direct[len(_direct) - directly :]


def _around(away, experiment_id):
    """The ids of a run of the user's on the server, and of its experiment, that the job belongs to."""
    named = experiment_id
    if not named and "MLFLOW_EXPERIMENT_NAME" not in os.environ:
        named = os.environ.get("MLFLOW_EXPERIMENT_ID")
    if mlflow.active_run() is None and away:  # of a run that a variable names, the delivery asks
        return os.environ.pop("MLFLOW_RUN_ID", None), named
    run = outer_run()
    os.environ.pop("MLFLOW_RUN_ID", None)  # which MLflow would look for here
    return (run.info.run_id, experiment_id or run.info.experiment_id) if run else (None, named)


class Sender:
    """Copies an entry to its server in a thread, again and again, until it is finished.

    The entry is removed then, unless it `stays` for a job that goes on another day.
    """

    def __init__(self, entry, uri, away, stays):
        self.entry, self.uri, self.away, self.stays = entry, uri, away, stays
        self.over, self.unwanted = threading.Event(), threading.Event()
        self.error, self.ids = None, None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def start(self):
        if self.away:
            self._say(self.away)
        self.thread.start()

    def finish(self) -> dict:
        """Wait a little for what is on its way; the ids there if all of it is, else say that it is not."""
        self.over.set()
        try:
            self.thread.join(PATIENCE)
        finally:
            self.unwanted.set()
            if self.ids is None:
                _say_undelivered(self.entry, self.away or "no answer")
        return self.ids or {}

    def _run(self):
        transfer, attempts = None, 0
        while not self.unwanted.is_set():
            finishing = self.over.is_set()
            try:
                transfer = transfer or transfer_of(self.entry, self.uri, lambda: not self.unwanted.is_set())
                whole = transfer.copy(whole=finishing)
            except Unwanted:
                return
            except Exception as error:
                attempts += 1
                if not self.away:
                    self._say(in_short(error))
                self.away = in_short(error)
                pause = min(LONGEST_PAUSE, INTERVAL * 2**attempts)
                (self.unwanted if finishing else self.over).wait(1 if finishing else pause)
                continue
            if self.away:
                log.warning("the MLflow server answers again.")
            attempts, self.away = 0, None
            if finishing and not whole:
                self.away = "a run that could not be closed here, as on a full disk"
                return
            if finishing:
                self.ids = transfer.ids
                _end(self.entry, self.uri, self.stays)
                return
            self.over.wait(INTERVAL)

    def _say(self, reason):
        log.warning(
            f"the MLflow server at {masked(self.uri)} does not take the run now ({reason}); it is recorded in "
            f"'{self.entry.folder}', and sent when it does."
        )


def transfer_of(entry, uri, wanted=lambda: True) -> Transfer:
    """The way of an entry to its server."""
    return Transfer(
        entry.uri,
        uri,
        spool.delivered(entry, uri),
        lambda **fact: spool.note(entry, uri, **fact),
        parent=entry.parent,
        experiment_id=entry.experiment_id,
        wanted=wanted,
        rest=f"{socket.gethostname()}:{entry.folder}",
    )


def _say_undelivered(entry, reason):
    names = ", ".join(f"{run['name']} ({run['run_id'][:8]})" for run in spool.runs_of(entry))
    log.warning(
        f"not yet all delivered to {entry.server}: {names}. Received: {reason}. It is on the disk, in "
        f"'{entry.folder}'; 'cnnlab sync' delivers it."
    )


@dataclass(frozen=True)
class Delivered:
    """What became of an entry: its `runs` (see `outbox.runs_of`), the `server`'s `ids`, or the `error`, in words."""

    server: str
    runs: list[dict]
    ids: dict
    error: str | None = None


def sync(to=None):
    """Deliver all that waits in the outbox, one entry after another, as a generator of `Delivered`.

    Args:
        to: the address of another server than the one that it was recorded for.
    """
    for entry in spool.entries():
        if to is None and spool.is_whole(entry):
            continue
        with spool.held(entry.folder, timeout=1) as free:
            if not entry.folder.exists():  # delivered meanwhile
                continue
            runs, uri = spool.runs_of(entry), to or _address(entry)
            ids, error = {}, None
            try:
                if not free:
                    raise LabError("another process records or delivers it")
                ids = _deliver(entry, uri)
            except (mlflow.MlflowException, OSError, LabError) as caught:
                error = masked(in_short(caught))
            yield Delivered(spool.public(uri), runs, ids, error)


def _deliver(entry, uri):
    expect_reachable(uri)
    with mlflow_store.opened_at(entry.uri):  # closes what a killed process left running
        transfer = transfer_of(entry, uri)
        if not transfer.copy(whole=True):
            raise LabError("a run in it that has not ended")
    _end(entry, uri, entry.goes_on)
    return transfer.ids


def _address(entry):
    """Where an entry goes: with the user and password of the variable, where that names the same server."""
    given = mlflow_store.address()
    return given if spool.public(given).rstrip("/") == entry.server.rstrip("/") else entry.server
