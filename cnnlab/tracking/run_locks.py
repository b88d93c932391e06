"""Find out whether the process of a run still lives: by a lock beside the store, else by the process's number."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import mlflow
import psutil
from filelock import FileLock, Timeout

from cnnlab.errors import LabError
from cnnlab.tracking.store_location import local_folder
from cnnlab.tracking.tag_names import TAG
from cnnlab.utils.files import is_locked


def process_tags() -> dict[str, str]:
    """Return the tags that say which process of which machine a run belongs to."""
    # With the start time, since process ids are used again.
    process = f"{os.getpid()}-{psutil.Process().create_time():.0f}"
    return {"process": f"{socket.gethostname()}/{process}", "processes": _processes()}


def _processes() -> str:
    """Identify what numbers of processes are of: this start of the system, and the container."""
    with contextlib.suppress(OSError):
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{os.readlink('/proc/self/ns/pid')}"
    return f"{psutil.boot_time():.0f}"


def _is_alive(process: str) -> bool:
    pid, _, started = process.partition("-")
    with contextlib.suppress(psutil.Error, ValueError):
        return abs(psutil.Process(int(pid)).create_time() - float(started)) < 2
    return False


def has_ended(run_id: str, tags: Mapping[str, str], folder: Path) -> bool:
    """Return whether the process of a run has ended; where this machine cannot know that, it has not.

    `tags` are the run's, and `folder` is the store's, as `local_folder` has it.
    """
    lock = lock_file(folder, run_id)
    if lock.exists():
        return not is_locked(lock)
    host, _, process = tags.get(TAG + "process", "").rpartition("/")
    # Another container of this machine may have our host's name and other processes under the same numbers.
    same = tags.get(TAG + "processes", _processes()) == _processes()
    return host == socket.gethostname() and same and not _is_alive(process)


def remove_lock(lock: Path) -> None:
    """Remove the file of a lock, if there is one, unless a process holds it by now."""
    if not lock.exists():
        return
    with contextlib.suppress(Timeout, OSError, NotImplementedError), FileLock(lock, timeout=0):
        lock.unlink(missing_ok=True)


@contextlib.contextmanager
def alive(run_id: str) -> Iterator[None]:
    """Hold a lock beside the local store inside the block; it ends with the process, wherever that runs.

    Raises:
        LabError: another process works on the run.
    """
    file = lock_file(local_folder(mlflow.get_tracking_uri()), run_id)
    with contextlib.ExitStack() as held:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(file, timeout=0))
        except Timeout:
            raise LabError(
                f"Expected run {run_id[:8]} to be idle. Received: another process works on it. Wait for it, or end it."
            ) from None
        except (OSError, NotImplementedError):  # there are file systems without locks
            pass
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)


def lock_file(folder: Path, run_id: str) -> Path:
    """Return the file of a run's lock, below the store's folder."""
    return folder / "running" / f"{run_id}.lock"
