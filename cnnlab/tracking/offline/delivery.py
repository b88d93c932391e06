"""Deliver spooled runs to their server: from a thread while a job records, and by `cnnlab sync` later."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

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


class Sender:
    """Copies an entry to its server in a thread, again and again, until it is finished.

    The entry is removed then, unless it stays for a job that is resumed another day.

    Args:
        entry: of the spool.
        uri: the server's address, with the password.
        reason: why the server does not take runs now; `None` if it does.
        stays: whether the entry stays.
    """

    def __init__(self, entry: spool.Entry, uri: str, reason: str | None, stays: bool) -> None:
        self.entry: spool.Entry = entry
        self.uri: str = uri
        self.reason: str | None = reason
        self.stays: bool = stays
        self.is_over: threading.Event = threading.Event()
        self.unwanted: threading.Event = threading.Event()
        self.server_ids: dict[str, str] | None = None
        self.thread: threading.Thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        if self.reason:
            self._warn(self.reason)
        self.thread.start()

    def finish(self) -> dict[str, str]:
        """Wait a little for what is on its way.

        Returns:
            The server's ids of runs and addresses of models by the recorded ones. If the server does not have all of
            them, nothing, with a warning.
        """
        self.is_over.set()
        try:
            self.thread.join(PATIENCE)
        finally:
            self.unwanted.set()
            if self.server_ids is None:
                _warn_undelivered(self.entry, self.reason or "no answer")
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


def _warn_undelivered(entry: spool.Entry, reason: str) -> None:
    names = ", ".join(f"{run['name']} ({run['run_id'][:8]})" for run in spool.runs_of(entry))
    log.warning(
        f"not yet all delivered to {entry.server}: {names}. Received: {reason}. It is on the disk, in "
        f"'{entry.folder}'; 'cnnlab sync' delivers it."
    )


@dataclass(frozen=True)
class Delivered:
    """What became of an entry."""

    server: str  # its address, without the password
    runs: list[dict[str, str]]  # of the entry; see `spool.runs_of`
    ids: dict[str, str]  # the server's ids of runs and addresses of models by the recorded ones
    error: str | None = None  # why it was not delivered, in words


def sync(to: str | None = None) -> Iterator[Delivered]:
    """Deliver all that waits in the spool, one entry after another.

    Args:
        to: the address of another server than the one that it was recorded for.
    """
    for entry in spool.entries():
        if to is None and spool.is_whole(entry):
            continue
        with spool.held(entry.folder, timeout=1) as is_free:
            if not entry.folder.exists():  # delivered meanwhile
                continue
            runs, uri = spool.runs_of(entry), to or _address(entry)
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


def _address(entry: spool.Entry) -> str:
    """Return the address of an entry's server, with the user and password of the variable where that names it."""
    given = mlflow_store.address()
    return given if without_password(given).rstrip("/") == entry.server.rstrip("/") else entry.server
