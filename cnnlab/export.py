"""Export a model to ONNX, LiteRT, SavedModel or Keras, and compare its predictions there with those of Keras."""

from __future__ import annotations

import dataclasses
import os
import re
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import numpy.typing as npt

from cnnlab.classify import load_classifier
from cnnlab.errors import ArgumentError, LabError, expect_one_of, first_line
from cnnlab.evaluation.classifier import Classifier
from cnnlab.evaluation.predictions import Predictions
from cnnlab.models import export_formats
from cnnlab.models.inference_graph import inference_model, is_rounded
from cnnlab.recipe import Recipe
from cnnlab.resolve import load_for
from cnnlab.tracking import logged_models as stored_models
from cnnlab.tracking import model_registry, run_queries
from cnnlab.tracking.session import opened_store
from cnnlab.utils.text import escape_control_characters

BATCH = 64  # pictures
TOLERANCE = 1e-4  # of a probability, between Keras and another runtime on the same machine
OTHER_MODEL = 0.05  # mean over the pictures of the largest difference in a probability, above which models differ
CALIBRATION = 300  # training pictures
FileFormat = Literal["onnx", "litert", "saved_model", "keras"]
CROPS = 64  # of sample photographs


@dataclass(frozen=True)
class Exported:
    """A written model and how it was checked.

    Attributes:
        path: file or folder.
        lines: sentences on what it is and how it was checked.
        difference: largest difference in a probability from Keras.
        from_run: largest difference from the run's stored predictions; `None` without such.
        reference_accuracy: of the stored predictions, or of Keras without such; `None` without labels.
        accuracy: of the file; `None` without labels.
    """

    path: Path
    lines: list[str]
    difference: float
    from_run: float | None = None
    reference_accuracy: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class _Pictures:
    """Pictures to check a model by.

    Attributes:
        images: `(N, H, W, 3) uint8`.
        where: they are from, in words.
        labels: true classes, if known.
        stored: predictions of these images that the run stored, if it did.
        training: images to calibrate by, if they can be had.
    """

    images: Any
    where: str
    labels: npt.NDArray[np.int64] | None = None
    stored: Predictions | None = None
    training: Any = None


def export_model(
    model: str | None = None,
    file_format: FileFormat = "onnx",
    output: str | os.PathLike[str] | None = None,
    *,
    int8: bool = False,
    dataset: str | None = None,
) -> Exported:
    """Write a model as one file or folder that goes from raw pictures to probabilities, without cnnlab.

    Before it gets its name, it predicts the run's test pictures in its own runtime, and the predictions are compared
    with those of Keras and with those that the run stored.

    Args:
        model: as in `load_classifier`.
        file_format: one of `export_formats.ENDINGS`.
        output: path to write, by default the model's name in the working folder.
        int8: quantize to LiteRT's 8-bit integers, by the activations of training pictures.
        dataset: where the run's images are now.

    Raises:
        ArgumentError: the path is taken, or int8 of another format than LiteRT.
        LabError: the model or a package cannot be had, it does not convert, or the file answers otherwise.

    Example:
        result = cnnlab.train_model(cnnlab.Recipe(dataset="digits", limit=150, filters=(8, 8), epochs=1))
        print(cnnlab.export_model(result.run_id, "keras", "digits.keras").lines)
    """
    expect_one_of("format", file_format, export_formats.ENDINGS)
    if int8 and file_format != "litert":
        raise ArgumentError(f"Expected int8 with the format litert. Received: {file_format}. Leave one out.")
    _expect_free(output)
    export_formats.expect_packages(file_format)
    with opened_store(writes=False):
        classifier = load_classifier(model)
        uri, run_id = stored_models.origin(classifier.uri)
        path = Path(output or _default_name(uri, run_id) + "-int8" * int8 + export_formats.ENDINGS[file_format])
        _expect_free(path)
        pictures, recipe = _pictures_of(run_id, classifier, dataset)
    if int8 and pictures.training is None:
        raise LabError(
            f"Expected training pictures to calibrate 8-bit integers by. Received none: {pictures.where}. "
            "Name their folder as dataset, or leave int8 out."
        )
    calibration = None
    if int8:
        some = np.random.default_rng(0).permutation(len(pictures.training))[:CALIBRATION]
        calibration = np.asarray(pictures.training[np.sort(some)])
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        fresh = Path(folder, f"model{export_formats.ENDINGS[file_format]}")
        export_formats.write_model(
            classifier.model, fresh, file_format, _metadata(classifier, uri, run_id), calibration
        )
        exported = _checked(path, fresh, file_format, classifier, pictures, recipe, int8)
        os.rename(fresh, path)
    return exported


