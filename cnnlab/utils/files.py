"""Write files atomically, and check whether a file's lock is held."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

UNFINISHED = ".part"


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Yield a file to write, which replaces `path` at the end of the block, when it is complete and on the disk.

    A kill, an error or a full disk leaves the file that was there before.
    """
    path = Path(path)
    with tempfile.NamedTemporaryFile(
        mode, dir=path.parent, prefix=f"{path.stem}-", suffix=UNFINISHED, delete=False
    ) as part:
        try:
            yield part
            part.flush()
            os.fsync(part.fileno())
            share(part.name)
            os.replace(part.name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(part.name)
            raise
    with contextlib.suppress(OSError):  # the renaming is written to the disk too; not every system can do that
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def share(path: str | Path) -> None:
    """Give a temporary file the permissions of an ordinary one, so that a group can share its folder."""
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(path, 0o666 & ~umask)


def is_locked(lock: str | Path) -> bool:
    """Return whether a process holds the lock of an existing file, or that cannot be found out."""
    try:
        with FileLock(lock, timeout=0):
            return False
    except (Timeout, OSError, NotImplementedError):
        return True
