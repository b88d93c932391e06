"""Everything that goes into MLflow: experiments, runs, autologging, artifacts and whole models."""

import contextlib
import functools
import json
import os
import re
import shutil
import sys
import tempfile
import time
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import mlflow
import numpy as np
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from cnnlab.errors import LabError, StoreGone, first_line, masked
from cnnlab.names import markdown, short_hash, shortened, shown
from cnnlab.signals import signals_held
from cnnlab.tracking import outbox
from cnnlab.tracking.inside_mlflow import in_short, keras_autologging_alone, no_validation_copies, probe, tried_once
from cnnlab.tracking.liveness import alive, process_tags
from cnnlab.tracking.places import BESIDE, STORE_FOLDER, TRACKING_VARIABLE, is_server, local_database
from cnnlab.tracking.store import HEALTH_TIMEOUT
from cnnlab.tracking.tags import TAG, our_tags
from cnnlab.tracking.temporary import private_folder

DATA_NAME, RUN_NAME = (
    240,
    250,
)  # characters, of the 256 and 250 that MLflow's databases have for an experiment's and a run's


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
    if (
        not outbox.recording()
        and TRACKING_VARIABLE in os.environ
        and (number := os.environ.get("MLFLOW_EXPERIMENT_ID"))
    ):
        return number
    named = f"cnnlab-{shortened(shown(dataset.name), DATA_NAME)}"
    for name in (named, f"{named}-{short_hash(dataset.source)}"):
        experiment = _made(client, name, _experiment_tags(dataset))
        if experiment.tags.get(TAG + "source") == dataset.source:
            return experiment.experiment_id
    raise LabError(f"Expected '{name}' to be the experiment of {dataset.source}. Received one without our tags.")


def experiment_here(experiment_id) -> str:
    """The id by which an experiment of the store is to be called now: what is recorded in an outbox has others."""
    entry = outbox.recording()
    return _made(mlflow.MlflowClient(), f"{entry.experiment_id}", {}).experiment_id if entry else experiment_id


def _made(client, name, tags):
    """The experiment of a name, made where there is none."""
    name = shown(name)
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
    run, entry = mlflow.active_run(), outbox.recording()
    if entry:  # which knows the one on the server
        return run if run and run.info.run_id != entry.parent else None
    if run:
        return run
    if run_id := os.environ.get("MLFLOW_RUN_ID"):
        run = mlflow.MlflowClient().get_run(run_id)
        if run.info.status == "RUNNING":
            return run
        print(
            f"warning: MLFLOW_RUN_ID names run {run_id[:8]}, which is {run.info.status}; it is not opened again.",
            file=sys.stderr,
        )
        del os.environ["MLFLOW_RUN_ID"]
    return None


def outer_run_id() -> str | None:
    """The id of the user's own run that a run of ours would be below."""
    outer, entry = outer_run(), outbox.recording()
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
    outer, entry = outer_run(), outbox.recording()
    parent_run_id = parent_run_id or (outer.info.run_id if outer else None)
    on_server = entry.parent if entry and parent_run_id in (None, entry.parent) else None
    parent_run_id = None if on_server else parent_run_id
    os.environ.pop("MLFLOW_RUN_ID", None)  # which MLflow would open again
    if resumed_run_id and TAG + "reason" in mlflow.MlflowClient().get_run(resumed_run_id).data.tags:
        mlflow.MlflowClient().delete_tag(resumed_run_id, TAG + "reason")
    tags = {TAG + key: shown(value) for key, value in {**tags, **process_tags()}.items() if value is not None}
    if on_server:  # MLflow would look for it here
        tags["mlflow.parentRunId"] = on_server
    run = None
    try:
        with signals_held():  # no signal may part the run from its being known here
            run = mlflow.start_run(
                run_id=resumed_run_id,
                experiment_id=experiment_id,
                run_name=shortened(shown(run_name), RUN_NAME),
                nested=bool(parent_run_id or on_server),
                parent_run_id=parent_run_id,
                tags=tags,
                description=description,
            )
        if not resumed_run_id:
            living.enter_context(alive(run.info.run_id))
        mlflow.log_params({name: shown(value) for name, value in params.items()})
        yield run.info.run_id
        with signals_held():
            mlflow.end_run("FINISHED")
            run = None
    except BaseException as error:
        if run:
            with signals_held():
                _end_unfinished(error)
        if isinstance(error, (mlflow.MlflowException, OSError)) and _is_away():
            raise _gone(error) from error
        raise