def _metadata(classifier: Classifier, uri: str, run_id: str | None) -> dict[str, Any]:
    """Describe the input and output of a model, for the file."""
    side = classifier.image_size
    return {
        "class_names": list(classifier.class_names),
        "image_size": side,
        "fit": classifier.resize_mode,
        "grey_range": list(classifier.grey_range),
        "input": f"(N, {side}, {side}, 3) uint8, red, green, blue, 0 to 255",
        "output": f"(N, {len(classifier.class_names)}) float32, probabilities in the order of class_names",
        "model": uri,
        "run_id": run_id,
        "cnnlab": version("cnnlab"),
    }


def _expect_free(path: str | os.PathLike[str] | None) -> None:
    if path is None:
        return
    path = Path(path)
    if os.path.lexists(path):
        raise ArgumentError(f"Expected a path that is free. Received: '{path}'. Remove it, or name another output.")
    above = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not above.is_dir():
        raise ArgumentError(f"Expected output in a folder. Received: '{path}', and '{above}' is none. Name another.")


def _default_name(uri: str, run_id: str | None) -> str:
    name, _, number = uri.removeprefix("models:/").rpartition("/")
    if uri.startswith("models:/") and name:
        return f"{model_registry.legal_name(name)}-v{number}"
    return f"run-{run_id[:8]}" if run_id else re.sub(r"\W+", "-", escape_control_characters(uri)).strip("-")


def _pictures_of(run_id: str | None, classifier: Classifier, dataset: str | None) -> tuple[_Pictures, Recipe | None]:
    """Load the pictures to check by, and the recipe of the run where there is one."""
    recipe = None
    try:
        if run_id is None:
            raise LabError("it was logged outside of a run.")
        run = run_queries.find_finished_run(run_id)
        recipe, stored = run_queries.read_recipe(run), run_queries.read_predictions(run)[1]["test"]
        data = load_for(dataclasses.replace(recipe, dataset=dataset or recipe.dataset))
        if data.image_shape[0] != classifier.image_size or data.class_names != classifier.class_names:
            raise LabError(f"'{data.name}' has other classes or sizes.")
    except LabError as error:
        if dataset:
            raise
        images = _crops(classifier.image_size)
        where = f"{len(images)} crops of sample photographs, as the run's pictures cannot be had ({first_line(error)})"
        return _Pictures(images, where), recipe
    count = f"{len(data.test):,} test pictures"
    if data.test.digest != stored.digest:
        where = f"{count} of {data.name}, which are others than run {run_id[:8]} was tested on"
        return _Pictures(data.test.images, where, data.test.labels, training=data.train.images), recipe
    where = f"the {count} of run {run_id[:8]}"
    return _Pictures(data.test.images, where, data.test.labels, stored, data.train.images), recipe


