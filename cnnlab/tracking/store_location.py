"""Find the address, database and artifact folder of a tracking store, also after it was moved.

It imports no MLflow at its top: MLflow itself loads it as a plugin (`mlflow.artifact_repository` in pyproject.toml).
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError as NoUrl

from cnnlab.errors import masked
from cnnlab.utils.environment import read_variable
from cnnlab.utils.user_cache import cache_folder

if TYPE_CHECKING:
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

STORE_FOLDER = "mlruns"
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
# The artifact place of cnnlab's experiments in a local store, which does not depend on where the store is mounted.
# MLflow's servers look for it in their own folder of artifacts, other programs beside the database, as told below.
BESIDE = "mlflow-artifacts:"
SERVER_VARIABLE = "_MLFLOW_SERVER_FILE_STORE"  # where MLflow's server keeps the address that it was started with


def store_uri() -> str:
    """Return the store's address: `MLFLOW_TRACKING_URI` when set, else that of `./mlruns/mlflow.db`."""
    return read_variable(TRACKING_VARIABLE) or sqlite_uri(Path(STORE_FOLDER).resolve() / "mlflow.db")


def sqlite_uri(database: Path) -> str:
    """Return the address of a sqlite file, whatever its folders are called."""
    return URL.create("sqlite", database=str(database)).render_as_string(hide_password=False)


def local_database(uri: str) -> Path | None:
    """Return the sqlite file of a local store's address, `None` for a server."""
    try:
        url = make_url(uri)
    except (NoUrl, ValueError):  # a port that is not a number
        return None
    if url.get_backend_name() != "sqlite" or not url.database:
        return None
    return Path(url.database).resolve()


def is_in_memory(uri: str) -> bool:
    """Return whether an address is that of a sqlite database without a file, which ends with its process."""
    return uri.startswith("sqlite") and uri.partition("://")[2].partition("?")[0] in ("", "/", "/:memory:")


def is_server(uri: str) -> bool:
    """Return whether an address is that of a server over HTTP."""
    return uri.lower().startswith(("http://", "https://"))


def local_folder(uri: str) -> Path:
    """Return the folder of this machine's own files about a store's runs, such as checkpoints: of a local store that of
    its database, of a server one in the user's cache.
    """
    if database := local_database(uri):
        return database.parent
    return cache_folder("servers") / hashlib.sha256(masked(uri).encode()).hexdigest()[:16]


def artifacts_folder(database: Path) -> Path:
    """Return the folder of figures and models of a local store, which is beside its database."""
    return database.parent / "artifacts"


def is_own_store(database: Path) -> bool:
    """Return whether cnnlab made a local store: an experiment in it keeps its artifacts at `BESIDE` itself.

    Experiments of MLflow's servers have their id behind it, `mlflow-artifacts:/1`.
    """
    if not database.is_file():
        return False
    with contextlib.closing(sqlite3.connect(database, timeout=30)) as connection:
        try:
            query = "SELECT 1 FROM experiments WHERE artifact_location = ?"
            return connection.execute(query, (f"{BESIDE}/",)).fetchone() is not None
        except sqlite3.DatabaseError:  # no database of MLflow's
            return False


def artifact_repository(
    artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
) -> ArtifactRepository:
    """Give MLflow the artifacts at an `mlflow-artifacts:` address: in a local store that cnnlab made those beside its
    database, everywhere else what MLflow itself has for such an address.
    """
    import mlflow
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
    from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

    database = local_database(tracking_uri or read_variable(SERVER_VARIABLE) or mlflow.get_tracking_uri())
    if database is None or not is_own_store(database):
        return MlflowArtifactsRepository(artifact_uri, tracking_uri, registry_uri)
    folder = artifacts_folder(database).resolve()
    place = (folder / artifact_uri.removeprefix(BESIDE).strip("/")).resolve()
    if not place.is_relative_to(folder):
        raise mlflow.MlflowException(f"Expected a place below '{folder}'. Received: '{artifact_uri}'.")
    return LocalArtifactRepository(place.as_uri())
