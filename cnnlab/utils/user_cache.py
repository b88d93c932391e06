"""Manage the folder of cached pictures and frozen features: find it, list entries, clear it, keep it below a size.

The folder is `$CNNLAB_CACHE` or `~/.cache/cnnlab`. Above `$CNNLAB_CACHE_GB` gigabytes, the entries that were unused for
longest are removed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from cnnlab.errors import ArgumentError
from cnnlab.utils.environment import read_variable
from cnnlab.utils.files import is_locked
from cnnlab.utils.temporary_folders import remove, size_of

T = TypeVar("T")
FOLDER_VARIABLE = "CNNLAB_CACHE"
LIMIT_VARIABLE = "CNNLAB_CACHE_GB"
DEFAULT_LIMIT_GB = 20
KINDS = ("features", "pictures")
UNFINISHED = "unfinished-"


def cache_folder(kind: str = "") -> Path:
    """Return `$CNNLAB_CACHE`, else `cnnlab` in the user's cache folder; with a kind, the folder of that kind in it."""
    if given := read_variable(FOLDER_VARIABLE):
        return Path(given, kind)
    if given := read_variable("XDG_CACHE_HOME"):
        return Path(given, "cnnlab", kind)
    try:
        return Path.home() / ".cache" / "cnnlab" / kind
    except RuntimeError:  # a user without a home
        return Path(tempfile.gettempdir(), f"cnnlab-{os.getuid()}", kind)


def entries() -> list[dict[str, Any]]:
    """List the entries of the cache, the last used first: `key`, `kind`, `path`, `shape`, `bytes`, `used`, `what`."""
    found: list[dict[str, Any]] = []
    for kind in KINDS:
        for path in cache_folder(kind).glob("*.npy"):
            # Skipped where it is removed or damaged meanwhile, or somebody else's.
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
                about = json.loads(path.with_suffix(".json").read_text())
                size = sum(part.stat().st_size for part in _parts(path))
                what = about.get("what") or f"up to layer {about['front']}"
                entry = {"key": path.stem, "kind": kind, "path": path, "shape": about["shape"]}
                found.append({**entry, "bytes": size, "used": path.stat().st_mtime, "what": what})
    return sorted(found, key=lambda entry: -entry["used"])


def leftovers() -> list[Path]:
    """Return what killed processes have left: unfinished files, and files of an entry whose others are missing.

    None are returned of a kind that a process is working with. Unfinished decoded pictures are kept for a day, as the
    next pass resumes them.
    """
    found = []
    for kind in KINDS:
        folder = cache_folder(kind)
        unfinished = [path for path in folder.glob(f"{UNFINISHED}*") if kind == "features" or _is_old(path)]
        parts = [path for end in ("npy", "npz", "json") for path in folder.glob(f"*.{end}")]
        parts = [one for one in parts if not (one.with_suffix(".npy").exists() and one.with_suffix(".json").exists())]
        if (unfinished or parts) and not any(map(is_locked, folder.glob("*.lock"))):
            found += [*unfinished, *parts]
    return sorted(found)


def _is_old(path: Path) -> bool:
    files = [path, *path.iterdir()]
    return time.time() - max(file.stat().st_mtime for file in files) > 86400


def clear() -> int:
    """Remove every stored file, and return the bytes that were freed."""
    freed = 0
    for folder in map(cache_folder, KINDS):
        # Those that are unfinished are of a process that was killed.
        for pattern in (f"{UNFINISHED}*", "*.npy", "*.npz", "*.json", "*.lock"):
            paths = list(folder.glob(pattern))
            freed += sum(map(size_of, paths))
            remove(paths)
    return freed


def load_or_make(path: Path, load: Callable[[], T | None], make: Callable[[], T]) -> T:
    """Load an entry, or make and store it where there is none; while one process makes it, others wait for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        stored = load()
        if stored is None:
            stored = make()
            remove_oldest(keep=path)
        return stored


def limit_bytes() -> float:
    """Return how many bytes may be stored; raise `ArgumentError` where `$CNNLAB_CACHE_GB` is no number."""
    given = read_variable(LIMIT_VARIABLE) or DEFAULT_LIMIT_GB
    try:
        return float(given) * 1e9
    except ValueError as error:
        raise ArgumentError(f"Expected {LIMIT_VARIABLE} to be a number of gigabytes. Received: '{given}'.") from error


def remove_oldest(keep: Path) -> None:
    """Remove the entries that were unused for longest, except `keep`, until the rest is below `$CNNLAB_CACHE_GB`."""
    limit, stored = limit_bytes(), entries()
    total = sum(entry["bytes"] for entry in stored)
    for entry in reversed(stored):
        if total <= limit:
            break
        if entry["path"] != keep:
            for part in _parts(entry["path"]):
                part.unlink(missing_ok=True)
            total -= entry["bytes"]


def reserve(file: str | Path) -> None:
    """Allocate a file's space, or raise `OSError`, as writing to a mapped file on a full disk kills the process."""
    size = Path(file).stat().st_size
    if hasattr(os, "posix_fallocate"):
        with open(file, "r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, size)
    elif shutil.disk_usage(Path(file).parent).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _parts(path: Path) -> list[Path]:
    return [part for ending in (".npy", ".npz", ".json") if (part := path.with_suffix(ending)).exists()]
