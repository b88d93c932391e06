"""Open the tracking store for a job, choose the recorder of its runs, and pin the source code of custom models.

Functions that record runs (train, compare, tune) enter `Session`; those that only use the store enter
`opened_store`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

import mlflow

from cnnlab.models import custom_model
from cnnlab.recipe import RunOptions
from cnnlab.tracking import mlflow_store
from cnnlab.tracking.mlflow_store import process
from cnnlab.tracking.offline import spool
from cnnlab.tracking.offline.spool_recorder import recording_to_spool
from cnnlab.tracking.recorder import Recorder
from cnnlab.tracking.store_location import is_server, local_database
from cnnlab.utils.log import log


@contextlib.contextmanager
def opened_store(writes: bool = True) -> Iterator[None]:
    """Open the store as `mlflow_store.opened` inside the block or the decorated function; warn of undelivered runs."""
    with mlflow_store.opened(writes) as is_outermost:
        # Not in a worker, whose store is in the spool.
        database = local_database(mlflow.get_tracking_uri()) if is_outermost else None
        is_spooled = database and spool.spool_folder() in database.parents
        if is_outermost and not is_spooled and (sentence := spool.undelivered()):
            log.warning(sentence)
        yield


class Session(contextlib.ExitStack):
    """Around a verb that records runs: fixes the functions of the user's own models, and opens the store when needed.

    with Session([recipe.model]) as session:
        [(dataset, resolved)] = prepare([recipe])  # refuses before anything is in the store
        recorder = session.recorder()

    Args:
        models: names of models; functions of the user's own are what they are now, whatever becomes of their files.
        source: the text of the file of the only model, as a store has it.
        writes: without, a store that may not be written is read from a copy of its database.
        options: name the experiment of the runs.

    Raises:
        LabError: the store cannot be used, or `source` is not what the file holds and nobody allowed it to run.
    """

    def __init__(
        self,
        models: Iterable[str] = (),
        source: str | None = None,
        writes: bool = True,
        options: RunOptions | None = None,
    ) -> None:
        super().__init__()
        self._models, self._source, self._writes = list(models), source, writes
        self._experiment = options.experiment if options else None

    def __enter__(self) -> Self:
        if process.recorder is None:
            mlflow_store.expect_usable_store(self._writes)
        self.enter_context(custom_model.pinned_sources(self._models, self._source))
        return self

    def recorder(
        self,
        *,
        resume_key: str | None = None,
        resumed_run_id: str | None = None,
        experiment_id: str | None = None,
        direct: bool = False,
    ) -> Recorder:
        """Open what the runs of the verb are recorded in, until the session ends; within another verb, that one's.

        It is the spool's recorder for a server, and else one for MLflow's store.

        Args:
            resume_key: names the job; when it is resumed after an interruption, it finds what it has recorded.
            resumed_run_id: the id, or its first characters, of a run to be resumed.
            experiment_id: of the store, for all runs.
            direct: without the spool, also to a server: for what processes on several machines read from each other.

        Raises:
            LabError: the store cannot be opened, or nobody ever reached the server.
        """
        if process.recorder:
            self.enter_context(mlflow_store.opened(self._writes))
            return process.recorder
        uri, entry = mlflow_store.address(), None
        if resumed_run_id and is_server(uri):
            entry = next((entry for entry in spool.entries() if spool.recorded_id(entry, resumed_run_id)), None)
        if is_server(uri) and not direct and not (resumed_run_id and entry is None):
            spooled = recording_to_spool(uri, experiment_id, resume_key, entry, self._experiment)
            recorder = self.enter_context(spooled)
        else:
            self.enter_context(opened_store(self._writes))
            recorder = Recorder(experiment_id, experiment=self._experiment)
        process.recorder = recorder
        self.callback(setattr, process, "recorder", None)
        return recorder


def folder_of_waiting_run(run_id: str) -> Path | None:
    """Return the folder in which a run waits to be delivered to a server, given by the first characters of its id."""
    runs = (run for entry in spool.entries() for run in spool.runs_of(entry))
    return spool.spool_folder() if any(run["run_id"].startswith(run_id) for run in runs) else None
