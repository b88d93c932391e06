"""Send the runs that wait on local disk to their server: in a thread during a job, or by `cnnlab sync`."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import mlflow

from cnnlab.errors import LabError, masked
from cnnlab.tracking import mlflow_store
from cnnlab.tracking.mlflow_internals import short_reason
from cnnlab.tracking.offline import spool
from cnnlab.tracking.offline.run_copy import Transfer, Unwanted
from cnnlab.tracking.server_checks import expect_reachable, without_password
from cnnlab.utils.log import log

INTERVAL = 2  # seconds between two searches for what is new
PATIENCE = 20  # seconds that a command waits at its end for what is still on its way
LONGEST_PAUSE = 30  # seconds between two attempts


@dataclass
class Sender:
    """Copies an entry to its server in a thread, again and again, until it is finished.

    The entry is removed then, unless it stays for a job that is resumed another day.
    """

    entry: spool.Entry
    uri: str  # the server's address, with the password
    reason: str | None  # why the server does not take runs now; `None` if it does
    stays: bool  # whether the entry stays
    server_ids: dict[str, str] | None = None  # once the server has all of the entry
    is_over: threading.Event = field(default_factory=threading.Event)
    unwanted: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        if self.reason:
            self._warn(self.reason)
        self.thread.start()

    def finish(self) -> dict[str, str]:
        """Wait a little for what is on its way, and return the server's ids by the recorded ones.

        If the server does not have all of them, nothing is returned, with a warning.
        """
        self.is_over.set()
        try:
            self.thread.join(PATIENCE)
        finally:
            self.unwanted.set()
            if self.server_ids is None:
                names = ", ".join(f"{run['name']} ({run['run_id'][:8]})" for run in spool.runs_of(self.entry))
                log.warning(
                    f"not yet all delivered to {self.entry.server}: {names}. Received: {self.reason or 'no answer'}. "
                    f"It is on the disk, in '{self.entry.folder}'; 'cnnlab sync' delivers it."
                )
        return self.server_ids or {}

    def _run(self) -> None:
        transfer, attempts = None, 0
        while not self.unwanted.is_set():
            finishing = self.is_over.is_set()
            try:
                transfer = transfer or transfer_of(self.entry, self.uri, lambda: not self.unwanted.is_set())
                whole = transfer.copy(whole=finishing)
            except Unwanted:
                return
            except Exception as error:
                attempts += 1
                if not self.reason:
                    self._warn(short_reason(error))
                self.reason = short_reason(error)
                pause = min(LONGEST_PAUSE, INTERVAL * 2**attempts)
                (self.unwanted if finishing else self.is_over).wait(1 if finishing else pause)
                continue
            if self.reason:
                log.warning("the MLflow server answers again.")
            attempts, self.reason = 0, None
            if finishing and not whole:
                self.reason = "a run that could not be closed, as on a full disk"
                return
            if finishing:
                self.server_ids = transfer.ids
                _remove_or_keep(self.entry, self.uri, self.stays)
                return
            self.is_over.wait(INTERVAL)

    def _warn(self, reason: str) -> None:
        log.warning(
            f"the MLflow server at {masked(self.uri)} does not take the run now ({reason}); it is recorded in "
            f"'{self.entry.folder}', and sent when it does."
        )


def transfer_of(entry: spool.Entry, uri: str, wanted: Callable[[], bool] = lambda: True) -> Transfer:
    """Return the transfer of an entry to its server."""
    return Transfer(
        entry.uri,
        uri,
        spool.delivered(entry, uri),
        lambda **fact: spool.note(entry, uri, **fact),
        parent=entry.parent,
        experiment_id=entry.experiment_id,
        wanted=wanted,
        source_location=f"{socket.gethostname()}:{entry.folder}",
    )


def _remove_or_keep(entry: spool.Entry, uri: str, stays: bool) -> None:
    if stays or any((entry.folder / "checkpoints").glob("*.npz")):  # which an interrupted training is resumed from
        spool.note(entry, uri, whole=True)
    else:
        spool.remove(entry)


@dataclass(frozen=True)
class Delivered:
    """What became of an entry."""

    server: str  # its address, without the password
    runs: list[dict[str, str]]  # of the entry; see `spool.runs_of`
    ids: dict[str, str]  # the server's ids of runs and addresses of models by the recorded ones
    error: str | None = None  # why it was not delivered, in words


def sync(to: str | None = None) -> Iterator[Delivered]:
    """Deliver all that waits in the spool, one entry after another, to its server or the one at the address `to`."""
    for entry in spool.entries():
        if to is None and spool.is_whole(entry):
            continue
        with spool.held(entry.folder, timeout=1) as is_free:
            if not entry.folder.exists():  # delivered meanwhile
                continue
            given = mlflow_store.address()  # with the user and password, where it names the entry's server
            own = given if without_password(given).rstrip("/") == entry.server.rstrip("/") else entry.server
            runs, uri = spool.runs_of(entry), to or own
            ids, error = {}, None
            try:
                if not is_free:
                    raise LabError("another process records or delivers it")
                ids = _deliver(entry, uri)
            except (mlflow.MlflowException, OSError, LabError) as caught:
                error = masked(short_reason(caught))
            yield Delivered(without_password(uri), runs, ids, error)


def _deliver(entry: spool.Entry, uri: str) -> dict[str, str]:
    expect_reachable(uri)
    with mlflow_store.opened_at(entry.uri):  # ends the runs that a killed process left running
        transfer = transfer_of(entry, uri)
        if not transfer.copy(whole=True):
            raise LabError("a run in it that has not ended")
    _remove_or_keep(entry, uri, entry.goes_on)
    return transfer.ids
