"""Classify picture files with a logged or registered model, for `cnnlab predict`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from cnnlab.data.decoding import SIXTEEN_BITS
from cnnlab.data.folder_scan import describe_left_out, scan_folder
from cnnlab.errors import ArgumentError, LabError, did_you_mean
from cnnlab.evaluation.classifier import Classifier
from cnnlab.tracking import logged_models as stored_models
from cnnlab.tracking import model_registry, run_queries
from cnnlab.tracking.session import opened_store
from cnnlab.utils.downloads import URLS, fetch
from cnnlab.utils.log import log
from cnnlab.utils.text import csv_line, escape_control_characters

BATCH = 256  # pictures in memory at a time
MOST_BYTES = 2**28  # of a picture at a URL


def load_classifier(model: str | None = None) -> Classifier:
    """Load a model by URI, that of a run by its id, or the champion of a registered model, named or the only one.

    Args:
        model: a registered model's name, a run's id, a URI, or a `.keras` file that cnnlab exported.

    Raises:
        LabError: the registry is empty, has no such model or alias, or the model does not carry its class names.

    Example:
        result = cnnlab.train_model(cnnlab.Recipe(dataset="digits", limit=150, filters=(8, 8), epochs=1))
        classifier = cnnlab.load_classifier(result.run_id)
        images = cnnlab.load_dataset("digits", limit=150).test.images
        print(classifier.top(classifier.probabilities(images)[0], 3))
    """
    if model and model.endswith(".keras"):
        uri, (loaded, about) = model, stored_models.load_exported(model)
    else:
        with opened_store(writes=False):
            uri = stored_models.pinned(_uri(model))
            loaded, about = stored_models.load(uri)
    low, high = about.get("grey_range") or SIXTEEN_BITS
    resize_mode = about.get("fit") or "stretch"  # of a named set, and before there was a choice
    return Classifier(uri, loaded, tuple(about["class_names"]), loaded.input_shape[1], resize_mode, (low, high))


def predict(
    pictures: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], model: str | Classifier | None = None
) -> list[tuple[str, list[tuple[str, float]] | LabError]]:
    """Name what is in pictures.

    Args:
        pictures: a file, a folder of pictures or a URL, or several of them.
        model: a loaded `Classifier`, or which one to load, as `load_classifier` takes it.

    Returns:
        `(file, [(class name, probability), ...])` for each picture, in order, the most probable class first. A picture
        that does not decode has a `LabError` in place of the list.

    Raises:
        ArgumentError: a path does not exist, or a folder holds no pictures.
        LabError: the model cannot be loaded.

    Example:
        result = cnnlab.train_model(cnnlab.Recipe(dataset="digits", limit=150, filters=(8, 8), epochs=1))
        keras.utils.save_img("seven.png", cnnlab.load_dataset("digits", limit=150).test.images[0])
        [(file, classes)] = cnnlab.predict("seven.png", result.run_id)
        print(file, classes[0])
    """
    classifier = model if isinstance(model, Classifier) else load_classifier(model)
    paths = [pictures] if isinstance(pictures, (str, os.PathLike)) else pictures
    every_class = len(classifier.class_names)
    return [
        (file, answer if isinstance(answer, LabError) else classifier.top(answer, every_class))
        for file, answer in classify_files(classifier, list_pictures(paths))
    ]


def _uri(model: str | None) -> str:
    if model and ":/" in model:
        return model
    if model and re.fullmatch("[0-9a-f]{4,32}", model) and model not in model_registry.names():
        uri = run_queries.read_result(run_queries.find_finished_run(model)).model_uri
        assert uri, "a finished run has a model"
        return uri
    return model_registry.champion_uri(model)


def list_pictures(paths: Iterable[str | os.PathLike[str]]) -> list[str]:
    """List picture files: files and URLs as they are, and the pictures in folders and their subfolders, sorted.

    Raises:
        ArgumentError: a path does not exist, or a folder holds no pictures.
    """
    found = []
    for path in paths:
        if str(path).startswith(URLS):
            found.append(str(path))
            continue
        path = Path(path)
        if not path.exists():
            expected = f"Expected pictures or folders of them. Received: '{path}', which does not exist."
            raise ArgumentError(expected + did_you_mean(path, files=Path.exists))
        if not path.is_dir():
            found.append(str(path))
            continue
        listing = scan_folder(path)
        if left_out := escape_control_characters(describe_left_out(listing.left_out)):
            log.warning(f"left out of {escape_control_characters(path)}: {left_out}.")
        if not len(listing.files):
            raise ArgumentError(f"Expected '{path}' to hold pictures. Received: none.")
        found.extend(str(path / file) for file in listing.files)  # a path of pathlib takes ten times the memory
    return found


def classify_files(
    classifier: Classifier, files: Sequence[str]
) -> Iterator[tuple[str, npt.NDArray[np.float32] | LabError]]:
    """Classify picture files and URLs in order, with one batch in memory at a time.

    Each comes with its probabilities `(num_classes,)`, or with a `LabError` where it does not decode.
    """

    def decode(file: str) -> npt.NDArray[np.uint8] | LabError:
        try:
            return classifier.image(fetch(file, MOST_BYTES) if str(file).startswith(URLS) else file)
        except LabError as error:
            return error

    with ThreadPoolExecutor() as pool:  # Pillow decodes outside Python's lock
        for start in range(0, len(files), BATCH):
            chunk = files[start : start + BATCH]
            images = list(pool.map(decode, chunk))
            readable = [image for image in images if not isinstance(image, LabError)]
            predicted = iter(classifier.probabilities(np.stack(readable)) if readable else ())
            for file, image in zip(chunk, images, strict=True):
                yield file, image if isinstance(image, LabError) else next(predicted)


def write_predictions(
    rows: Iterable[tuple[str, Sequence[tuple[str, float]]]],
    file_format: Literal["table", "csv", "json"],
    count: int,
    width: int,
) -> Iterator[str]:
    """Format predictions as text, one picture at a time; "json" is one array.

    Args:
        rows: `(file, [(class name, probability), ...])` of each picture, of its `count` most probable classes.
        width: number of characters for the file names of the table.
    """
    if file_format == "csv":
        yield csv_line(["file", *(f"{what}_{i}" for i in range(1, count + 1) for what in ("class", "probability"))])
    started = False
    for file, best in rows:
        if file_format == "csv":
            yield csv_line([file, *(value for name, p in best for value in (name, f"{p:.6f}"))])
        elif file_format == "json":
            predictions = [{"class": name, "probability": round(p, 6)} for name, p in best]
            yield (",\n" if started else "[\n") + json.dumps({"file": str(file), "predictions": predictions})
        else:
            yield f"{file!s:{width}}  " + "  ".join(f"{name} {p:.1%}" for name, p in best) + "\n"
        started = True
    if file_format == "json":
        yield "\n]\n" if started else "[]\n"
