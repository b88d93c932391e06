"""Define the exceptions that users see as one sentence without a traceback, and helpers that write such sentences."""

import contextlib
import difflib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cnnlab.utils.text import escape_control_characters, shortened

LONGEST_QUOTE = 500  # characters of a library's error message; some of them hold a whole file
LONGEST_SENTENCE = 2000  # characters of an error message of ours

# User names and passwords in addresses. A password may hold an @, and for SQLAlchemy a slash; a port and a path with
# an @ are no passwords.
_BEFORE_HOST = re.compile(r"(?<=://)(?:[^/\s]*@|[^:/\s@]+:(?!\d+/)[^@\s]*@)")
_ASKED = re.compile(r"([?&]\w*(?:password|passwd|pwd|token|secret)\w*=)[^&\s]*", re.IGNORECASE)
# What Keras writes before a layer's error, its bold type, and where TensorFlow was.
_NOISE = re.compile(r"^Exception encountered when calling .*\n|\x1b\[\d+m|\{\{function_node [^}]*\}\} ", re.MULTILINE)


class LabError(Exception):
    """A job that cannot go on (a corrupt file, an unreachable server). The command exits with status 1."""

    exit_code: int = 1

    def __str__(self) -> str:
        text = masked(super().__str__())  # it names files, and what they hold
        return shortened(escape_control_characters(text), LONGEST_SENTENCE)


class ServerUnavailable(LabError):
    """The tracking server stopped answering in the midst of a job, which may be tried again."""


class ArgumentError(LabError, ValueError):
    """An argument that is wrong before any work starts. The command exits with status 2."""

    exit_code = 2


def expect_one_of(what: str, received: object, choices: Iterable[str], shown: Iterable[str] | None = None) -> None:
    """Raise `ArgumentError` unless `received` is one of `choices`, naming the nearest; `shown` says many in fewer."""
    choices = list(choices)
    if received not in choices:
        expected = f"Expected {what} to be one of: {', '.join(shown or choices)}."
        raise ArgumentError(f"{expected} Received: '{received}'.{did_you_mean(received, choices)}")


def did_you_mean(received: object, choices: Iterable[str] = (), files: Callable[[Path], bool] | None = None) -> str:
    """Return a sentence that names what a mistyped name most likely meant; nothing where nothing is like it.

    Args:
        received: the name.
        choices: the names that are known; of equally likely ones the first is named.
        files: says of a path whether it may be meant too; without, no path is.
    """
    path = _near_path(str(received), files) if files else None
    near = _nearest(str(received), [*choices, path] if path else choices)
    return f" Did you mean '{near}'?" if near else ""


def _nearest(received: str, choices: Iterable[str]) -> str | None:
    text = _plain(received)

    def likeness(choice: str) -> float:
        known = _plain(choice)
        if len(text) > 1 and text in known:
            return 3 if known == text else 2 if known.startswith(text) else 1
        return round(difflib.SequenceMatcher(None, text, known).ratio(), 1)

    near = max(choices, key=likeness, default=None)
    return near if near and likeness(near) >= 0.7 else None


def _plain(name: str) -> str:
    """Return a name without what is often written otherwise: capitals, hyphens, underscores and dots."""
    return re.sub(r"[\W_]", "", name).casefold()


def _near_path(received: str, fits: Callable[[Path], bool]) -> str | None:
    """Return the path that exists, and fits, in which each missing part of a path is replaced by the nearest name."""
    with contextlib.suppress(OSError, ValueError):
        path = Path(received)
        found = Path(path.anchor)
        for part in path.relative_to(found).parts:
            if not (found / part).exists():
                names = sorted(os.listdir(found), key=lambda name: (len(name), name))
                is_last = part == path.name
                part = _nearest(part, [name for name in names if not is_last or fits(found / name)]) or part
            found /= part
        return str(found) if found != path and fits(found) else None
    return None


@contextmanager
def reading(what: str, cure: str) -> Iterator[None]:
    """Turn whatever a damaged file makes its reader raise inside the block into one sentence.

    Args:
        what: what was expected, such as "'recipe.json' to be a recipe".
        cure: a sentence that says what to do.

    Raises:
        LabError: the file's content is damaged. An `OSError`, such as for a missing file, is raised as it is.
    """
    try:
        yield
    except (LabError, OSError):
        raise
    except Exception as error:  # readers have one of every kind
        raise LabError(
            f"Expected {what}. Received a damaged file ({type(error).__name__}: {first_line(error)}). {cure}"
        ) from error


@contextmanager
def expecting(what: str, cure: str = "", received: str | None = None, kinds: Any = Exception) -> Iterator[None]:
    """Turn what other people's code raises inside the block into one sentence of what was expected and received.

    Args:
        what: was expected, such as "to download cifar10".
        cure: a sentence that says what to do.
        received: stands before the first line of the error's message; by default its type.
        kinds: types of the errors; others, and those of ours, are raised as they are.

    Raises:
        LabError: one of them was raised.
    """
    try:
        yield
    except LabError:
        raise
    except kinds as error:
        received = f" {type(error).__name__}" if received is None else received and f" {received}"
        raise LabError(f"Expected {what}. Received{received}: {first_line(error)}. {cure}".rstrip()) from error


def masked(text: object) -> str:
    """Return a text without the user names and passwords in its addresses, before a host or in a query."""
    return _ASKED.sub(r"\1***", _BEFORE_HOST.sub("***@", str(text)))


def first_line(error: BaseException | str) -> str:
    """Return the first line of an error's message that says something, to be quoted in a sentence of ours."""
    text = _NOISE.sub("", str(error)).strip() or type(error).__name__
    return shortened(text.splitlines()[0], LONGEST_QUOTE).rstrip(".")
