"""Write to the terminal without failing where it is closed or full; show colours and bars only where it can."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from cnnlab.utils.environment import read_variable


class _Stream(io.FileIO):
    """Write to a file descriptor until it fails; from then on all that is written to it is discarded."""

    failure: OSError | None = None

    def write(self, data) -> int:
        try:
            while (written := super().write(data)) is None:  # a full pipe that does not block
                select.select([], [self], [])
            return written
        except OSError as error:
            self.failure = error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # also for libraries that write to it without Python
            os.close(nowhere)
            return memoryview(data).nbytes


def set_up_streams() -> None:
    """Make standard output and error streams that never raise: what cannot be written ends no job.

    Names with characters that their encoding does not have are escaped. Streams that another program put in place,
    such as a notebook or a test, stay.
    """
    # Else the next file that is opened gets the number of a closed stream, and what is printed ends in it.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for number, name in ((1, "stdout"), (2, "stderr")):
        before = getattr(sys, name)
        if before is not getattr(sys, f"__{name}__"):
            continue
        stream = io.BufferedWriter(_Stream(number, "w", closefd=False))
        lines = before is None or before.line_buffering or before.write_through
        encoding = before.encoding if before else "utf-8"
        setattr(sys, name, io.TextIOWrapper(stream, encoding, "backslashreplace", line_buffering=lines))


def output_failure() -> OSError | None:
    """Return why standard output was not written to its end; `None` if it was, or if its reader had enough of it."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    failure = raw.failure if isinstance(raw, _Stream) else None
    return None if failure and failure.errno == errno.EPIPE else failure


def is_plain() -> bool:
    """Return whether the user wants no colours or other escape sequences on a terminal."""
    return bool(read_variable("NO_COLOR")) or read_variable("TERM") == "dumb"


def is_live(stream: TextIO | None) -> bool:
    """Return whether a stream is a terminal on which what was written can be changed, such as by a progress bar."""
    return stream is not None and stream.isatty() and not is_plain()


@contextmanager
def progress_bar(title: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on a live standard error inside the block.

    Yields:
        A function that takes by how much more of `total` is done. A total of 0 shows no bar.
    """
    if not total or not is_live(sys.stderr):  # rich would take a notebook for a screen, and leave an empty output in it
        yield lambda more: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total, completed=done)
        yield lambda more: progress.advance(task, more)