def _is_away():
    """Whether the store is a server that does not answer now."""
    uri = mlflow.get_tracking_uri()
    if not is_server(uri):
        return False
    try:
        probe(uri, HEALTH_TIMEOUT)
    except (mlflow.MlflowException, OSError):
        return True
    return False


# What MLflow says of a call without an answer, and of one that a proxy answered in the server's place.
UNANSWERED = re.compile(r"failed with exception|error code 50[234]|too many 50[234] error")


@contextmanager
def loss_of_store_said():
    """Around work that asks the store: what fails since the server does not answer is a `StoreGone`.

    It may answer again by the time that the error is here.
    """
    try:
        yield
    except (mlflow.MlflowException, OSError) as error:
        if UNANSWERED.search(str(error)) or _is_away():
            raise _gone(error) from error
        raise


def _gone(error, more=""):
    return StoreGone(
        f"Expected the MLflow server at {mlflow.get_tracking_uri()} to go on answering. Received: "
        f"{in_short(error)}.{more} Start the server again, and then this job."
    )


def wait_for_store(minutes) -> None:
    """Wait until the server answers again, or so many minutes have passed."""
    print("warning: the MLflow server does not answer; waiting for it.", file=sys.stderr)
    deadline = time.monotonic() + 60 * minutes
    while _is_away() and time.monotonic() < deadline:
        time.sleep(5)


@contextmanager
def results_kept(run_id, save):
    """Around the delivery of results: where it fails, `save(folder)` writes them to a folder that the error names.

    Raises:
        LabError: the delivery failed.
    """
    try:
        yield
    except (mlflow.MlflowException, OSError) as error:
        folder = _saved(run_id, save)
        kept = f" The trained model and all results are in '{folder}'."
        if _is_away():
            raise _gone(error, kept) from error
        raise LabError(f"Expected the store to take the results. Received: {first_line(error)}.{kept}") from error


def _saved(run_id, save):
    """The folder that takes the results: beside the store, or where that disk is full too, among temporary files."""
    places = (Path(STORE_FOLDER, "undelivered").resolve(), Path(tempfile.gettempdir(), "cnnlab-undelivered"))
    for place in places:
        folder = place / run_id
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save(folder)
            return folder
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            if place == places[-1]:
                raise


def complete_history(run_id, history) -> None:
    """Write again what is missing of the metrics by epoch, and say how many there were.

    A server was away, or the disk of the outbox full, for a while.
    """
    if not (is_server(mlflow.get_tracking_uri()) or outbox.recording()):
        return
    if epochs := _send_missing(run_id, history):
        print(f"warning: the store had missed {epochs} of the epochs; their metrics were sent again.", file=sys.stderr)


def logged_history(run_id, history) -> dict:
    """`{name: {step: value}}` that the store has of a run that goes on, once it was sent what it lost of `history`."""
    _send_missing(run_id, history)
    client = mlflow.MlflowClient()
    return {name: {m.step: m.value for m in client.get_metric_history(run_id, name)} for name in history}


def difference_to_logged(logged, history) -> float:
    """The largest difference of a history to what the store had already of its epochs, trained the first time."""
    return max(
        (abs(values[step] - value) for name, values in history.items() for step, value in logged.get(name, {}).items()),
        default=0.0,
    )


def _send_missing(run_id, history):
    """Log what the store does not have of a history; returns the number of epochs that there were."""
    client = mlflow.MlflowClient()
    with contextlib.suppress(mlflow.MlflowException):  # of values that were lost on the way
        mlflow.flush_async_logging()
    missing = []
    for name, values in history.items():
        there = {metric.step for metric in client.get_metric_history(run_id, name)}
        missing += [
            mlflow.entities.Metric(name, float(value), int(time.time() * 1000), step)
            for step, value in enumerate(values)
            if step not in there
        ]
    for i in range(0, len(missing), 1000):
        client.log_batch(run_id, metrics=missing[i : i + 1000])
    return len({metric.step for metric in missing})


def _end_unfinished(error):
    status = "KILLED" if isinstance(error, (KeyboardInterrupt, SystemExit)) else "FAILED"
    reason = shown(masked(f"{type(error).__name__}: {error}")).strip().rstrip(":")
    # A server that is gone must not hide the error that ended the run, nor be asked again and again.
    with tried_once() if _is_away() else contextlib.nullcontext():
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


def tag_run(**tags) -> None:
    """Set tags of ours on the active run."""
    mlflow.set_tags({TAG + key: value for key, value in tags.items()})


