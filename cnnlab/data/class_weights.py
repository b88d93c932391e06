"""Read and check the class weights of the loss: "none", "balanced", or a JSON file of class names and numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.utils.class_weight import compute_class_weight

from cnnlab.errors import ArgumentError, did_you_mean, expect_one_of, first_line


def class_weights(
    given: str | None, labels: npt.NDArray[np.int64], class_names: Sequence[str]
) -> npt.NDArray[np.float32] | None:
    """Compute the weight of each class in the loss.

    Args:
        given: "none", "balanced" (number of images / (classes * images of the class), as in scikit-learn), or JSON of
            class names and numbers; classes that it does not name have the weight 1.
        labels: `(N,)` integers, of the training images.
        class_names: C names.

    Returns:
        `(C,) float32`, or `None` where all classes have the same weight.
    """
    given = read_class_weights(given, class_names)
    if given in (None, "none"):
        return None
    weights = np.ones(len(class_names), "float32")
    if given == "balanced":
        present = np.unique(labels)
        weights[present] = compute_class_weight("balanced", classes=present, y=labels)
    else:
        for name, weight in json.loads(given).items():
            weights[class_names.index(name)] = weight
    return weights


def read_class_weights(given: str | None, class_names: Sequence[str]) -> str | None:
    """Read and check a recipe's `class_weights`; a file's path is replaced by the JSON in the file.

    Raises:
        ArgumentError: there is no such file, it is not JSON, it names other classes or one twice, or its numbers are
            no weights.
    """
    if given in (None, "none", "balanced"):
        return given
    text = given
    if not given.startswith("{"):
        if not Path(given).is_file():
            raise ArgumentError(
                "Expected class_weight to be none, balanced, an existing JSON file, or class names and numbers "
                f"({{\"cat\": 2.0}}). Received: '{given}'."
                + did_you_mean(given, ("none", "balanced"), lambda path: path.suffix == ".json")
            )
        text = Path(given).read_text(encoding="utf-8", errors="replace")
        if text in ("none", "balanced"):
            return text
    try:
        pairs = json.loads(text, object_pairs_hook=list)  # a dict would hide a name that comes twice
    except ValueError as error:
        raise ArgumentError(f"Expected '{given}' to be JSON. Received: {first_line(error)}.") from None
    if not isinstance(pairs, list) or not pairs or not all(isinstance(pair, tuple) for pair in pairs):
        raise ArgumentError(f'Expected class_weight to be class names and numbers, {{"cat": 2.0}}. Received: {text}.')
    for name, weight in pairs:
        expect_one_of("a class of class_weight", name, class_names, shown=list(class_names[:10]))
        if type(weight) not in (int, float) or not 0 <= weight <= float(np.finfo("float32").max):
            raise ArgumentError(f"Expected the weight of {name} to be a number from 0 upwards. Received: {weight!r}.")
    weights = dict(pairs)
    if len(weights) < len(pairs):
        twice = next(name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i]))
        raise ArgumentError(f"Expected one weight for each class. Received: two for '{twice}'. Leave one out.")
    if len(weights) == len(class_names) and not np.array(list(weights.values()), "float32").any():
        raise ArgumentError("Expected a class weight above 0. Received: 0 for all, with which nothing is learnt.")
    return json.dumps(weights)
