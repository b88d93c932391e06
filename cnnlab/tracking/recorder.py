"""Record the runs of a job: open and end each run, choose its experiment and parent, and log its results.

`Recorder` writes into the open MLflow store. `SpoolRecorder` (in `tracking.offline`) does so for a server that may be
unavailable. `tracking.session` chooses between them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.entities import Run

from cnnlab.data.image_dataset import ImageDataset
from cnnlab.errors import masked
from cnnlab.evaluation.run_result import RunResult
from cnnlab.tracking import epoch_metrics, run_logging, server_unavailable
from cnnlab.tracking.experiments import dataset_experiment, named_experiment
from cnnlab.tracking.mlflow_internals import without_retries
from cnnlab.tracking.run_locks import alive, process_tags
from cnnlab.tracking.store_location import TRACKING_VARIABLE, is_server
from cnnlab.tracking.tag_names import FAILED, RUN_NAME, TAG
from cnnlab.utils.environment import read_variable
from cnnlab.utils.log import log
from cnnlab.utils.signals import signals_held
from cnnlab.utils.text import escape_control_characters, shortened

if TYPE_CHECKING:  # what only reads the store loads neither Keras nor matplotlib
    import keras

    from cnnlab.evaluation.run_figures import RunFiles


@dataclass(eq=False)
class Recorder:
    """Records runs in the MLflow store that is open."""

    experiment_id: str | None = None  # for all runs, whatever else names an experiment
    # The user's own run that the job's runs go below, where the open store does not have it.
    remote_parent_id: str | None = None
    experiment: str | None = None  # name of the experiment for runs that are below no run of the user's own
    is_incomplete: bool = False  # whether the job may be resumed though it ends without an error

    def outer_run(self) -> Run | None:
        """Return the run around the job: the active one, or the running one that `mlflow run` names."""
        if run := mlflow.active_run():
            return None if run.info.run_id == self.remote_parent_id else run
        if run_id := read_variable("MLFLOW_RUN_ID"):
            run = mlflow.MlflowClient().get_run(run_id)
            if run.info.status == "RUNNING":
                return run
            log.warning(f"MLFLOW_RUN_ID names run {run_id[:8]}, which is {run.info.status}; it is not opened again.")
            del os.environ["MLFLOW_RUN_ID"]
        return None

    def outer_run_id(self) -> str | None:
        """Return the id of the user's own run, if there is one, below which the job's runs go."""
        run = self.outer_run()
        return run.info.run_id if run else self.remote_parent_id

    def experiment_for(self, dataset: ImageDataset | None = None) -> str:
        """Return the id of the experiment for a run on a data set, which is made on first use.

        It is, in this order: the one that the recorder was made for, without need of a data set; that of the user's own
        run around the job; the one that `MLFLOW_EXPERIMENT_NAME` or `MLFLOW_EXPERIMENT_ID` names; the data set's own.

        Raises:
            LabError: the experiment was deleted.
        """
        if self.experiment_id:
            return self.experiment_id
        if outer := self.outer_run():
            return outer.info.experiment_id
        if name := self.experiment or read_variable("MLFLOW_EXPERIMENT_NAME"):
            return named_experiment(name).experiment_id
        if read_variable(TRACKING_VARIABLE) and (experiment_id := read_variable("MLFLOW_EXPERIMENT_ID")):
            return experiment_id
        assert dataset is not None, "only a recorder made for an experiment does without the data set"
        return dataset_experiment(dataset)

    @contextmanager
    def start(
        self,
        experiment_id: str,
        run_name: str,
        *,
        params: Mapping[str, Any],
        tags: Mapping[str, Any],
        description: str | None = None,
        parent_run_id: str | None = None,
        resumed_run_id: str | None = None,
        dataset: ImageDataset | None = None,
    ) -> Iterator[str]:
        """Open a run; at the end of the block, end it as FINISHED, FAILED or KILLED (Ctrl-C, SIGTERM).

        The reason of FAILED and KILLED becomes a tag. The user's own run, if there is one, becomes the parent.

        Args:
            experiment_id, run_name, params, tags, description: the run's; tags without our prefix, those that are
                `None` are left out. What MLflow cannot keep of names and values is escaped.
            parent_run_id: makes the run a child of that run instead.
            resumed_run_id: an ended run to open again instead of a new one.
            dataset: becomes the run's input, if the run is new.

        Yields:
            The id under which the run is recorded.

        Raises:
            LabError: another process works on the run that is to be opened again.
            ServerUnavailable: the server stopped answering.
        """
        is_running = False
        with contextlib.ExitStack() as locks:
            if resumed_run_id:
                locks.enter_context(alive(resumed_run_id))  # before anything of it is changed
            started = {
                **{"run_id": resumed_run_id, "experiment_id": experiment_id, "description": description},
                "run_name": shortened(escape_control_characters(run_name), RUN_NAME),
                **self._parent_and_tags(parent_run_id, {**tags, **process_tags()}),
            }
            os.environ.pop("MLFLOW_RUN_ID", None)  # MLflow would open that run again
            if resumed_run_id:
                _remove_reason(resumed_run_id)
            try:
                with signals_held():  # no signal may come between the start of the run and our knowing of it
                    run_id = mlflow.start_run(**started).info.run_id
                    is_running = True
                if not resumed_run_id:
                    locks.enter_context(alive(run_id))
                mlflow.log_params({name: escape_control_characters(value) for name, value in params.items()})
                if dataset is not None and not resumed_run_id:
                    run_logging.log_dataset(dataset)
                yield run_id
                with signals_held():
                    mlflow.end_run("FINISHED")
                    is_running = False
            except BaseException as error:
                if is_running:
                    with signals_held():
                        _end_unfinished(error)
                if isinstance(error, (mlflow.MlflowException, OSError)) and server_unavailable.is_unavailable():
                    raise server_unavailable.unavailable(error) from error
                raise

    def _parent_and_tags(self, parent_run_id: str | None, tags: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of `mlflow.start_run` that say which run is the parent, and the tags."""
        outer = self.outer_run()
        parent_run_id = parent_run_id or (outer.info.run_id if outer else None) or self.remote_parent_id
        our_tags = {TAG + key: escape_control_characters(value) for key, value in tags.items() if value is not None}
        if parent_run_id and parent_run_id == self.remote_parent_id:  # MLflow would look for it in the open store
            our_tags["mlflow.parentRunId"] = parent_run_id
            return {"nested": True, "tags": our_tags}
        return {"nested": bool(parent_run_id), "parent_run_id": parent_run_id, "tags": our_tags}

    def loses_metrics(self) -> bool:
        """Return whether the store may have missed metrics of some epochs."""
        return is_server(mlflow.get_tracking_uri())

    def log_results(
        self,
        result: RunResult,
        metrics: Mapping[str, float],
        run_files: RunFiles,
        tested: tuple[keras.Model, ImageDataset] | None,
        started: float,
    ) -> RunResult:
        """Log what a training gave on the active run.

        Args:
            result: of the training; `history` is checked against what the store has of it.
            metrics, run_files: to be logged.
            tested: the model and its data set where the model is to be logged too.
            started: `time.perf_counter()` of the run's beginning.

        Returns:
            The result with the address of the logged model and with the run's `total_seconds`.

        Raises:
            LabError: the store does not take the results. They are in a folder that the error names.
        """
        model_uri = None
        with contextlib.ExitStack() as kept:
            if tested:
                facts = {"metrics": metrics, "history": result.history}
                save = functools.partial(run_logging.write_training, model=tested[0], run_files=run_files, **facts)
                kept.enter_context(server_unavailable.results_kept(result.recorded_id, save))
            if self.loses_metrics():
                epoch_metrics.complete_history(result.recorded_id, result.history)
            if tested:
                model_uri = run_logging.log_model(*tested)
            run_logging.log_results(metrics, run_files.figures, run_files.texts, run_files.files)
            total_seconds = time.perf_counter() - started
            mlflow.log_metric("total_seconds", round(total_seconds, 1))
        return dataclasses.replace(result, recorded_model_uri=model_uri, total_seconds=total_seconds)

    def id_to_show(self, recorded_id: str) -> str:
        """Return the id or `models:/` address by which the user finds a recorded run or model at this moment."""
        return recorded_id

    def recorded_id(self, shown_id: str) -> str:
        """Return the id under which this recorder has a run that the user names."""
        return shown_id


def _remove_reason(run_id: str) -> None:
    client = mlflow.MlflowClient()
    for tag in {TAG + "reason", FAILED} & client.get_run(run_id).data.tags.keys():
        client.delete_tag(run_id, tag)


def _end_unfinished(error: BaseException) -> None:
    """End the active run as FAILED, or as KILLED where a signal ended it, with the reason in a tag."""
    status = "KILLED" if isinstance(error, (KeyboardInterrupt, SystemExit)) else "FAILED"
    reason = escape_control_characters(masked(f"{type(error).__name__}: {error}")).strip().rstrip(":")
    # An unavailable server must not hide the error that ended the run, nor be asked again and again.
    with without_retries() if server_unavailable.is_unavailable() else contextlib.nullcontext():
        with contextlib.suppress(Exception):
            mlflow.set_tag(f"{TAG}reason", reason[:500])
        with contextlib.suppress(Exception):
            mlflow.end_run(status)
