"""Everything that goes into MLflow: experiments, runs, autologging, artifacts and whole models."""

import contextlib
import os
from contextlib import contextmanager

import mlflow

from cnnlab.errors import LabError, masked
from cnnlab.tracking.mlflow_internals import tried_once
from cnnlab.tracking.offline import spool
from cnnlab.tracking.offline.server_unavailable import gone, is_away
from cnnlab.tracking.run_locks import alive, process_tags
from cnnlab.tracking.store_location import BESIDE, TRACKING_VARIABLE, local_database
from cnnlab.tracking.tag_names import TAG, our_tags
from cnnlab.utils.log import log
from cnnlab.utils.signals import signals_held
from cnnlab.utils.text import escape_control_characters, markdown, short_hash, shortened

DATA_NAME, RUN_NAME = 240, 250  # characters, of the 256 and 250 that MLflow's databases have of experiments and runs
DESCRIPTION = "mlflow.note.content"


def experiment_for(dataset) -> str:
    """The id of the experiment for a run: that of a run of the user's around it, or the one that MLflow's variables
    name, or the data set's own, `cnnlab-<name>`, made on first use.

    Another data set of the same name (a folder with other files) gets an experiment of its own, with a suffix.

    Raises:
        LabError: the experiment was deleted.
    """
    client = mlflow.MlflowClient()
    if outer := outer_run():
        return outer.info.experiment_id
    if name := os.environ.get("MLFLOW_EXPERIMENT_NAME"):
        return _made(client, name, {}).experiment_id
    if not spool.recording() and TRACKING_VARIABLE in os.environ and (number := os.environ.get("MLFLOW_EXPERIMENT_ID")):
        return number
    named = f"cnnlab-{shortened(escape_control_characters(dataset.name), DATA_NAME)}"
    for name in (named, f"{named}-{short_hash(dataset.source)}"):
        experiment = _made(client, name, _experiment_tags(dataset))
        if experiment.tags.get(TAG + "source") == dataset.source:
            return experiment.experiment_id
    raise LabError(f"Expected '{name}' to be the experiment of {dataset.source}. Received one without our tags.")


def experiment_here(experiment_id) -> str:
    """The id by which an experiment of the store is to be called now: what is recorded in an outbox has others."""
    entry = spool.recording()
    return _made(mlflow.MlflowClient(), f"{entry.experiment_id}", {}).experiment_id if entry else experiment_id


def _made(client, name, tags):
    """The experiment of a name, made where there is none."""
    name = escape_control_characters(name)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        # Beside the local database; a server decides for itself.
        location = f"{BESIDE}/" if local_database(mlflow.get_tracking_uri()) else None
        # Two processes may both come here first; whoever is second takes the first one's.
        with contextlib.suppress(mlflow.MlflowException):
            client.create_experiment(name, artifact_location=location, tags=tags)
        experiment = client.get_experiment_by_name(name)
    if experiment is None:
        raise LabError(f"Expected to make the experiment '{name}'. Received: a refusal. Ask for the permission.")
    if experiment.lifecycle_stage == "deleted":
        raise LabError(
            f"Expected experiment '{name}' to be active. Received: one that was deleted. "
            f"Restore it with 'mlflow experiments restore -x {experiment.experiment_id}'."
        )
    return experiment


def outer_run():
    """A run of somebody else's around ours: the active one, or the running one that `mlflow run` names."""
    run, entry = mlflow.active_run(), spool.recording()
    if entry:  # which knows the one on the server
        return run if run and run.info.run_id != entry.parent else None
    if run:
        return run
    if run_id := os.environ.get("MLFLOW_RUN_ID"):
        run = mlflow.MlflowClient().get_run(run_id)
        if run.info.status == "RUNNING":
            return run
        log.warning(f"MLFLOW_RUN_ID names run {run_id[:8]}, which is {run.info.status}; it is not opened again.")
        del os.environ["MLFLOW_RUN_ID"]
    return None


def outer_run_id() -> str | None:
    """The id of the user's own run that a run of ours would be below."""
    outer, entry = outer_run(), spool.recording()
    return outer.info.run_id if outer else entry.parent if entry else None


