"""Define `Finding`, a fault that a check of the store found: what is wrong, where, and the repair."""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow

from cnnlab.errors import LabError, first_line
from cnnlab.utils.temporary_folders import remove, size_of


@dataclass(frozen=True)
class Finding:
    """One kind of fault, and all places where a check found it."""

    what: str  # the fault, and how many there are
    remedy: str  # what `fix` does; without `fix`, what only the user can do
    items: tuple[str, ...] = ()  # each place, in a line
    # Repairs the fault, and may return a sentence about how. It raises `LabError` where it cannot.
    fix: Callable[[], str | None] | None = None
    is_fault: bool = True  # whether a healthy store would not have it
    in_database: bool = False  # whether `fix` changes rows of the database, which is backed up before

    def repair(self, backed_up: Callable[[], str]) -> tuple[bool, str]:
        """Call `fix`, after `backed_up` where needed; return whether it succeeds, and what was done or why not."""
        try:
            copy = backed_up() if self.in_database else ""
            return True, ((self.fix and self.fix()) or self.remedy) + copy
        except (LabError, OSError, sqlite3.Error, mlflow.MlflowException) as error:
            return False, first_line(error)


def findings_of(
    things: Any, what: str, remedy: str, fix: Callable[[Any], Any] | None = None, items: Any = None, **more: bool
) -> list[Finding]:
    """Return the finding of some things, each of them an item, which `fix(things)` repairs; none without things."""
    repair = fix and functools.partial(fix, things)
    return [Finding(what, remedy, tuple(map(str, items or things)), repair, **more)] if things else []


def leftovers(paths: Sequence[Path], what: str) -> list[Finding]:
    """Return the finding of files and folders that are of no use, which its repair removes; none without paths."""
    return findings_of(paths, what, f"remove, which frees {in_mb(sum(map(size_of, paths)))}", remove)


def counted(number: int, what: str, plural: str | None = None) -> str:
    """Write a number with its noun: `1 run`, `2 runs`."""
    return f"{number:,} {what if number == 1 else plural or what + 's'}"


def in_mb(size: int) -> str:
    """Write a number of bytes as `1.2 MB`."""
    return f"{size / 1e6:,.1f} MB"
