"""The logger of the library: what it does goes to standard output, its warnings to standard error.

Programs that want neither change it like any other: `logging.getLogger("cnnlab").setLevel("ERROR")`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

log: logging.Logger = logging.getLogger("cnnlab")


class ScreenHandler(logging.Handler):
    """Print a record's message: information as it is, a warning with that word in front, to standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        warning = record.levelno >= logging.WARNING
        text = f"warning: {record.getMessage()}" if warning else record.getMessage()
        try:
            # Looked up each time, as notebooks and tests replace both.
            print(text, file=sys.stderr if warning else sys.stdout, flush=True)
        except Exception:
            self.handleError(record)


if not log.handlers:
    log.addHandler(ScreenHandler())
    log.setLevel(logging.INFO)
    log.propagate = False  # or a root handler would show each message again


@contextmanager
def log_levels(levels: Mapping[str, int]) -> Iterator[None]:
    """Set the levels of loggers, by their names, inside the block."""
    before = {name: logging.getLogger(name).level for name in levels}
    try:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