def _crops(side: int) -> npt.NDArray[np.uint8]:
    """Cut 64 images `(side, side, 3)` out of scikit-learn's two photographs."""
    from sklearn.datasets import load_sample_images

    photographs = [image.repeat(-(-side // min(image.shape[:2])), 0) for image in load_sample_images().images]
    draw, crops = np.random.default_rng(0), []
    for i in range(CROPS):
        photograph = photographs[i % len(photographs)]
        y, x = (draw.integers(0, size - side + 1) for size in photograph.shape[:2])
        crops.append(photograph[y : y + side, x : x + side])
    return np.stack(crops)


def _checked(
    path: Path,
    written: Path,
    file_format: FileFormat,
    classifier: Classifier,
    pictures: _Pictures,
    recipe: Recipe | None,
    int8: bool,
) -> Exported:
    """Compare the predictions of a written model with those of Keras and of the run.

    Args:
        path: that the model will have.
        written: path that it has now.
        file_format, int8: of the written model.
        classifier: the model in Keras.
        pictures: to compare by.
        recipe: of the run, if known.

    Raises:
        LabError: the predictions are others.
    """
    rounded = is_rounded(classifier.model)
    expected, received = _predict_in_both(
        classifier, rounded, export_formats.open_model(written, file_format), pictures
    )
    difference = float(np.abs(received - expected).max())
    if not np.isfinite(received).all() or (difference > TOLERANCE and not int8):
        raise LabError(
            f"Expected the {file_format} file to answer as Keras does, within {TOLERANCE:g}. Received: a probability "
            f"that differs by {difference:.2g} on {pictures.where}. It was removed; use another format."
        )
    size, side = _size_of(written) / 1e6, classifier.image_size
    shape = f"(N, {side}, {side}, 3) uint8 to (N, {received.shape[1]}) float32"
    lines = [f"{escape_control_characters(path)}: {file_format}{', int8' * int8}, {size:.2f} MB, {shape}."]
    sentence = f"On {pictures.where}: largest difference {difference:.2g} from Keras here"
    from_run = then = now = None
    if pictures.stored is not None:
        from_run, of_keras = _differences_from_run(received, expected, pictures.stored, pictures.where)
        then = pictures.stored.accuracy
        sentence += f", {from_run:.2g} from the stored predictions"
        if rounded or (recipe and recipe.feature_dtype == "float16"):
            sentence += " (made in half precision, the file in float32)"
        elif of_keras > TOLERANCE:
            sentence += f" (Keras here {of_keras:.2g}: other hardware or versions)"
    if pictures.labels is not None:
        now = float((received.argmax(axis=1) == pictures.labels).mean())
        then = float((expected.argmax(axis=1) == pictures.labels).mean()) if then is None else then
        sentence += f"; accuracy {then:.2%} then, {now:.2%} now"
        if int8:
            sentence += f", {100 * (now - then):+.2f} points by 8-bit integers"
    else:
        same = float((expected.argmax(axis=1) == received.argmax(axis=1)).mean())
        sentence += f"; the same class for {same:.1%}"
    lines.append(sentence + ".")
    if file_format == "keras" and (foreign := _foreign_layers(classifier.model)):
        lines.append(f"It loads only where the file with {', '.join(foreign)} is imported first: no layers of Keras.")
    return Exported(path, lines, difference, from_run, then, now)


def _size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files of a folder."""
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())


def _predict_in_both(classifier: Classifier, rounded: bool, run: Any, pictures: _Pictures):
    """Predict pictures in Keras and by the function `run` of another runtime; each `(N, num_classes)`."""
    reference = inference_model(classifier.model) if rounded else classifier.model
    expected, received = [], []
    for start in range(0, len(pictures.images), BATCH):
        images = np.asarray(pictures.images[start : start + BATCH])
        expected.append(reference.predict_on_batch(images))
        received.append(run(images))
    return np.concatenate(expected), np.concatenate(received)


def _differences_from_run(received, expected, stored: Predictions, where: str) -> tuple[float, float]:
    """Return the largest difference of the file and of Keras from the stored predictions.

    Raises:
        LabError: the model in Keras is another one than the run's.
    """
    by_image = np.abs(expected - stored.probabilities).max(axis=1)
    if by_image.mean() > OTHER_MODEL:
        raise LabError(
            f"Expected the model to answer as its run stored it. Received: probabilities that differ by "
            f"{by_image.mean():.2g} in the mean over {where}. Is it the run's model?"
        )
    return float(np.abs(received - stored.probabilities).max()), float(by_image.max())


def _foreign_layers(model: keras.Model) -> list[str]:
    """Name the classes of layers that Keras does not have."""
    names: set[str] = set()
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            names |= set(_foreign_layers(layer))
        if type(layer).__module__.partition(".")[0] != "keras":
            names.add(type(layer).__name__)
    return sorted(names)
