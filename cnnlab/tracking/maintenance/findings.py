"""Define `Finding`, a fault that a check of the store found: what is wrong, where, and the repair."""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

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
        """Call `fix`.

        Args:
            backed_up: copies the database, and returns where the copy is, in words.

        Returns:
            Whether it succeeds, and what was done or why it does not.
        """
        try:
            copy = backed_up() if self.in_database else ""
            return True, ((self.fix and self.fix()) or self.remedy) + copy
        except (LabError, OSError, sqlite3.Error, mlflow.MlflowException) as error:
            return False, first_line(error)


def leftovers(paths: Sequence[Path], what: str) -> list[Finding]:
    """Return the finding of files and folders that are of no use, which its repair removes; none without paths."""
    if not paths:
        return []
    remedy = f"remove, which frees {in_mb(sum(map(size_of, paths)))}"
    return [Finding(what, remedy, lines(paths), functools.partial(remove, paths))]


def counted(number: int, what: str, plural: str | None = None) -> str:
    """Write a number with its noun: `1 run`, `2 runs`."""
    return f"{number:,} {what if number == 1 else plural or what + 's'}"


def in_mb(size: int) -> str:
    """Write a number of bytes as `1.2 MB`."""
    return f"{size / 1e6:,.1f} MB"


def lines(things: Iterable[object]) -> tuple[str, ...]:
    """Write each thing as a line."""
    return tuple(map(str, things))
