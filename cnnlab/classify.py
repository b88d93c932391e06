"""Name what is in pictures with a logged or registered model."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cnnlab.data.decoding import SIXTEEN_BITS, decode_image
from cnnlab.data.folder_scan import describe_left_out, scan_folder
from cnnlab.errors import ArgumentError, LabError
from cnnlab.tracking import logged_models as stored_models
from cnnlab.tracking import mlflow_store, model_registry, run_queries
from cnnlab.utils.downloads import URLS, fetch
from cnnlab.utils.log import log
from cnnlab.utils.signals import signals_held
from cnnlab.utils.text import csv_line, escape_control_characters

BATCH = 256  # pictures in memory at a time
MOST_BYTES = 2**28  # of a picture at a URL


@dataclass(frozen=True)
class Classifier:
    """A loaded model and what its output means.

    Attributes:
        uri: where it was loaded from.
        model: `keras.Model`, `(N, image_size, image_size, 3) uint8` to `(N, num_classes)` probabilities.
        class_names: of the probabilities, from the model's own metadata.
        image_size: pixels a side.
        resize_mode, grey_range: how a picture becomes an image of that size, as the training had it.
    """

    uri: str
    model: object
    class_names: tuple[str, ...]
    image_size: int
    resize_mode: str = "stretch"
    grey_range: tuple[float, float] = SIXTEEN_BITS

    def image(self, file, **bounds) -> np.ndarray:
        """One picture, a path or its bytes, as `(image_size, image_size, 3) uint8`; raises as `decode_image`."""
        return decode_image(file, self.image_size, resize_mode=self.resize_mode, grey_range=self.grey_range, **bounds)

    def probabilities(self, images) -> np.ndarray:
        """`(N, H, W, 3) uint8` to `(N, num_classes) float32`."""
        with signals_held():
            return np.asarray(self.model.predict_on_batch(images))

    def top(self, probabilities, count) -> list[tuple[str, float]]:
        """The most probable classes of one picture, `(name, probability)`, best first."""
        order = np.argsort(-probabilities, kind="stable")[:count]
        return [(self.class_names[i], float(probabilities[i])) for i in order]


def load_classifier(model=None) -> Classifier:
    """Load a model by URI, that of a run by its id, or the champion of a registered model, named or the only one.

    Raises:
        LabError: the registry is empty, has no such model or alias, or the model does not carry its class names.
    """
    with mlflow_store.opened(writes=False):
        uri = stored_models.pinned(_uri(model))
        loaded, about = stored_models.load(uri)
    return Classifier(
        uri,
        loaded,
        tuple(about["class_names"]),
        loaded.input_shape[1],
        about.get("fit") or "stretch",  # of a named set, and before there was a choice
        tuple(about.get("grey_range") or SIXTEEN_BITS),
    )


def _uri(model):
    if model and ":/" in model:
        return model
    if model and re.fullmatch("[0-9a-f]{4,32}", model) and model not in model_registry.names():
        return run_queries.read_result(run_queries.find_finished_run(model)).model_uri
    return model_registry.champion_uri(model)


def list_pictures(paths) -> list[str]:
    """Files and URLs as they are, and the pictures in folders and their subfolders, sorted.

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
            raise ArgumentError(f"Expected pictures or folders of them. Received: '{path}', which does not exist.")
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


def classify_files(classifier, files):
    """Classify pictures, a batch in memory at a time.

    Yields:
        `(file, probabilities)` in order; in place of `(num_classes,)` probabilities a `LabError` for a file that does
        not decode.
    """

    def decode(file):
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


def write_predictions(rows, file_format, count, width):
    """Predictions as lines of text, one picture at a time.

    Args:
        rows: iterable of `(file, [(class name, probability), ...])`.
        file_format: "table", "csv" or "json", which is one array.
        count: classes a picture.
        width: of the longest file name, for the table.

    Yields:
        Text, to be written as it is.
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
