"""Where the store is: its address, and what lies beside its database, wherever that is mounted or moved to.

Light, and without MLflow: MLflow itself loads this as a plugin (`mlflow.artifact_repository` in pyproject.toml).
"""

import hashlib
import os
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError as NoUrl

from cnnlab.errors import masked
from cnnlab.utils.user_cache import cache_folder

STORE_FOLDER = "mlruns"
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
# Of experiments in a local store. MLflow's servers look such places up in their own folder of artifacts, and what
# works on the database looks beside it, so that nothing in the database depends on where it is mounted.
BESIDE = "mlflow-artifacts:"
SERVER_VARIABLE = "_MLFLOW_SERVER_FILE_STORE"  # where MLflow's server keeps the address that it was started with

_snapshots = {}  # copies of databases that may not be written, to the originals


def store_uri() -> str:
    """The store's address: `MLFLOW_TRACKING_URI` when set, else `./mlruns/mlflow.db`."""
    return os.environ.get(TRACKING_VARIABLE) or sqlite_uri(Path(STORE_FOLDER).resolve() / "mlflow.db")


def sqlite_uri(database) -> str:
    """The address of a sqlite file, whatever its folders are called."""
    return URL.create("sqlite", database=str(database)).render_as_string(hide_password=False)


def local_database(uri) -> Path | None:
    """The sqlite file of a local store's address; `None` for a server."""
    try:
        url = make_url(uri)
    except (NoUrl, ValueError):  # of a port that is none
        return None
    if url.get_backend_name() != "sqlite" or not url.database:
        return None
    return Path(url.database).resolve()


def is_in_memory(uri) -> bool:
    """Whether the address is that of a sqlite database without a file, which ends with its process."""
    return uri.startswith("sqlite") and uri.partition("://")[2].partition("?")[0] in ("", "/", "/:memory:")


def is_server(uri) -> bool:
    """Whether the address is that of a server which is spoken to over HTTP."""
    return uri.lower().startswith(("http://", "https://"))


def local_folder(uri) -> Path:
    """Where files about a store's runs lie that are of this machine: beside a local store's database, for a server in a
    folder of the user's cache, one for each address.
    """
    if database := local_database(uri):
        return database.parent
    return cache_folder("servers") / hashlib.sha256(masked(uri).encode()).hexdigest()[:16]


def artifacts_folder(database) -> Path:
    """Where figures and models of a local store are: beside its database."""
    return _snapshots.get(database, database).parent / "artifacts"


def read_from_copy(database, copy) -> None:
    """Say that `copy` stands for a database that may not be written; its artifacts are beside the original."""
    _snapshots[copy] = database


def artifact_repository(artifact_uri, tracking_uri=None, registry_uri=None):
    """MLflow's repository for `mlflow-artifacts:` places; those of a local store are beside its database."""
    import mlflow
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
    from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

    uri = tracking_uri or os.environ.get(SERVER_VARIABLE) or mlflow.get_tracking_uri()
    database = local_database(uri)
    if database is None:
        return MlflowArtifactsRepository(artifact_uri, tracking_uri, registry_uri)
    below = artifact_uri.removeprefix(BESIDE).strip("/")
    folder = artifacts_folder(database)
    place = (folder / below).resolve()
    if not place.is_relative_to(folder.resolve()):
        raise mlflow.MlflowException(f"Expected a place below '{folder}'. Received: '{artifact_uri}'.")
    return LocalArtifactRepository(place.as_uri())
