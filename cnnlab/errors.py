"""Errors that a user can cause: one sentence each, shown without a traceback."""

import difflib


class LabError(Exception):
    """A job that cannot go on (a corrupt file, an unreachable server). The command exits with status 1."""

    exit_code = 1


class ArgumentError(LabError, ValueError):
    """An argument that is wrong before any work starts. The command exits with status 2."""

    exit_code = 2


def expect_one_of(what: str, received: str, choices) -> None:
    """Raise `ArgumentError` unless `received` is one of `choices`, naming the nearest valid one."""
    choices = list(choices)
    if received in choices:
        return
    near = difflib.get_close_matches(str(received), choices, n=1, cutoff=0.4)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise ArgumentError(f"Expected {what} to be one of: {', '.join(choices)}. Received: '{received}'.{hint}")
