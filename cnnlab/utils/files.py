"""Files that are there whole or not at all, and the locks of files."""

import contextlib
import os
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

UNFINISHED = ".part"


@contextlib.contextmanager
def atomic_write(path, mode="wb"):
    """Give a file to write; it takes the place of `path` once it is whole and on the disk.

    A kill, an error or a full disk leaves what was there before.
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
    with contextlib.suppress(OSError):  # the renaming too; not every system can
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def share(path) -> None:
    """Give a file that was made as a temporary one the mode of any other, so that a group can share its folder."""
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(path, 0o666 & ~umask)


def is_locked(lock) -> bool:
    """Whether a process holds the lock of a file that is there, or that cannot be known."""
    try:
        with FileLock(lock, timeout=0):
            return False
    except (Timeout, OSError, NotImplementedError):
        return True
