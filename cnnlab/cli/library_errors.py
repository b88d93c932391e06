"""Explain errors of libraries and of the operating system to the user, each in one sentence."""

from __future__ import annotations

import errno
import sqlite3

from cnnlab.errors import first_line, masked

# By the full name of the error's class or of one of its bases: libraries are not imported for it.
KINDS = ("mlflow.exceptions.MlflowException", "sqlalchemy.exc.SQLAlchemyError")
OTHERS: dict[type[Exception], str] = {
    ImportError: "Expected the package '{name}'. Received: {text}. Install it: pip install {name}.",
    MemoryError: "Expected enough memory. Received: less. Use a smaller batch_size, image_size or limit.",
    UnicodeDecodeError: "Expected text in UTF-8, of a file or the store's database. Received: {text}. Restore it.",
    OSError: "Expected a file or a connection to work. Received: {text}. Correct it, and try again.",
}
DENIED = ("401", "403", "PERMISSION_DENIED", "UNAUTHENTICATED", "Unauthorized", "Forbidden")


def sentence(error: Exception) -> str | None:
    """Say what was expected, what was received and what to do; return `None` for an error that no user can cause."""
    family = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
    text = masked(first_line(error))
    full = f"{error} {error.__cause__ or ''}"
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "database or disk is full" in full:
        where = f" for '{name}'" if (name := getattr(error, "filename", None)) else ""
        return (
            f"Expected space on the disk{where}. Received: {text}. Free some ('cnnlab cache --clear'), and try again."
        )
    if isinstance(error, sqlite3.Error) or family & set(KINDS):
        if any(word in full for word in DENIED):
            return (
                f"Expected the store to permit this. Received: {text}. Set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, of a user with the permission."
            )
        return f"Expected the store to do this. Received: {text}. See that it is whole and can be written."
    for kind, template in OTHERS.items():
        if isinstance(error, kind):
            return template.format(text=text, name=getattr(error, "name", None))
    return None
