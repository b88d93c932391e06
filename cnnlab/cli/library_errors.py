"""What libraries and the system raise for what a user can cause, as the one sentence."""

import errno
import sqlite3

from cnnlab.errors import first_line, masked

# By the first name in an error's family that is here: libraries are not imported for it.
KINDS = ("mlflow.exceptions.MlflowException", "sqlalchemy.exc.SQLAlchemyError")
OTHERS = {
    ImportError: "Expected the package '{name}'. Received: {said}. Install it: pip install {name}.",
    MemoryError: "Expected enough memory. Received: less. Use a smaller batch_size, image_size or limit.",
    UnicodeDecodeError: "Expected text in UTF-8, of a file or the store's database. Received: {said}. Restore it.",
    OSError: "Expected a file or a connection to work. Received: {said}. Correct it, and try again.",
}
DENIED = ("401", "403", "PERMISSION_DENIED", "UNAUTHENTICATED", "Unauthorized", "Forbidden")


def sentence(error) -> str | None:
    """What was expected, what was received and what to do; `None` for an error that is none of the user's."""
    family = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
    said = masked(first_line(error))
    full = f"{error} {error.__cause__ or ''}"
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "database or disk is full" in full:
        where = f" for '{error.filename}'" if getattr(error, "filename", None) else ""
        return (
            f"Expected space on the disk{where}. Received: {said}. Free some ('cnnlab cache --clear'), and try again."
        )
    if isinstance(error, sqlite3.Error) or family & set(KINDS):
        if any(word in full for word in DENIED):
            return (
                f"Expected the store to permit this. Received: {said}. Set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, of a user with the permission."
            )
        return f"Expected the store to do this. Received: {said}. See that it is whole and can be written."
    for kind, said_of in OTHERS.items():
        if isinstance(error, kind):
            return said_of.format(said=said, name=getattr(error, "name", None))
    return None
