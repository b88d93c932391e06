"""Log data, results, tags, description and model on the active run; delete a run or add a metric by run id."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec

from cnnlab.data.image_dataset import ImageDataset
from cnnlab.tracking.tag_names import DATA_NAME, DESCRIPTION, TAG
from cnnlab.utils.temporary_folders import private_folder
from cnnlab.utils.text import escape_control_characters, shortened

if TYPE_CHECKING:  # what only reads the store loads neither Keras nor matplotlib
    import keras

    from cnnlab.evaluation.plots import Figure
    from cnnlab.evaluation.run_figures import RunFiles

# Functions that write a file, by its artifact path.
Writers = Mapping[str, Callable[[Path], Any]]
NO_FILES: Writers = MappingProxyType({})


def log_dataset(dataset: ImageDataset) -> None:
    """Record the data set on the active run as an MLflow dataset input (its digest cut to MLflow's 36 characters)."""
    source = CodeDatasetSource({"source": dataset.source})
    data = MetaDataset(
        source, name=shortened(escape_control_characters(dataset.name), DATA_NAME), digest=dataset.digest[:36]
    )
    for attempt in range(10):
        try:
            mlflow.log_input(data, context="training")
            return
        except mlflow.MlflowException as error:
            # MLflow looks whether the data set is there, then adds it: another process may have been between.
            if attempt == 9 or not any(word in str(error) for word in ("UNIQUE", "IntegrityError", "duplicate key")):
                raise
            time.sleep(0.05 * (attempt + 1))


def log_results(
    metrics: Mapping[str, float], figures: Mapping[str, Figure], texts: Mapping[str, str], files: Writers = NO_FILES
) -> None:
    """Log metrics, matplotlib figures and texts (by artifact path) and files on the active run, in one upload."""
    mlflow.log_metrics(dict(metrics))
    with private_folder("files") as private:
        # MLflow copies the folder's mode too, and nobody else may look into a temporary one.
        folder = private / "results"
        folder.mkdir()
        write_results(folder, figures, texts, files)
        mlflow.log_artifacts(str(folder))


def write_results(
    folder: Path, figures: Mapping[str, Figure], texts: Mapping[str, str], files: Writers = NO_FILES, **facts: Any
) -> None:
    """Write figures and texts (by path), files, and JSON files of facts by their names, into a folder."""
    for path, figure in figures.items():
        from cnnlab.evaluation.fonts import save  # in here, as reading the store takes no matplotlib

        target = Path(folder, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        save(figure, target)
    for path, text in {**texts, **{f"{name}.json": json.dumps(fact, indent=2) for name, fact in facts.items()}}.items():
        target = Path(folder, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    for path, write in files.items():
        write(Path(folder, path))


def write_training(
    folder: Path,
    model: keras.Model,
    run_files: RunFiles,
    metrics: Mapping[str, float],
    history: Mapping[str, list[float]],
) -> None:
    """Write all that a training gave into a folder: its files and figures, its metrics, and the model."""
    from cnnlab.models.safe_loading import save_model  # in here, as what only reads the store takes no Keras

    files = {**run_files.files, "model.keras": lambda path: save_model(model, path)}
    write_results(folder, run_files.figures, run_files.texts, files, metrics=metrics, history=history)


def delete_run(run_id: str) -> None:
    """Mark a run as deleted."""
    mlflow.MlflowClient().delete_run(run_id)


def log_metric_of(run_id: str, name: str, value: float) -> None:
    """Add a metric to a run that need not be the active one."""
    mlflow.MlflowClient().log_metric(run_id, name, value)


def describe_run(text: str) -> None:
    """Add Markdown to what the UI shows first of the active run, its description."""
    run = mlflow.active_run()
    assert run, "only an active run is described"
    before = mlflow.get_run(run.info.run_id).data.tags.get(DESCRIPTION, "")
    mlflow.set_tag(DESCRIPTION, f"{before}\n\n{text}")


def tag_run(**tags: Any) -> None:
    """Set tags of ours on the active run."""
    mlflow.set_tags({TAG + key: value for key, value in tags.items()})


def log_model_texts(model_uri: str, texts: Mapping[str, str], files: Writers = NO_FILES) -> None:
    """Put texts and files (by artifact path) beside a logged model, given by its `models:/m-...` URI."""
    with private_folder("files") as private:
        folder = private / "texts"
        folder.mkdir()
        write_results(folder, {}, texts, files)
        mlflow.MlflowClient().log_model_artifacts(model_uri.removeprefix("models:/"), str(folder))


def log_model(model: keras.Model, dataset: ImageDataset) -> str:
    """Log the whole model on the active run, raw images in and probabilities out; return its `models:/m-...` URI.

    It is logged without its optimizer, loss and metrics. With it go the names of its classes, and how a picture became
    the images that it was trained on.

    Requirements are given, not inferred: inferring imports TensorFlow in a subprocess, for 7 to 9 seconds.
    """
    from cnnlab.models import safe_loading  # in here, as what only reads the store takes no Keras
    from cnnlab.tracking import pyfunc_loader

    # Unnamed: named specs break pyfunc for models with one unnamed input.
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype("uint8"), (-1, *dataset.image_shape))]),
        Schema([TensorSpec(np.dtype("float32"), (-1, len(dataset.class_names)))]),
    )
    with safe_loading.uncompiled(model):
        logged = Model.log(
            None,
            pyfunc_loader,
            model=model,
            name="model",
            flavor_name="keras",
            signature=signature,
            pip_requirements=[f"{name}=={version(name)}" for name in ("mlflow", "tensorflow", "keras", "numpy")],
            metadata={
                "class_names": list(dataset.class_names),
                "fit": dataset.resize_mode,
                "grey_range": dataset.grey_range and list(dataset.grey_range),
            },
        )
    return logged.model_uri
