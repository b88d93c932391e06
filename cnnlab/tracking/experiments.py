"""Experiments of the open store: found by name, or made on first use."""

from __future__ import annotations

import contextlib

import mlflow
from mlflow.entities import Experiment

from cnnlab.data.image_dataset import ImageDataset
from cnnlab.errors import LabError
from cnnlab.tracking.store_location import BESIDE, local_database
from cnnlab.tracking.tag_names import DATA_NAME, DESCRIPTION, TAG
from cnnlab.utils.text import escape_control_characters, markdown, short_hash, shortened


def dataset_experiment(dataset: ImageDataset) -> str:
    """Return the id of a data set's own experiment, `cnnlab-<name>`; make it where there is none.

    Raises:
        LabError: the experiment was deleted, or the store refuses to make it.
    """
    name = f"cnnlab-{shortened(escape_control_characters(dataset.name), DATA_NAME)}"
    return source_experiment(name, dataset.source, _tags(dataset))


def source_experiment(name: str, source: str, tags: dict[str, str], client: mlflow.MlflowClient | None = None) -> str:
    """Return the id of the experiment of a name and a data set; make it, with these tags, where there is none.

    Another data set of the same name (a folder with other files) gets an experiment of its own, with a suffix. `client`
    and errors are as for `named_experiment`.
    """
    for candidate in (name, f"{name}-{short_hash(source)}"):
        experiment = named_experiment(candidate, tags, client)
        if experiment.tags.get(TAG + "source") == source:
            return experiment.experiment_id
    raise LabError(f"Expected '{candidate}' to be the experiment of {source}. Received one without our tags.")


def named_experiment(
    name: str, tags: dict[str, str] | None = None, client: mlflow.MlflowClient | None = None
) -> Experiment:
    """Return the experiment of a name, in the store of `client` or the open one; make it where there is none.

    Raises:
        LabError: the experiment was deleted, or the store refuses to make it.
    """
    client, name = client or mlflow.MlflowClient(), escape_control_characters(name)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        # A local store has its artifacts beside its database; a server decides for itself.
        location = f"{BESIDE}/" if local_database(client.tracking_uri) else None
        # Of two processes that make it at the same time, the second takes that of the first.
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


def _tags(dataset: ImageDataset) -> dict[str, str]:
    some = [markdown(name) for name in dataset.class_names[:20]] + ["..."] * (len(dataset.class_names) > 20)
    return {
        TAG + "source": dataset.source,
        "mlflow.experimentKind": "custom_model_development",
        DESCRIPTION: f"Image classification on **{markdown(dataset.name)}** ({len(dataset.class_names)} "
        f"classes: {', '.join(some)}).",
    }
