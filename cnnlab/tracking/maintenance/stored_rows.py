"""What a local store's database says of its runs, models and versions, read without opening the store: that would end
runs, change places and make folders.
"""

import re
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlflow.entities import LoggedModelStatus

from cnnlab.tracking.maintenance.sqlite_files import readable
from cnnlab.tracking.mlflow_internals import full_places
from cnnlab.tracking.store_location import BESIDE, artifacts_folder
from cnnlab.tracking.tag_names import TAG, UNDELIVERED

RUN_ID = re.compile(r"[0-9a-f]{32}")
MODEL_ID = re.compile(r"m-[0-9a-f]{32}")


@dataclass(frozen=True)
class Run:
    """A run's row: `stage` is "active" or "deleted"; `tags` are ours, with their prefix."""

    run_id: str
    name: str
    status: str
    stage: str
    place: str
    experiment_id: int
    tags: dict = field(compare=False)

    @property
    def is_ours(self):
        """Whether it is a run of ours that is whole, not on its way from somewhere else."""
        return TAG + "process" in self.tags and UNDELIVERED not in self.tags

    def __str__(self):
        return f"{self.run_id[:8]} {self.name or ''}".rstrip()


@dataclass(frozen=True)
class LoggedModel:
    model_id: str
    stage: str
    place: str
    run_id: str | None
    experiment_id: int
    status: int

    @property
    def is_whole(self):
        """Whether its files were all written: a kill may come before."""
        return self.status == LoggedModelStatus.READY.to_int()


@dataclass(frozen=True)
class Version:
    """A registered version: of which run it is, and of which logged model."""

    name: str
    number: int
    run_id: str | None
    model_id: str | None

    def __str__(self):
        return f"{self.name} version {self.number}"


@dataclass(frozen=True)
class Rows:
    runs: dict[str, Run]
    models: dict[str, LoggedModel]
    versions: list[Version]
    experiments: dict[str, str]  # names to artifact places
    full_places: list[str]  # of our experiments, as earlier versions wrote them
    deleted_experiments: list[int]

    def moved(self, places) -> "Rows":
        """The rows with other artifact places: those below one of `places` are below what it says instead."""

        def moved(row):
            for there, here in places.items():
                if row.place == there or row.place.startswith(there.rstrip("/") + "/"):
                    return replace(row, place=here + row.place.removeprefix(there))
            return row

        runs, models = ({key: moved(row) for key, row in rows.items()} for rows in (self.runs, self.models))
        return replace(self, runs=runs, models=models)

    def needed_by(self, *, run_id=None, model_id=None) -> list[Version]:
        """The registered versions that are of a run or of a logged model."""
        return [v for v in self.versions if (run_id and v.run_id == run_id) or (model_id and v.model_id == model_id)]


def read_rows(database) -> Rows:
    """The rows of a database of the present schema."""
    with readable(database) as connection:
        tags = defaultdict(dict)
        for run_id, key, value in connection.execute(
            "SELECT run_uuid, key, value FROM tags WHERE substr(key, 1, ?) = ?", (len(TAG), TAG)
        ):
            tags[run_id][key] = value
        runs = connection.execute(
            "SELECT run_uuid, name, status, lifecycle_stage, artifact_uri, experiment_id FROM runs"
        ).fetchall()
        models = connection.execute(
            "SELECT model_id, lifecycle_stage, artifact_location, source_run_id, experiment_id, status "
            "FROM logged_models"
        ).fetchall()
        versions = connection.execute(
            "SELECT name, version, run_id, source, storage_location FROM model_versions WHERE "
            "current_stage != 'Deleted_Internal'"
        ).fetchall()
        experiments = dict(connection.execute("SELECT name, artifact_location FROM experiments"))
        places = full_places(connection)
        deleted = connection.execute(
            "SELECT experiment_id FROM experiments WHERE lifecycle_stage = 'deleted'"
        ).fetchall()
    return Rows(
        {row[0]: Run(*row, tags[row[0]]) for row in runs},
        {row[0]: LoggedModel(*row) for row in models},
        [Version(name, int(number), run_id, model_in(*places)) for name, number, run_id, *places in versions],
        experiments,
        places,
        [number for (number,) in deleted],
    )


def model_in(*places) -> str | None:
    """The id of the logged model that an address names."""
    found = MODEL_ID.search(" ".join(filter(None, places)))
    return found and found[0]


def folder_of(place, database) -> Path | None:
    """The folder of an artifact place on this disk, or `None` for one that is elsewhere."""
    if place.startswith(BESIDE):
        return artifacts_folder(database) / place.removeprefix(BESIDE).strip("/")
    address = urlsplit(place)
    if address.scheme == "file":
        return Path(unquote(address.path))
    return None if address.scheme else Path(place)
