"""What we reach for inside MLflow, where it has no public way; seen in MLflow 3.17.2.

What loads Keras or a server is imported in functions: the UI and the registry's lists answer without.
"""

import contextlib
import json
import sqlite3
from contextlib import contextmanager
from unittest import mock

import mlflow
import numpy as np
from mlflow.models import Model, ModelSignature
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.types import Schema, TensorSpec

from cnnlab.errors import ArgumentError


def relocate(database, artifacts):
    """Rewrite artifact paths that end in our folder but start elsewhere: the store was moved or copied.

    MLflow keeps absolute paths in these columns of its database, and has no call that changes them.
    """
    here = artifacts.as_uri()
    suffix = f"/{artifacts.parent.name}/artifacts"
    columns = (
        ("experiments", "artifact_location"),
        ("runs", "artifact_uri"),
        ("logged_models", "artifact_location"),
        ("model_versions", "storage_location"),
    )
    with contextlib.closing(sqlite3.connect(database, timeout=30)) as connection, connection:
        rows = connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        for (there,) in rows:
            if there and there.startswith("file://") and there.endswith(suffix) and there != here:
                for table, column in columns:
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                        (here, len(there) + 1, len(there), there),
                    )


@contextmanager
def no_validation_copies():
    """Keep autologging from logging `val_*` a second time as `validation_*`, all at step 0.

    Its callback does so after every validation, and has no option against it.
    """
    import keras

    with mock.patch.object(mlflow.keras.MlflowCallback, "on_test_end", keras.callbacks.Callback.on_test_end):
        yield


def show_runs(client, experiment_id, view, columns, condition) -> str:
    """Set which columns and runs the UI lists of an experiment; returns the part of a link that asks for it.

    The UI reads it from a tag of the experiment, `mlflow.sharedViewState.<name>`, which is not documented.
    """
    state = {
        "selectedColumns": list(columns),
        "orderByKey": "metrics.`val_accuracy`" if condition else "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "searchFilter": condition,
    }
    client.set_experiment_tag(experiment_id, f"mlflow.sharedViewState.{view}", json.dumps(state))
    return f"viewStateShareKey={view}&workflowType=machine_learning"


def scoring_app(predict, image_shape, num_classes):
    """MLflow's scoring server around a function, as `mlflow models serve` has it around a logged model.

    Its app takes an object with `metadata` and `predict`, which is not documented either. JSON numbers are taken as
    float64: with the model's own uint8 signature MLflow would cut them, and images scaled to 0..1 would be scored as
    black ones without a word.

    Args:
        predict: `(N, *image_shape)` to `(N, num_classes)`; an `ArgumentError` is an answer of status 400.
    """
    from mlflow.pyfunc import scoring_server

    class Scorer:
        metadata = Model(
            signature=ModelSignature(
                Schema([TensorSpec(np.dtype("float64"), (-1, *image_shape))]),
                Schema([TensorSpec(np.dtype("float32"), (-1, num_classes))]),
            )
        )

        def predict(self, data):
            try:
                return predict(np.asarray(data))
            except ArgumentError as error:
                raise mlflow.MlflowException(str(error), INVALID_PARAMETER_VALUE) from error

    return scoring_server.init(Scorer())
