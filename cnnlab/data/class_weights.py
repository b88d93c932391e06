"""How much each class counts in the loss."""

import json
from pathlib import Path

import numpy as np
from sklearn.utils.class_weight import compute_class_weight

from cnnlab.errors import ArgumentError, expect_one_of, first_line


def class_weights(given, labels, class_names):
    """`(C,) float32`, or `None` where all classes count the same.

    Args:
        given: "none", "balanced" (number of images / (classes * images of the class), as scikit-learn has it), or JSON
            of class names and numbers.
        labels: `(N,)` integers, of the training images.
        class_names: C names.
    """
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


def read_class_weights(given, class_names) -> str:
    """What a recipe's `class_weights` says for these classes: a file's content in place of its path.

    Raises:
        ArgumentError: no such file, or not of JSON, or of other classes.
    """
    if given in (None, "none", "balanced") or given.startswith("{"):
        text = given
    elif not Path(given).is_file():
        raise ArgumentError(
            f"Expected class_weight to be none, balanced or an existing JSON file. Received: '{given}'."
        )
    else:
        text = Path(given).read_text(encoding="utf-8")
    if text in (None, "none", "balanced"):
        return text
    try:
        weights = json.loads(text)
    except ValueError as error:
        raise ArgumentError(f"Expected '{given}' to be JSON. Received: {first_line(error)}.") from None
    if not isinstance(weights, dict) or not weights:
        raise ArgumentError(f'Expected class_weight to be class names and numbers, {{"cat": 2.0}}. Received: {text}.')
    for name, weight in weights.items():
        expect_one_of("a class of class_weight", name, class_names, shown=list(class_names[:10]))
        if not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
            raise ArgumentError(f"Expected the weight of {name} to be a number from 0 upwards. Received: {weight!r}.")
    return json.dumps(weights)
