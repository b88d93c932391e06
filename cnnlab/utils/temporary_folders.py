"""Temporary folders that are locked while their process lives, so that those of killed processes can be found."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

Purpose = Literal["read", "model", "files"]  # a database to read from, a model's files, artifacts to be copied
PURPOSES: tuple[Purpose, ...] = ("read", "model", "files")
UNTOUCHED = 3600  # seconds; a folder without a lock may be just made, or of a system without locks


@contextlib.contextmanager
def private_folder(purpose: Purpose) -> Iterator[Path]:
    """Yield a temporary folder that only this user may read, which is removed at the end of the block."""
    with tempfile.TemporaryDirectory(prefix=f"cnnlab-{purpose}-") as folder, _locked(folder):
        yield Path(folder).resolve()


def leftover_folders() -> list[Path]:
    """Return the temporary folders of this user that no process uses any more."""
    found = (path for purpose in PURPOSES for path in Path(tempfile.gettempdir()).glob(f"cnnlab-{purpose}-*"))
    return sorted(path for path in found if _is_leftover(path))


def _is_leftover(path: Path) -> bool:
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
def _locked(folder: str | Path) -> Iterator[bool]:
    """Hold the lock of a folder, which the system releases when this process ends, and yield whether it was free."""
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


def remove(paths: Iterable[Path]) -> None:
    """Remove files, and folders with everything in them."""
    for path in paths:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def listed(folder: Path) -> list[Path]:
    """Return the sorted paths in a folder; none where there is no such folder."""
    return sorted(folder.iterdir()) if folder.is_dir() else []


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder; 0 where there is neither."""
    files = path.rglob("*") if path.is_dir() else [path] * os.path.lexists(path)
    return sum(file.lstat().st_size for file in files if not file.is_dir() or file.is_symlink())
