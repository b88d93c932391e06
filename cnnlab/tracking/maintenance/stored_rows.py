"""Read runs, logged models and registered versions from a local store's database, without changing the store.

Opening the store through MLflow would end unfinished runs, rewrite artifact paths and create folders.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlflow.entities import LoggedModelStatus

from cnnlab.tracking.mlflow_internals import full_places
from cnnlab.tracking.store_database import readable
from cnnlab.tracking.store_location import BESIDE, artifacts_folder
from cnnlab.tracking.tag_names import TAG, UNDELIVERED

RUN_ID = re.compile(r"[0-9a-f]{32}")
MODEL_ID = re.compile(r"m-[0-9a-f]{32}")


@dataclass(frozen=True)
class Run:
    """A run's row; its stage is "active" or "deleted", and `tags` are those of cnnlab, with their prefix."""

    run_id: str
    name: str
    status: str
    stage: str
    experiment_id: int
    place: str
    tags: dict[str, str] = field(compare=False)

    @property
    def is_ours(self) -> bool:
        """Whether cnnlab made the run, and it is not a copy that is not whole yet."""
        return TAG + "process" in self.tags and UNDELIVERED not in self.tags

    def __str__(self) -> str:
        return f"{self.run_id[:8]} {self.name or ''}".rstrip()


@dataclass(frozen=True)
class LoggedModel:
    """A logged model's row; its stage is "active" or "deleted"."""

    model_id: str
    stage: str
    run_id: str | None
    experiment_id: int
    status: int
    place: str

    @property
    def is_whole(self) -> bool:
        """Whether MLflow wrote all of its files."""
        return self.status == LoggedModelStatus.READY.to_int()


@dataclass(frozen=True)
class Version:
    """A registered version, with the run and the logged model that it is of."""

    name: str
    number: int
    run_id: str | None
    model_id: str | None

    def __str__(self) -> str:
        return f"{self.name} version {self.number}"


@dataclass(frozen=True)
class StoredRows:
    """The rows of a store."""

    runs: dict[str, Run]  # by their ids, deleted ones too
    models: dict[str, LoggedModel]  # by their ids, deleted ones too
    versions: list[Version]  # of all registered models
    deleted_experiments: list[int]  # ids

    def needed_by(self, *, run_id: str | None = None, model_id: str | None = None) -> list[Version]:
        """Return the registered versions that are of a run or of a logged model."""
        return [v for v in self.versions if (run_id and v.run_id == run_id) or (model_id and v.model_id == model_id)]


def read_rows(database: Path) -> StoredRows:
    """Read the rows of a database that has the present schema."""
    with readable(database) as connection:
        places, tags = full_places(connection), defaultdict(dict)

        def present(place: str) -> str:  # as it is once the store is opened
            full = next((full for full in places if f"{place}/".startswith(f"{full}/")), None)
            return BESIDE + place.removeprefix(full) if full else place

        connection.create_function("present", 1, present)
        for run_id, key, value in connection.execute(
            "SELECT run_uuid, key, value FROM tags WHERE substr(key, 1, ?) = ?", (len(TAG), TAG)
        ):
            tags[run_id][key] = value
        runs = connection.execute(
            "SELECT run_uuid, name, status, lifecycle_stage, experiment_id, present(artifact_uri) FROM runs"
        ).fetchall()
        models = connection.execute(
            "SELECT model_id, lifecycle_stage, source_run_id, experiment_id, status, present(artifact_location) "
            "FROM logged_models"
        ).fetchall()
        versions = connection.execute(
            "SELECT name, version, run_id, source, storage_location FROM model_versions "
            "WHERE current_stage != 'Deleted_Internal'"
        ).fetchall()
        deleted = connection.execute("SELECT experiment_id FROM experiments WHERE lifecycle_stage = 'deleted'")
        return StoredRows(
            {row[0]: Run(*row, tags=tags[row[0]]) for row in runs},
            {row[0]: LoggedModel(*row) for row in models},
            [Version(name, int(number), run_id, model_in(*sources)) for name, number, run_id, *sources in versions],
            [number for (number,) in deleted],
        )


def model_in(*sources: str | None) -> str | None:
    """Return the id of the logged model that a version's sources name, if they do."""
    found = MODEL_ID.search(" ".join(filter(None, sources)))
    return found and found[0]


def folder_of(place: str, database: Path) -> Path | None:
    """Return the folder of an artifact place of a store, or `None` where that is not on this disk."""
    if place.startswith(BESIDE):
        return artifacts_folder(database) / place.removeprefix(BESIDE).strip("/")
    address = urlsplit(place)
    if address.scheme == "file":
        return Path(unquote(address.path))
    return None if address.scheme else Path(place)
