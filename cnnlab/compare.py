"""Several models on the same data, side by side: trained now as children of one run, or read back from the store."""

import dataclasses
import sys
from pathlib import Path

from cnnlab import precision, runs, store, tracking
from cnnlab.data import CLASS_NAMES, digest_of, load_dataset
from cnnlab.errors import ArgumentError, LabError
from cnnlab.models import build_model
from cnnlab.provenance import data_tags
from cnnlab.report import CURVES, log_comparison
from cnnlab.runner import RunResult, fit_and_evaluate


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
        `(recipe, tags)`, the recipe naming the weights and the precision that are really used, and files by their full
        path, so that it can be repeated from another folder.
    """
    recipe = dataclasses.replace(
        recipe,
        precision=precision.resolve(recipe.precision),
        dataset=_full_path(recipe.dataset, CLASS_NAMES),
        weights=_full_path(recipe.weights, ("imagenet", "random")),
    )
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


@dataclasses.dataclass(frozen=True)
class Comparison:
    """`run_id` of the run that carries it; `results`, a `RunResult` for each model; `verdicts`, sentences."""

    run_id: str
    results: list[RunResult]
    verdicts: list[str]


def compare_models(recipes) -> Comparison:
    """Train each recipe on the same data as children of one parent run that carries the comparison.

    Args:
        recipes: `Recipe`s that agree in their data fields (those of the first are used).
    """
    store.expect_usable_store()
    dataset = load_for(recipes[0])
    resolved = _resolve_all(recipes, dataset)
    store.open_store()
    names = " and ".join(dict.fromkeys(recipe.model for recipe in recipes))
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
        verdicts = log_comparison(results, dataset.test_images)
    return Comparison(parent_run_id, results, verdicts)


def compare_runs(run_ids) -> Comparison:
    """Compare runs of the store on their stored test predictions; the comparison becomes a run of its own.

    Args:
        run_ids: at least two, whole or the first characters.

    Raises:
        ArgumentError: a run is unknown or unfinished, or they were tested on different images.
        LabError: a run's predictions are gone.
    """
    store.open_store()
    found = {run.info.run_id: run for run in map(runs.find_finished_run, run_ids)}
    if len(found) < 2:
        raise ArgumentError("Expected at least two different runs to compare. Received one. Name another.")
    first = next(iter(found.values()))
    results = [runs.read_result(run) for run in found.values()]
    for r in results[1:]:
        if r.test.digest != results[0].test.digest:
            raise ArgumentError(
                f"Expected runs that were tested on the same images. Received: {results[0].run_id[:8]} on "
                f"{len(results[0].test.labels):,} images of {results[0].dataset_name}, {r.run_id[:8]} on "
                f"{len(r.test.labels):,} others of {r.dataset_name}. Train them with the same dataset, "
                "image_size, limit and split_seed."
            )
    names = " and ".join(r.run_id[:6] for r in results)
    data = {key: value for key, value in store.our_tags(first.data.tags).items() if key.startswith("dataset")}
    with tracking.tracked_run(
        first.info.experiment_id,
        f"compare {names}",
        params={},
        tags={"kind": "compare", "figure": CURVES, "runs": ",".join(found), **data},
        description=f"The stored runs {names}, on their stored predictions.",
    ) as run_id:
        verdicts = log_comparison(results, _test_images(results[0]))
    return Comparison(run_id, results, verdicts)


def _resolve_all(recipes, dataset):
    """`resolve` for each recipe, once for those that differ only in what building cannot fail at."""
    known = {}
    resolved = []
    for recipe in recipes:
        kind = dataclasses.replace(recipe, learning_rate=1.0, weight_decay=0.0, dropout=0.0, seed=0)
        if kind not in known:
            known[kind] = resolve(kind, dataset)
        used, tags = known[kind]
        same = {name: getattr(used, name) for name in ("dataset", "weights", "precision")}
        resolved.append((dataclasses.replace(recipe, **same), tags))
    return resolved


def _test_images(result):
    """The test images that a run saw, or `None` with a warning where they are not to be had any more."""
    try:
        dataset = load_for(result.recipe)
        digest = digest_of(dataset.class_names, dataset.test_images, dataset.test_labels)
        reason = None if digest == result.test.digest else "its images are others now"
    except LabError as error:
        reason = str(error)
    if reason is None:
        return dataset.test_images
    print(f"warning: no grid of disagreements, since {result.recipe.dataset} cannot be read: {reason}", file=sys.stderr)
    return None


def _full_path(value, names):
    return value if value is None or value in names or not Path(value).exists() else str(Path(value).resolve())
