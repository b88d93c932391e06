"""Everything that goes into MLflow: experiments, runs, autologging, artifacts and whole models."""

import contextlib
import hashlib
import tempfile
from contextlib import contextmanager
from pathlib import Path

from cnnlab.errors import LabError
from cnnlab.interrupts import signals_held
from cnnlab.store import TAG, local_database, our_tags, process_tags


def experiment_for(dataset) -> str:
    """The id of the data set's experiment, `cnnlab-<name>`, made on first use.

    Another data set of the same name (a folder with other files) gets an experiment of its own, with a suffix.

    Raises:
        LabError: the experiment was deleted.
    """
    import mlflow

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
    import mlflow

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
    import mlflow

    status = "KILLED" if isinstance(error, (KeyboardInterrupt, SystemExit)) else "FAILED"
    reason = f"{type(error).__name__}: {error}".strip().rstrip(":")
    # A server that is gone must not hide the error that ended the run.
    with contextlib.suppress(Exception):
        mlflow.set_tag(f"{TAG}reason", reason[:500])
    with contextlib.suppress(Exception):
        mlflow.end_run(status)


def children_of(parent_run_id, experiment_id) -> list[dict]:
    """What the runs below a run say, oldest first: `run_id`, `status`, `seconds`, `metrics`, `params`, our `tags`."""
    import mlflow

    runs = mlflow.MlflowClient().search_runs(
        [experiment_id],
        f"tags.mlflow.parentRunId = '{parent_run_id}'",
        order_by=["attributes.start_time ASC"],
        max_results=10_000,
    )
    return [
        {
            "run_id": run.info.run_id,
            "status": run.info.status,
            "seconds": ((run.info.end_time or run.info.start_time) - run.info.start_time) / 1000,
            "metrics": run.data.metrics,
            "params": run.data.params,
            "tags": our_tags(run.data.tags),
        }
        for run in runs
    ]


def find_run(experiment_id, running=False, **tags) -> str | None:
    """The id of the newest run that carries these tags of ours, or `None`; `running` leaves ended runs out."""
    import mlflow

    conditions = [f"tags.`{TAG}{key}` = '{value}'" for key, value in tags.items()]
    conditions += ["attributes.status = 'RUNNING'"] * running
    runs = mlflow.MlflowClient().search_runs(
        [experiment_id], " and ".join(conditions), order_by=["attributes.start_time DESC"], max_results=1
    )
    return runs[0].info.run_id if runs else None


def delete_run(run_id) -> None:
    """Put a run in MLflow's bin."""
    import mlflow

    mlflow.MlflowClient().delete_run(run_id)


def log_metric_of(run_id, name, value) -> None:
    """Add a metric to a run that need not be the active one."""
    import mlflow

    mlflow.MlflowClient().log_metric(run_id, name, value)


def tag_run(**tags) -> None:
    """Set tags of ours on the active run."""
    import mlflow

    mlflow.set_tags({TAG + key: value for key, value in tags.items()})


@contextmanager
def autologging():
    """MLflow's Keras autologging for the `fit` inside; models and data sets are logged by us, once and whole."""
    import mlflow.keras

    mlflow.keras.autolog(log_models=False, log_datasets=False, silent=True)
    try:
        yield
    finally:
        mlflow.keras.autolog(disable=True, silent=True)


def log_dataset(dataset) -> None:
    """Record the data set on the active run as an MLflow dataset input (its digest cut to MLflow's 36 characters)."""
    import mlflow
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    source = CodeDatasetSource({"source": dataset.source})
    mlflow.log_input(MetaDataset(source, name=dataset.name, digest=dataset.digest[:36]), context="training")


def log_results(metrics, figures, texts, files=()) -> None:
    """Log metrics, matplotlib figures and texts (by artifact path) and files on the active run, in one upload."""
    import mlflow

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
    import mlflow

    with tempfile.TemporaryDirectory() as folder:
        _write_texts(folder, texts)
        mlflow.MlflowClient().log_model_artifacts(model_uri.removeprefix("models:/"), folder)


def log_model(model, class_names, image_shape) -> str:
    """Log the whole model on the active run, raw images in and probabilities out; return its `models:/m-...` URI.

    Requirements are given, not inferred: inferring imports TensorFlow in a subprocess, for 7 to 9 seconds.
    """
    from importlib.metadata import version

    import mlflow
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

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
