"""Write a model for other programs, and say what it answers there before it is called done."""

import dataclasses
import os
import re
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np

from cnnlab.classify import load_classifier
from cnnlab.errors import ArgumentError, LabError, expect_one_of, first_line
from cnnlab.models import export_formats
from cnnlab.models.inference_graph import inference_model, is_rounded
from cnnlab.resolve import load_for
from cnnlab.tracking import logged_models as stored_models
from cnnlab.tracking import model_registry, run_queries
from cnnlab.tracking.session import opened_store
from cnnlab.utils.text import escape_control_characters

BATCH = 64  # pictures
TOLERANCE = 1e-4  # of a probability, between Keras and another runtime on the same machine
STRANGE = 0.05  # mean over the pictures of the largest difference in a probability: it is another model
CALIBRATION = 300  # training pictures
CROPS = 64  # of sample photographs


@dataclass(frozen=True)
class Exported:
    """A written `path`, and `lines` on what it is and how it was checked.

    `difference` is the largest in a probability from Keras, `from_run` from the run's stored predictions; `then` and
    `now` are the accuracies of those and of the file. What is not known is `None`.
    """

    path: Path
    lines: list[str]
    difference: float
    from_run: float | None = None
    then: float | None = None
    now: float | None = None


@dataclass(frozen=True)
class _Pictures:
    """To check by: `images`, in words `where` they are from, the run's `stored` predictions of them, and true `labels`,
    where there are any; `training` images to calibrate by.
    """

    images: np.ndarray
    where: str
    labels: np.ndarray | None = None
    stored: object = None
    training: np.ndarray | None = None


def export_model(model=None, file_format="onnx", output=None, *, int8=False, dataset=None) -> Exported:
    """Write a model as one file or folder that goes from raw pictures to probabilities, without cnnlab.

    Before it gets its name, it answers for the run's test pictures in its own runtime, and is compared with Keras and
    with the predictions that the run stored.

    Args:
        model: as in `load_classifier`.
        file_format: one of `formats.ENDINGS`.
        output: path to write, by default the model's name in the working folder.
        int8: LiteRT's 8-bit integers, by the activations of training pictures.
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
        raise ArgumentError(f"Expected --int8 with --format litert. Received: {file_format}. Leave one out.")
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
            "Name their folder with --dataset, or leave out --int8."
        )
    side = classifier.image_size
    about = {
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
    calibration = None
    if int8:
        some = np.random.default_rng(0).permutation(len(pictures.training))[:CALIBRATION]
        calibration = np.asarray(pictures.training[np.sort(some)])
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        fresh = Path(folder, f"model{export_formats.ENDINGS[file_format]}")
        export_formats.write_model(classifier.model, fresh, file_format, about, calibration)
        exported = _checked(path, fresh, file_format, classifier, pictures, recipe, int8)
        os.rename(fresh, path)
    return exported


def _expect_free(path):
    if path is None:
        return
    path = Path(path)
    if os.path.lexists(path):
        raise ArgumentError(f"Expected a path that is free. Received: '{path}'. Remove it, or name another --output.")
    if not path.parent.is_dir():
        raise ArgumentError(f"Expected --output in a folder that exists. Received: '{path}'. Make '{path.parent}'.")


def _default_name(uri, run_id):
    name, _, number = uri.removeprefix("models:/").rpartition("/")
    if uri.startswith("models:/") and name:
        return f"{model_registry.legal_name(name)}-v{number}"
    return f"run-{run_id[:8]}" if run_id else re.sub(r"\W+", "-", escape_control_characters(uri)).strip("-")


def _pictures_of(run_id, classifier, dataset):
    """The pictures to check by, and the run's recipe where there is one."""
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


def _crops(side):
    """`(64, side, side, 3) uint8`: pieces of scikit-learn's two photographs."""
    from sklearn.datasets import load_sample_images

    photographs = [image.repeat(-(-side // min(image.shape[:2])), 0) for image in load_sample_images().images]
    draw, crops = np.random.default_rng(0), []
    for i in range(CROPS):
        photograph = photographs[i % len(photographs)]
        y, x = (draw.integers(0, size - side + 1) for size in photograph.shape[:2])
        crops.append(photograph[y : y + side, x : x + side])
    return np.stack(crops)


def _checked(path, fresh, file_format, classifier, pictures, recipe, int8):
    """What a written model answers beside Keras and the run; raises `LabError` where it is something else."""
    rounded = is_rounded(classifier.model)
    reference = inference_model(classifier.model) if rounded else classifier.model
    run = export_formats.open_model(fresh, file_format)
    here, there = [], []
    for start in range(0, len(pictures.images), BATCH):
        images = np.asarray(pictures.images[start : start + BATCH])
        here.append(reference.predict_on_batch(images))
        there.append(run(images))
    here, there = np.concatenate(here), np.concatenate(there)
    by_image = np.abs(there - here).max(axis=1)
    difference = float(by_image.max())
    if not np.isfinite(there).all() or (difference > TOLERANCE and not int8):
        raise LabError(
            f"Expected the {file_format} file to answer as Keras does, within {TOLERANCE:g}. Received: a probability "
            f"that differs by {difference:.2g} on {pictures.where}. It was removed; use another --format."
        )
    size = sum(file.stat().st_size for file in (fresh.rglob("*") if fresh.is_dir() else [fresh]) if file.is_file())
    shape = f"(N, {classifier.image_size}, {classifier.image_size}, 3) uint8 to (N, {there.shape[1]}) float32"
    lines = [f"{escape_control_characters(path)}: {file_format}{', int8' * int8}, {size / 1e6:.2f} MB, {shape}."]
    said = f"On {pictures.where}: largest difference {difference:.2g} from Keras here"
    found = {}
    if pictures.stored is not None:
        from_run = np.abs(there - pictures.stored.probabilities).max(axis=1)
        expected = np.abs(here - pictures.stored.probabilities).max(axis=1)
        if expected.mean() > STRANGE:
            raise LabError(
                f"Expected the model to answer as its run stored it. Received: probabilities that differ by "
                f"{expected.mean():.2g} in the mean over {pictures.where}. Is it the run's model?"
            )
        found = {"from_run": float(from_run.max()), "then": pictures.stored.accuracy}
        said += f", {found['from_run']:.2g} from the stored predictions"
        if rounded or (recipe and recipe.feature_dtype == "float16"):
            said += " (made in half precision, the file in float32)"
        elif expected.max() > TOLERANCE:
            said += f" (Keras here {expected.max():.2g}: other hardware or versions)"
    if pictures.labels is not None:
        found.setdefault("then", float((here.argmax(axis=1) == pictures.labels).mean()))
        found["now"] = float((there.argmax(axis=1) == pictures.labels).mean())
        said += f"; accuracy {found['then']:.2%} then, {found['now']:.2%} now"
        if int8:
            said += f", {100 * (found['now'] - found['then']):+.2f} points by 8-bit integers"
    else:
        same = float((here.argmax(axis=1) == there.argmax(axis=1)).mean())
        said += f"; the same class for {same:.1%}"
    lines.append(said + ".")
    if file_format == "keras" and (foreign := _foreign_layers(classifier.model)):
        lines.append(f"It loads only where the file with {', '.join(foreign)} is imported first: no layers of Keras.")
    return Exported(path, lines, difference, **found)


def _foreign_layers(model):
    names = set()
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            names |= set(_foreign_layers(layer))
        if type(layer).__module__.partition(".")[0] != "keras":
            names.add(type(layer).__name__)
    return sorted(names)
