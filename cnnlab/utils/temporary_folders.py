"""Folders for files on their way, which say by a lock whether their process lives: a kill leaves them behind."""

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path

PURPOSES = ("read", "model", "files")  # a database to read from, a model's files, artifacts on their way
UNTOUCHED = 3600  # seconds; a folder without a lock may be just made, or of a system without locks


@contextlib.contextmanager
def private_folder(purpose):
    """A temporary folder that only this user may look into; it and all in it is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix=f"cnnlab-{purpose}-") as folder, _locked(folder):
        yield Path(folder).resolve()


def leftover_folders() -> list[Path]:
    """Temporary folders of this user's that no process uses any more."""
    found = (path for purpose in PURPOSES for path in Path(tempfile.gettempdir()).glob(f"cnnlab-{purpose}-*"))
    return sorted(path for path in found if _is_leftover(path))


def _is_leftover(path):
    try:
        about = path.lstat()
        ours = path.is_dir() and not path.is_symlink() and (not hasattr(os, "getuid") or about.st_uid == os.getuid())
        if not ours or time.time() - about.st_mtime < UNTOUCHED:
            return False
        with _locked(path) as free:
            return free
    except OSError:
        return False


@contextlib.contextmanager
def _locked(folder):
    """Hold the lock of a folder, which ends with this process, whatever ends it; yields whether it was free."""
    try:
        import fcntl
    except ImportError:  # a system without such locks
        yield True
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            yield not isinstance(error, BlockingIOError)
            return
        yield True
    finally:
        os.close(opened)


def remove(paths) -> None:
    """Remove files and folders with all that is in them."""
    for path in paths:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def listed(folder) -> list[Path]:
    """What is in a folder, sorted; nothing where there is no such folder."""
    return sorted(folder.iterdir()) if folder.is_dir() else []


def size_of(path) -> int:
    """Bytes of a file, or of all files in a folder; none where there is neither."""
    files = path.rglob("*") if path.is_dir() else [path] * os.path.lexists(path)
    return sum(file.lstat().st_size for file in files if not file.is_dir() or file.is_symlink())
