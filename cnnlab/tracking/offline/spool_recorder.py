"""The recorder for a server that may be unavailable: it records into the spool, and a thread delivers meanwhile.

A training never waits for the server. What the server does not have at the end stays on the disk for `cnnlab sync`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import mlflow

from cnnlab.tracking import mlflow_store
from cnnlab.tracking.experiments import named_experiment
from cnnlab.tracking.mlflow_internals import restored_globals, why_unavailable
from cnnlab.tracking.offline import spool
from cnnlab.tracking.offline.delivery import Sender
from cnnlab.tracking.recorder import Recorder
from cnnlab.utils.environment import read_variable
from cnnlab.utils.log import log

FIRST_ANSWER = 1  # seconds that a server has for its first answer, where it has answered some day before


class SpoolRecorder(Recorder):
    """Records runs into an entry of the spool, whose store is open; see `Recorder`.

    Attributes:
        entry: of the spool.
        server_ids: the server's ids of runs and addresses of models by the recorded ones, once it has all of them.
    """

    def __init__(self, entry: spool.Entry, experiment: str | None = None) -> None:
        # In the entry's store the server's experiment has an id of its own; its name there is the server's id.
        experiment_id = named_experiment(entry.experiment_id).experiment_id if entry.experiment_id else None
        super().__init__(experiment_id, remote_parent_id=entry.parent, experiment=experiment)
        self.entry = entry
        self.server_ids: dict[str, str] = {}

    def loses_metrics(self) -> bool:
        return True  # where its disk was full for a while

    def id_to_show(self, recorded_id: str) -> str:
        return self.server_ids.get(recorded_id, recorded_id)

    def recorded_id(self, shown_id: str) -> str:
        return spool.recorded_id(self.entry, shown_id) or shown_id


@contextlib.contextmanager
def recording_to_spool(
    uri: str,
    experiment_id: str | None = None,
    resume_key: str | None = None,
    resumed_entry: spool.Entry | None = None,
    experiment: str | None = None,
) -> Iterator[SpoolRecorder]:
    """Open an entry of the spool as the store inside the block, and send what is recorded to a server.

    Args:
        uri: the server's address.
        experiment_id: of the server, for all runs.
        resume_key: names the entry; a later block with this key records into it again, unless this one ended without
            an error, and complete.
        resumed_entry: an entry to record into again.
        experiment: name of the experiment, where none is given by its id.

    Raises:
        LabError: the disk is full, another process holds the entry, or nobody ever reached the server.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(restored_globals())
        mlflow.set_tracking_uri(uri)
        mlflow_store.expect_usable_store()
        reason = why_unavailable(uri, FIRST_ANSWER)
        place = _parent_and_experiment(reason, experiment_id, experiment)
        entry = stack.enter_context(spool.new_entry(uri, *place, name=resume_key, again=resumed_entry))
        spool.sweep()
        if entry.database.exists():
            spool.note(entry, uri, whole=False)
        else:
            mlflow_store.copy_empty_store(entry.database)
        if sentence := spool.undelivered():
            log.warning(sentence)
        sender = Sender(entry, uri, reason, stays=resume_key is not None)
        stack.enter_context(mlflow_store.opened_at(entry.uri))
        recorder = SpoolRecorder(entry, experiment)
        sender.start()
        try:
            yield recorder
            sender.stays &= recorder.is_incomplete
        finally:
            spool.fsync_tree(entry.folder)
            recorder.server_ids = sender.finish()


def _parent_and_experiment(
    reason: str | None, experiment_id: str | None, experiment: str | None
) -> tuple[str | None, str | None]:
    """Return the server's ids of the user's own run, and of its experiment, that the job's runs go below."""
    named = experiment_id
    if not named and not experiment and not read_variable("MLFLOW_EXPERIMENT_NAME"):
        named = read_variable("MLFLOW_EXPERIMENT_ID")
    if mlflow.active_run() is None and reason:  # the delivery will ask for the run that a variable names
        return os.environ.pop("MLFLOW_RUN_ID", None), named
    run = Recorder().outer_run()
    os.environ.pop("MLFLOW_RUN_ID", None)  # MLflow would look for it in the entry's store
    return (run.info.run_id, experiment_id or run.info.experiment_id) if run else (None, named)