@contextmanager
def tracked_run(experiment_id, run_name, *, params, tags, description=None, parent_run_id=None, resumed_run_id=None):
    """Open a run, and close it FINISHED, FAILED or KILLED (Ctrl-C, SIGTERM), with the reason in a tag.

    A run of the user's that is active, or that `MLFLOW_RUN_ID` names while it runs, becomes its parent.

    Args:
        experiment_id, run_name, params, tags, description: the run's; tags without our prefix, `None` left out. What
            MLflow cannot keep of names and values is escaped.
        parent_run_id: makes it a child of that run.
        resumed_run_id: an ended run to open again instead of a new one.

    Yields:
        The run's id.

    Raises:
        LabError: another process works on the run that is to be opened again.
        StoreGone: the server stopped answering.
    """
    with contextlib.ExitStack() as living:
        if resumed_run_id:
            living.enter_context(alive(resumed_run_id))  # before anything of it is changed
        with _tracked_run(
            living, experiment_id, run_name, params, tags, description, parent_run_id, resumed_run_id
        ) as run_id:
            yield run_id


@contextmanager
def _tracked_run(living, experiment_id, run_name, params, tags, description, parent_run_id, resumed_run_id):
    outer, entry = outer_run(), spool.recording()
    parent_run_id = parent_run_id or (outer.info.run_id if outer else None)
    on_server = entry.parent if entry and parent_run_id in (None, entry.parent) else None
    parent_run_id = None if on_server else parent_run_id
    os.environ.pop("MLFLOW_RUN_ID", None)  # which MLflow would open again
    if resumed_run_id and TAG + "reason" in mlflow.MlflowClient().get_run(resumed_run_id).data.tags:
        mlflow.MlflowClient().delete_tag(resumed_run_id, TAG + "reason")
    tags = {
        TAG + key: escape_control_characters(value)
        for key, value in {**tags, **process_tags()}.items()
        if value is not None
    }
    if on_server:  # MLflow would look for it here
        tags["mlflow.parentRunId"] = on_server
    run = None
    try:
        with signals_held():  # no signal may part the run from its being known here
            run = mlflow.start_run(
                run_id=resumed_run_id,
                experiment_id=experiment_id,
                run_name=shortened(escape_control_characters(run_name), RUN_NAME),
                nested=bool(parent_run_id or on_server),
                parent_run_id=parent_run_id,
                tags=tags,
                description=description,
            )
        if not resumed_run_id:
            living.enter_context(alive(run.info.run_id))
        mlflow.log_params({name: escape_control_characters(value) for name, value in params.items()})
        yield run.info.run_id
        with signals_held():
            mlflow.end_run("FINISHED")
            run = None
    except BaseException as error:
        if run:
            with signals_held():
                _end_unfinished(error)
        if isinstance(error, (mlflow.MlflowException, OSError)) and is_away():
            raise gone(error) from error
        raise


def _end_unfinished(error):
    status = "KILLED" if isinstance(error, (KeyboardInterrupt, SystemExit)) else "FAILED"
    reason = escape_control_characters(masked(f"{type(error).__name__}: {error}")).strip().rstrip(":")
    # A server that is gone must not hide the error that ended the run, nor be asked again and again.
    with tried_once() if is_away() else contextlib.nullcontext():
        with contextlib.suppress(Exception):
            mlflow.set_tag(f"{TAG}reason", reason[:500])
        with contextlib.suppress(Exception):
            mlflow.end_run(status)


def delete_run(run_id) -> None:
    """Put a run in MLflow's bin."""
    mlflow.MlflowClient().delete_run(run_id)


def log_metric_of(run_id, name, value) -> None:
    """Add a metric to a run that need not be the active one."""
    mlflow.MlflowClient().log_metric(run_id, name, value)


def tags_of(run_id) -> dict:
    """Our own tags of a run, which need not be the active one."""
    return our_tags(mlflow.MlflowClient().get_run(run_id).data.tags)


def describe_run(text) -> None:
    """Add Markdown to what the UI shows first of the active run, its description."""
    said = mlflow.get_run(mlflow.active_run().info.run_id).data.tags.get(DESCRIPTION, "")
    mlflow.set_tag(DESCRIPTION, f"{said}\n\n{text}")


def tag_run(**tags) -> None:
    """Set tags of ours on the active run."""
    mlflow.set_tags({TAG + key: value for key, value in tags.items()})


def _experiment_tags(dataset):
    some = [markdown(name) for name in dataset.class_names[:20]] + ["..."] * (len(dataset.class_names) > 20)
    return {
        TAG + "source": dataset.source,
        "mlflow.experimentKind": "custom_model_development",
        DESCRIPTION: f"Image classification on **{markdown(dataset.name)}** ({len(dataset.class_names)} "
        f"classes: {', '.join(some)}).",
    }
