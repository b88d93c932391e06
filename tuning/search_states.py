"""Find saved searches that are damaged or incomplete, and leftover half-written files, for `cnnlab doctor`."""

import functools
import json
from pathlib import Path

from cnnlab.tracking.maintenance.findings import Finding, counted, findings_of, leftovers
from cnnlab.tracking.maintenance.orphans import LOST, set_aside
from cnnlab.tracking.store_location import STORE_FOLDER
from cnnlab.utils.files import is_locked
from cnnlab.utils.temporary_folders import listed

SETTINGS = "search.json"


def searches_folder() -> Path:
    """Where the states of searches are, a folder for each by its name."""
    return Path(STORE_FOLDER, "searches").resolve()


def state_findings() -> list[Finding]:
    """States that no search could go on with, and files that a killed one was writing; not of a search that runs."""
    home = searches_folder()
    idle = [path for path in listed(home) if path.is_dir() and not _runs(path)]
    damaged = {path: why for path in idle if (why := _damage(path))}
    partial = [file for path in idle if path not in damaged for file in path.rglob("*.part")]
    what = f"{counted(len(damaged), 'search', 'searches')} whose state is damaged"
    aside = home.parent / LOST / home.name
    remedy = f"move it to '{aside}'; the next 'cnnlab tune' of that name starts afresh, its finished runs stay"
    items = [f"{path.name}: {why}" for path, why in damaged.items()]
    found = findings_of(damaged, what, remedy, functools.partial(set_aside, home.parent), items)
    what = counted(len(partial), "half-written file of a search", "half-written files of searches")
    return [*found, *leftovers(partial, what)]


def _runs(folder):
    lock = folder.with_name(f"{folder.name}.lock")
    return lock.exists() and is_locked(lock)


def _damage(folder):
    """Which file of a state cannot be read, or is not there, or nothing."""
    files = sorted(folder.rglob("*.json"))
    for file in files:
        try:
            if not isinstance(json.loads(file.read_text()), dict):
                return f"{file.relative_to(folder)} holds something else"
        except (ValueError, OSError) as error:
            return f"{file.relative_to(folder)} cannot be read ({error})"
    if files and not (folder / SETTINGS).exists():
        return f"without its {SETTINGS}"
    return ""
