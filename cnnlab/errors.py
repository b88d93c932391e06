"""Errors that a user can cause: one sentence each, shown without a traceback."""

import difflib
import re
from contextlib import contextmanager

from cnnlab.utils.text import escape_control_characters, shortened

MOST_SAID, MOST_SENTENCE = 500, 2000  # characters of another's error, some of which hold a whole file, and of ours

# Of an address; passwords may hold an @, and to SQLAlchemy a slash. A port and a path with an @ are none.
_BEFORE_HOST = re.compile(r"(?<=://)(?:[^/\s]*@|[^:/\s@]+:(?!\d+/)[^@\s]*@)")
_ASKED = re.compile(r"([?&]\w*(?:password|passwd|pwd|token|secret)\w*=)[^&\s]*", re.IGNORECASE)


class LabError(Exception):
    """A job that cannot go on (a corrupt file, an unreachable server). The command exits with status 1."""

    exit_code = 1

    def __str__(self):
        text = masked(super().__str__())  # it names files, and what they hold
        return shortened(escape_control_characters(text), MOST_SENTENCE)


class ServerUnavailable(LabError):
    """The tracking server stopped answering in the midst of a job, which may be tried again."""


class ArgumentError(LabError, ValueError):
    """An argument that is wrong before any work starts. The command exits with status 2."""

    exit_code = 2


def expect_one_of(what: str, received: str, choices, shown=None) -> None:
    """Raise `ArgumentError` unless `received` is one of `choices`, naming the nearest; `shown` says many in fewer."""
    choices = list(choices)
    if received in choices:
        return
    likeness = {choice: difflib.SequenceMatcher(None, str(received), choice).ratio() for choice in choices}
    near = max(likeness, key=likeness.get, default=None)  # of equal ones the first
    hint = f" Did you mean '{near}'?" if near and likeness[near] >= 0.4 else ""
    raise ArgumentError(f"Expected {what} to be one of: {', '.join(shown or choices)}. Received: '{received}'.{hint}")


@contextmanager
def reading(what, cure):
    """Around the reading of a file: whatever a damaged one makes its reader raise is one sentence.

    Args:
        what: was expected: "'recipe.json' to be a recipe".
        cure: what to do.

    Raises:
        LabError: the content is none of that. An `OSError`, such as for a file that is not there, passes.
    """
    try:
        yield
    except (LabError, OSError):
        raise
    except Exception as error:  # readers have one of every kind
        raise LabError(
            f"Expected {what}. Received a damaged file ({type(error).__name__}: {first_line(error)}). {cure}"
        ) from error


def masked(text) -> str:
    """A text without the user and password of any address in it, before its host or among what it asks for."""
    return _ASKED.sub(r"\1***", _BEFORE_HOST.sub("***@", str(text)))


def first_line(error) -> str:
    """An error's message without what follows its first line, for a sentence of ours."""
    return shortened((str(error).strip() or type(error).__name__).splitlines()[0], MOST_SAID).rstrip(".")