def fits_of_a_run(logged=None):
    """A maker of contexts, one for each `fit` of the active run, that give further callbacks for it.

    MLflow autologs one `fit` a run: a second one would change params. Of later ones, and of a run that goes on, the
    metrics are logged, at the epochs that they go on with.

    Args:
        logged: of a run that goes on, what `logged_history` gave: nothing is logged at a step twice.
    """
    contexts = iter([autologging] if logged is None else ())
    return lambda: next(contexts, functools.partial(_metrics_alone, logged or {}))()  # noqa: PLW0108  another one each


@contextmanager
def _metrics_alone(logged):
    import keras

    def log(epoch, logs):
        new = {name: value for name, value in logs.items() if epoch not in logged.get(name, ())}
        mlflow.log_metrics(new, step=epoch, synchronous=False)

    yield [keras.callbacks.LambdaCallback(on_epoch_end=log)]


@contextmanager
def autologging():
    """MLflow's Keras autologging for the `fit` inside; models and data sets are logged by us, once and whole."""
    with keras_autologging_alone(), no_validation_copies():
        yield []


def log_dataset(dataset) -> None:
    """Record the data set on the active run as an MLflow dataset input (its digest cut to MLflow's 36 characters)."""
    source = CodeDatasetSource({"source": dataset.source})
    data = MetaDataset(source, name=shortened(shown(dataset.name), DATA_NAME), digest=dataset.digest[:36])
    for attempt in range(10):
        try:
            mlflow.log_input(data, context="training")
            return
        except mlflow.MlflowException as error:
            # MLflow looks whether the data set is there, then adds it: another process may have been between.
            if attempt == 9 or not any(word in str(error) for word in ("UNIQUE", "IntegrityError", "duplicate key")):
                raise
            time.sleep(0.05 * (attempt + 1))


def log_results(metrics, figures, texts, files=()) -> None:
    """Log metrics, matplotlib figures and texts (by artifact path) and files on the active run, in one upload."""
    mlflow.log_metrics(metrics)
    with private_folder("files") as private:
        # MLflow copies the folder's mode too, and nobody else may look into a temporary one.
        folder = private / "results"
        folder.mkdir()
        write_results(folder, figures, texts, files)
        mlflow.log_artifacts(folder)


def write_results(folder, figures, texts, files=(), **facts) -> None:
    """Write figures and texts (by path), files, and JSON files of facts by their names, into a folder."""
    if figures:
        from cnnlab.results.lettering import save  # in here, as reading the store takes no matplotlib
    for path, figure in figures.items():
        target = Path(folder, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        save(figure, target)
    _write_texts(folder, {**texts, **{f"{name}.json": json.dumps(fact, indent=2) for name, fact in facts.items()}})
    for path, write in dict(files).items():
        write(Path(folder, path))


def log_model_texts(model_uri, texts, files=()) -> None:
    """Put texts and files (by artifact path) beside a logged model, given by its `models:/m-...` URI."""
    with private_folder("files") as private:
        folder = private / "texts"
        folder.mkdir()
        write_results(folder, {}, texts, files)
        mlflow.MlflowClient().log_model_artifacts(model_uri.removeprefix("models:/"), folder)


def log_model(model, dataset) -> str:
    """Log the whole model on the active run, raw images in and probabilities out; return its `models:/m-...` URI.

    With it go the names of its classes, and how a picture became the images that it was trained on.

    Requirements are given, not inferred: inferring imports TensorFlow in a subprocess, for 7 to 9 seconds.
    """
    # Unnamed: named specs break pyfunc for models with one unnamed input.
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype("uint8"), (-1, *dataset.image_shape))]),
        Schema([TensorSpec(np.dtype("float32"), (-1, len(dataset.class_names)))]),
    )
    logged = mlflow.keras.log_model(
        model,
        name="model",
        signature=signature,
        pip_requirements=[f"{name}=={version(name)}" for name in ("mlflow", "tensorflow", "keras", "numpy")],
        metadata={
            "class_names": list(dataset.class_names),
            "fit": dataset.fit,
            "grey_range": dataset.grey_range and list(dataset.grey_range),
        },
    )
    return logged.model_uri


def _experiment_tags(dataset):
    some = [markdown(name) for name in dataset.class_names[:20]] + ["..."] * (len(dataset.class_names) > 20)
    return {
        TAG + "source": dataset.source,
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.note.content": f"Image classification on **{markdown(dataset.name)}** ({len(dataset.class_names)} "
        f"classes: {', '.join(some)}).",
    }


def _write_texts(folder, texts):
    for path, text in texts.items():
        target = Path(folder, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
