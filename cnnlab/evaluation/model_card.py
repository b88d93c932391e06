"""Write the model card of a registered model version in Markdown (after Mitchell et al., 2019, arXiv:1810.03993)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader

from cnnlab.evaluation import statistics
from cnnlab.evaluation.predictions import Predictions
from cnnlab.evaluation.run_result import RunResult
from cnnlab.utils.text import markdown

RESIZED = {"crop": "cut to their middle square and scaled", "pad": "padded to a square and scaled"}
MOST_CLASSES = 20  # in the tables of a card
CONFUSIONS = 10  # that are listed where there are more classes


def model_card(result: RunResult, tags: Mapping[str, str]) -> str:
    """Write data, recipe, scores with intervals, confusion matrix, intended use and limits of a model.

    Args:
        result: with predictions of the test and validation images.
        tags: of its run, by their names without the prefix "cnnlab.".

    Returns:
        The text of templates/model_card.md with the values of this model.
    """
    test, recipe = result.test, result.recipe
    assert test is not None
    low, high = test.interval
    *_, calibration_error = statistics.calibration(test.probabilities, test.labels)
    others = {name.replace("_", " "): value for name, value in test.scores.items() if name != "accuracy"}
    environment = Environment(loader=PackageLoader("cnnlab.evaluation"), trim_blocks=True, keep_trailing_newline=True)
    environment.filters |= {
        "markdown": markdown,
        "percent": lambda share, digits: f"{share:.{digits}%}",
        "thousands": "{:,}".format,
    }
    return environment.get_template("model_card.md").render(
        result=result,
        test=test,
        tags=tags,
        low=low,
        high=high,
        other_scores=[f"{name} {value:.2%}" for name, value in others.items()],
        on_test=tags["validation"] == "test set",
        class_table=_class_table(test, result.class_names),
        confusion_table=_confusion_table(test, result.class_names),
        resized=RESIZED.get(recipe.resize_mode or "", "stretched"),
        size=recipe.stored_size or recipe.image_size,
        calibration_error=calibration_error,
    )


def _class_table(test: Predictions, names: tuple[str, ...]) -> list[tuple[Any, ...]]:
    """List the scores of at most 20 classes, the lowest recall first, below a row of headings."""
    precision, recall, f1, count = test.by_class
    rows: list[tuple[Any, ...]] = [("class", "precision", "recall", "F1", "test images")]
    order = np.argsort(recall)
    for i in order[:MOST_CLASSES]:
        rows.append((names[i], *(f"{value:.1%}" for value in (precision[i], recall[i], f1[i])), count[i]))
    if more := len(order[MOST_CLASSES:]):
        rows.append((f"{more} more classes", "", f"{recall[order[MOST_CLASSES]]:.1%} and more", "", ""))
    return rows


def _confusion_table(test: Predictions, names: tuple[str, ...]) -> list[tuple[Any, ...]]:
    """List the confusion matrix, rows true and columns predicted; beyond 20 classes the ten commonest confusions."""
    matrix = test.confusion
    if len(names) <= MOST_CLASSES:
        counts = zip(names, matrix.tolist(), strict=True)
        return [("true \\ predicted", *names), *((name, *row) for name, row in counts)]
    wrong = matrix * (1 - np.eye(len(names), dtype=int))
    order = np.argsort(wrong, axis=None)[::-1][:CONFUSIONS]
    pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [("true", "predicted", "images"), *((names[i], names[j], wrong[i, j]) for i, j in pairs)]
