"""Several models on the same data, side by side: a parent run, a child each, a table and overlaid figures."""

import csv
import dataclasses
import io
import sys

import numpy as np

from cnnlab import precision, store, tracking
from cnnlab.data import load_dataset
from cnnlab.errors import LabError
from cnnlab.models import build_model
from cnnlab.runner import RunResult, data_tags, fit_and_evaluate

COLUMNS = ("model", "test_accuracy", "test_loss", "params", "trainable_params", "train_seconds", "run_id")
CURVES = "comparison_curves.png"


def load_for(recipe):
    """The data set that a recipe asks for."""
    return load_dataset(
        recipe.dataset,
        image_size=recipe.image_size,
        val_fraction=recipe.val_fraction,
        limit=recipe.limit,
        seed=recipe.split_seed,
    )


def resolve(recipe, dataset):
    """Build the recipe's model once, to know before any training that it builds and what it is built with.

    Weights that nobody named and that cannot be downloaded become random ones, with a warning.

    Returns:
        `(recipe, tags)`, the recipe naming the weights and the precision that are really used.
    """
    recipe = dataclasses.replace(recipe, precision=precision.resolve(recipe.precision))
    if recipe.model != "vgg16" or recipe.weights is not None:
        build_model(recipe, dataset)
        return recipe, {}
    try:
        recipe = dataclasses.replace(recipe, weights="imagenet")
        build_model(recipe, dataset)
        return recipe, {}
    except LabError as error:
        if error.exit_code == 2:
            raise
        print(
            "warning: VGG16's ImageNet weights cannot be downloaded; using random ones, so expect a poor score "
            "(name --weights to choose).",
            file=sys.stderr,
        )
        return dataclasses.replace(recipe, weights="random"), {"weights_stand_in_for": "imagenet"}


def train_model(recipe) -> RunResult:
    """Load the data, build the model and run it, as one recipe says."""
    store.expect_usable_store()
    dataset = load_for(recipe)
    recipe, tags = resolve(recipe, dataset)
    return fit_and_evaluate(build_model(recipe, dataset), dataset, recipe, tags=tags)


def compare_models(recipes) -> tuple[str, list[RunResult]]:
    """Train each recipe on the same data as children of one parent run that carries the comparison.

    Args:
        recipes: `Recipe`s that agree in their data fields (those of the first are used).

    Returns:
        The parent's run id and a `RunResult` for each recipe.
    """
    store.expect_usable_store()
    dataset = load_for(recipes[0])
    resolved = _resolve_all(recipes, dataset)
    store.open_store()
    names = " and ".join(recipe.model for recipe in recipes)
    with tracking.tracked_run(
        tracking.experiment_for(dataset),
        f"compare {names}",
        params={},
        tags={"kind": "compare", "figure": CURVES, **data_tags(dataset)},
        description=f"{names} on the same **{dataset.name}** images; the runs below it are the models.",
    ) as parent_run_id:
        # Built one at a time: several models in memory are not needed.
        results = [
            fit_and_evaluate(build_model(recipe, dataset), dataset, recipe, parent_run_id=parent_run_id, tags=tags)
            for recipe, tags in resolved
        ]
        log_comparison(results, dataset)
    return parent_run_id, results


def _resolve_all(recipes, dataset):
    """`resolve` for each recipe, once for those that differ only in what building cannot fail at."""
    known = {}
    resolved = []
    for recipe in recipes:
        kind = dataclasses.replace(recipe, learning_rate=1.0, weight_decay=0.0, dropout=0.0, seed=0)
        if kind not in known:
            known[kind] = resolve(kind, dataset)
        used, tags = known[kind]
        resolved.append((dataclasses.replace(recipe, weights=used.weights, precision=used.precision), tags))
    return resolved


def log_comparison(results, dataset) -> None:
    """Put the table and the overlaid figures on the active run."""
    from sklearn.metrics import confusion_matrix

    from cnnlab import plots

    classes = np.arange(len(dataset.class_names))
    named = dict(zip(labels_of(results), results, strict=True))
    matrices = {
        f"{label} ({r.test_accuracy:.1%})": confusion_matrix(
            dataset.test_labels, r.test_probabilities.argmax(axis=1), labels=classes
        )
        for label, r in named.items()
    }
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(COLUMNS)
    writer.writerows(rows(results))
    tracking.log_results(
        metrics={},
        figures={
            CURVES: plots.curves({label: r.history for label, r in named.items()}),
            "comparison_confusion.png": plots.confusion_matrices(matrices, dataset.class_names),
        },
        texts={"comparison.csv": table.getvalue()},
    )


def labels_of(results) -> list[str]:
    """A label for each result: its model, numbered where several have the same."""
    models = [r.recipe.model for r in results]
    return [
        model if models.count(model) == 1 else f"{model} {models[:i].count(model) + 1}"
        for i, model in enumerate(models)
    ]


def rows(results) -> list[tuple]:
    """The comparison as rows of `COLUMNS`."""
    return [
        (
            r.recipe.model,
            round(r.test_accuracy, 4),
            round(r.test_loss, 4),
            r.params,
            r.trainable_params,
            round(r.train_seconds, 1),
            r.run_id,
        )
        for r in results
    ]
