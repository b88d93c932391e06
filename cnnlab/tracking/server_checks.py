"""Check within seconds whether a tracking server or a database answers, and remember which servers did."""

from __future__ import annotations

import contextlib
from pathlib import Path

import mlflow
import sqlalchemy

from cnnlab.errors import LabError, first_line, masked
from cnnlab.tracking.mlflow_internals import probe
from cnnlab.utils.text import short_hash
from cnnlab.utils.user_cache import cache_folder

HEALTH_TIMEOUT = 10  # seconds; an unreachable server is reported within 15
# By a word of what a connection failed with; MLflow's own settings.
ADVICE = {
    "CERTIFICATE_VERIFY_FAILED": "Name the file of the authority that signed the server's certificate: "
    "MLFLOW_TRACKING_SERVER_CERT_PATH, or REQUESTS_CA_BUNDLE for other programs too.",
    "SSL": "If it asks for a client's certificate, name its file: MLFLOW_TRACKING_CLIENT_CERT_PATH. "
    "If it speaks no TLS, write http://.",
    "ProxyError": "Correct HTTPS_PROXY and HTTP_PROXY, or name the server in NO_PROXY.",
}


def expect_reachable(uri: str) -> None:
    """Ask a server whether it is up, and refuse within seconds; MLflow's own client would retry for minutes.

    Raises:
        LabError: it does not answer.
    """
    try:
        probe(uri, HEALTH_TIMEOUT)
        with contextlib.suppress(OSError):  # the cache is somebody else's
            file = _reached_file(uri)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    except (OSError, ValueError, mlflow.MlflowException) as error:
        advice = "Start the server, correct the address, or unset the variable to use ./mlruns."
        raise LabError(
            f"Expected an MLflow server at {uri} (MLFLOW_TRACKING_URI). Received no answer: {first_line(error)}. "
            + next((said for word, said in ADVICE.items() if word in str(error)), advice)
        ) from error


def expect_database(uri: str) -> None:
    """Ask a database whether it is up, and refuse within seconds; MLflow would try for minutes."""
    # Which other databases' drivers call otherwise.
    seconds = {"connect_timeout": HEALTH_TIMEOUT} if uri.startswith(("postgresql", "mysql")) else {}
    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool, connect_args=seconds)
    engine.connect().close()


def reached_before(uri: str) -> bool:
    """Return whether this user has ever reached a server at this address."""
    return _reached_file(uri).exists()


def without_password(uri: str) -> str:
    """Return a server's address without the user and password in it."""
    return masked(uri).replace("***@", "")


def server_key(uri: str) -> str:
    """Return a short text that stands for a server in names of files."""
    return short_hash(without_password(uri).rstrip("/"))


def _reached_file(uri: str) -> Path:
    return cache_folder("servers") / server_key(uri)
