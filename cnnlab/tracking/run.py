"""Everything that goes into MLflow: experiments, runs, autologging, artifacts and whole models."""

import contextlib
import hashlib
import tempfile
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import mlflow
import numpy as np
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from cnnlab.errors import LabError
from cnnlab.signals import signals_held
from cnnlab.tracking.inside_mlflow import no_validation_copies
from cnnlab.tracking.store import local_database, process_tags
from cnnlab.tracking.tags import TAG


def experiment_for(dataset) -> str:
    """The id of the data set's experiment, `cnnlab-<name>`, made on first use.

    Another data set of the same name (a folder with other files) gets an experiment of its own, with a suffix.

    Raises:
        LabError: the experiment was deleted.
    """
    client = mlflow.MlflowClient()
    for name in (f"cnnlab-{dataset.name}", f"cnnlab-{dataset.name}-{_short_hash(dataset.source)}"):
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            # Beside the local database; a server decides for itself, and would be given this machine's path.
            database = local_database(mlflow.get_tracking_uri())
            location = (database.parent / "artifacts").as_uri() if database else None
            # Two processes may both come here first; whoever is second takes the first one's.
            with contextlib.suppress(mlflow.MlflowException):
                client.create_experiment(name, artifact_location=location, tags=_experiment_tags(dataset))
            experiment = client.get_experiment_by_name(name)
        if experiment.tags.get(TAG + "source") == dataset.source:
            if experiment.lifecycle_stage == "deleted":
                raise LabError(
                    f"Expected experiment '{name}' to be active. Received: one that was deleted. "
                    f"Restore it with 'mlflow experiments restore -x {experiment.experiment_id}'."
                )
            return experiment.experiment_id
    raise LabError(f"Expected '{name}' to be the experiment of {dataset.source}. Received one without our tags.")


@contextmanager
def tracked_run(experiment_id, run_name, *, params, tags, description=None, parent_run_id=None, resumed_run_id=None):
    """Open a run, and close it FINISHED, FAILED or KILLED (Ctrl-C, SIGTERM), with the reason in a tag.

    Args:
        experiment_id, run_name, params, tags, description: the run's; tags without our prefix, `None` left out.
        parent_run_id: makes it a child of that run.
        resumed_run_id: an ended run to open again instead of a new one.

    Yields:
        The run's id.
    """
    if resumed_run_id and TAG + "reason" in mlflow.MlflowClient().get_run(resumed_run_id).data.tags:
        mlflow.MlflowClient().delete_tag(resumed_run_id, TAG + "reason")
    tags = {TAG + key: str(value) for key, value in {**tags, **process_tags()}.items() if value is not None}
    run = None
    try:
        with signals_held():  # no signal may part the run from its being known here
            run = mlflow.start_run(
                run_id=resumed_run_id,
                experiment_id=experiment_id,
                run_name=run_name,
                nested=parent_run_id is not None,
                parent_run_id=parent_run_id,
                tags=tags,
                description=description,
            )
        mlflow.log_params(params)
        yield run.info.run_id
        with signals_held():
            mlflow.end_run("FINISHED")
            run = None
    except BaseException as error:
        if run:
            with signals_held():
                _end_unfinished(error)
        raise


def _end_unfinished(error):
    status = "KILLED" if isinstance(error, (KeyboardInterrupt, SystemExit)) else "FAILED"
    reason = f"{type(error).__name__}: {error}".strip().rstrip(":")
    # A server that is gone must not hide the error that ended the run.
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


def tag_run(**tags) -> None:
    """Set tags of ours on the active run."""
    mlflow.set_tags({TAG + key: value for key, value in tags.items()})


def fits_of_a_run():
    """A maker of contexts, one for each `fit` of the active run, that give further callbacks for it.

    MLflow autologs one `fit` a run: a second one would change params. Of later ones the metrics are logged, at the
    epochs that they go on with.
    """
    contexts = iter([autologging])
    return lambda: next(contexts, _metrics_alone)()  # noqa: PLW0108  another one at each call


@contextmanager
def _metrics_alone():
    import keras

    yield [
        keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: mlflow.log_metrics(logs, step=epoch, synchronous=False)
        )
    ]


@contextmanager
def autologging():
    """MLflow's Keras autologging for the `fit` inside; models and data sets are logged by us, once and whole."""
    mlflow.keras.autolog(log_models=False, log_datasets=False, silent=True)
    try:
        with no_validation_copies():
            yield []
    finally:
        mlflow.keras.autolog(disable=True, silent=True)


def log_dataset(dataset) -> None:
    """Record the data set on the active run as an MLflow dataset input (its digest cut to MLflow's 36 characters)."""
    source = CodeDatasetSource({"source": dataset.source})
    mlflow.log_input(MetaDataset(source, name=dataset.name, digest=dataset.digest[:36]), context="training")


def log_results(metrics, figures, texts, files=()) -> None:
    """Log metrics, matplotlib figures and texts (by artifact path) and files on the active run, in one upload."""
    mlflow.log_metrics(metrics)
    with tempfile.TemporaryDirectory() as folder:
        for path, figure in figures.items():
            target = Path(folder, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(target)
        _write_texts(folder, texts)
        for path, write in dict(files).items():
            write(Path(folder, path))
        mlflow.log_artifacts(folder)


def log_model_texts(model_uri, texts) -> None:
    """Put texts (by artifact path) beside a logged model, given by its `models:/m-...` URI."""
    with tempfile.TemporaryDirectory() as folder:
        _write_texts(folder, texts)
        mlflow.MlflowClient().log_model_artifacts(model_uri.removeprefix("models:/"), folder)


def log_model(model, class_names, image_shape) -> str:
    """Log the whole model on the active run, raw images in and probabilities out; return its `models:/m-...` URI.

    Requirements are given, not inferred: inferring imports TensorFlow in a subprocess, for 7 to 9 seconds.
    """
    # Unnamed: named specs break pyfunc for models with one unnamed input.
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype("uint8"), (-1, *image_shape))]),
        Schema([TensorSpec(np.dtype("float32"), (-1, len(class_names)))]),
    )
    logged = mlflow.keras.log_model(
        model,
        name="model",
        signature=signature,
        pip_requirements=[f"{name}=={version(name)}" for name in ("mlflow", "tensorflow", "keras", "numpy")],
        metadata={"class_names": list(class_names)},
    )
    return logged.model_uri


def _experiment_tags(dataset):
    return {
        TAG + "source": dataset.source,
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.note.content": f"Image classification on **{dataset.name}** ({len(dataset.class_names)} classes: "
        f"{', '.join(dataset.class_names[:20])}{', ...' if len(dataset.class_names) > 20 else ''}).",
    }


def _write_texts(folder, texts):
    for path, text in texts.items():
        target = Path(folder, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


def _short_hash(text):
    return hashlib.sha256(text.encode()).hexdigest()[:6]
