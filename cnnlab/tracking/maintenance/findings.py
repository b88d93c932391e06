"""What an examination finds: what is wrong, where, and what puts it right."""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

import mlflow

from cnnlab.errors import LabError, first_line


@dataclass(frozen=True)
class Finding:
    """One kind of thing that was found.

    Attributes:
        what: it, and how many there are.
        remedy: what `fix` does; without one, what only the user can do.
        items: each of them, in a line.
        fix: puts it right, and may return a sentence about how; raises `LabError` where it cannot.
        is_fault: whether a healthy store would not have it.
        in_database: whether `fix` changes rows of the database, which is then backed up before.
    """

    what: str
    remedy: str
    items: tuple[str, ...] = ()
    fix: Callable[[], str | None] | None = None
    is_fault: bool = True
    in_database: bool = False

    def repaired(self, backed_up) -> tuple[bool, str]:
        """Put it right; returns whether that went, and what was done or why it could not be.

        Args:
            backed_up: makes the copy of the database, and says where it is.
        """
        try:
            copy = backed_up() if self.in_database else ""
            return True, (self.fix() or self.remedy) + copy
        except (LabError, OSError, sqlite3.Error, mlflow.MlflowException) as error:
            return False, first_line(error)


def counted(number, what, plural=None) -> str:
    """`1 run`, `2 runs`."""
    return f"{number:,} {what if number == 1 else plural or what + 's'}"


def in_mb(size) -> str:
    """Bytes, as `1.2 MB`."""
    return f"{size / 1e6:,.1f} MB"


def lines(things) -> tuple[str, ...]:
    """A line for each thing."""
    return tuple(map(str, things))
