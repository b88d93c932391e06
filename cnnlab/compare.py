"""Several models on the same data, side by side: trained now as children of one run, or read back from the store."""

import hashlib
import sys
from dataclasses import dataclass

from cnnlab.errors import ArgumentError, LabError
from cnnlab.interrupted import found_of, interrupted_run, training_key
from cnnlab.models import own
from cnnlab.names import markdown, shown
from cnnlab.prepare import build_model, load_for, prepare
from cnnlab.recipe import Recipe
from cnnlab.results import report
from cnnlab.results.result import RunResult
from cnnlab.runner import fit_and_evaluate
from cnnlab.tracking import checkpoints, logged, outbox, read, store
from cnnlab.tracking import run as tracking
from cnnlab.tracking.delivery import recorded, renamed
from cnnlab.tracking.places import is_server
from cnnlab.tracking.provenance import data_tags
from cnnlab.tracking.tags import TRAINING, our_tags


@dataclass(frozen=True)
class Comparison:
    """`run_id` of the run that carries it, `None` where the store may not be written; `results`, a `RunResult` for each
    model; `verdicts`, sentences.
    """

    run_id: str
    results: list[RunResult]
    verdicts: list[str]


def train_model(recipe, restart=False) -> RunResult:
    """Load the data, build the model and run it, as one recipe says, or go on with an equal run that was interrupted.

    Args:
        restart: at the beginning in any case.
    """
    checkpoints.seconds_between()  # a wrong number is said before any work
    store.expect_usable_store()
    with own.pinned([recipe.model]):
        dataset, [prepared] = prepare([recipe])
        with recorded(goes_on=f"train-{training_key(prepared.recipe, dataset)[:12]}") as ids:
            checkpoints.sweep()
            result = _trained(prepared, dataset, tracking.outer_run_id(), restart)
    return renamed(result, ids)


def _trained(prepared, dataset, parent_run_id, restart):
    """`fit_and_evaluate`, in the run of an equal training that was interrupted where there is one."""
    model, resumed = build_model(prepared.recipe, dataset), None  # it may refuse, before anything is in the store
    if not restart:
        place = tracking.experiment_for(dataset), parent_run_id
        resumed = interrupted_run(prepared.recipe, dataset, *place, kind="train", reproduces=None)
    given = {"tags": prepared.tags, "parent_run_id": parent_run_id, "resume_run_id": resumed}
    return fit_and_evaluate(model, dataset, prepared.recipe, **given)


def resume_run(run_id) -> RunResult:
    """Go on with a run that was interrupted.

    Args:
        run_id: whole or its first characters.

    Raises:
        ArgumentError: there is no such run, it is none of a single model, it is finished, or its data or files changed.
        LabError: it has no checkpoint, a damaged one, or another process works on it.
    """
    again, run_id = (outbox.recorded_run(run_id) if is_server(store.address()) else None) or (None, run_id)
    with recorded(directly=again is None, again=again) as ids:
        run = read.find_interrupted_run(run_id)
        recipe = Recipe.from_json(found_of(run.info.run_id).about["recipe"])
        with own.pinned([recipe.model]):
            dataset, [prepared] = prepare([recipe])
            model = build_model(prepared.recipe, dataset)
            result = fit_and_evaluate(model, dataset, prepared.recipe, resume_run_id=run.info.run_id)
    return renamed(result, ids)


def compare_models(recipes, restart=False) -> Comparison:
    """Train each recipe on the same data as children of one parent run that carries the comparison.

    Where the newest comparison of these recipes on this data was interrupted, it goes on: what it has trained stays.

    Args:
        recipes: `Recipe`s that agree in their data fields (those of the first are used).
        restart: train all from the beginning in any case.
    """
    if len(set(recipes)) < len(recipes):
        raise ArgumentError("Expected different models or seeds. Received one twice. Leave it out, or use --seeds.")
    checkpoints.seconds_between()  # a wrong number is said before any work
    store.expect_usable_store()
    with own.pinned([recipe.model for recipe in recipes]):
        return _compare_models(recipes, restart)


def _compare_models(recipes, restart):
    dataset, prepared = prepare(recipes)
    keys = "".join(training_key(one.recipe, dataset) for one in prepared)
    key = hashlib.sha256(keys.encode()).hexdigest()[:32]
    with recorded(goes_on=f"compare-{key[:12]}") as ids:
        checkpoints.sweep()
        comparison = _compare_prepared(recipes, dataset, prepared, key, restart)
    return renamed(comparison, ids)


def _compare_prepared(recipes, dataset, prepared, key, restart):
    names = " and ".join(dict.fromkeys(recipe.label for recipe in recipes))
    experiment_id = tracking.experiment_for(dataset)
    resumed = None if restart else read.newest_run(experiment_id, interrupted=True, kind="compare", training=key)
    if resumed:
        print(f"Going on with comparison {resumed[:8]}, which was interrupted.", flush=True)
    with tracking.tracked_run(
        experiment_id,
        f"compare {names}",
        params={},
        tags={"kind": "compare", "figure": report.CURVES, TRAINING: key, **data_tags(dataset)},
        description=f"{markdown(names)} on the same **{markdown(dataset.name)}** images; the runs below it are the "
        "models.",
        resumed_run_id=resumed,
    ) as parent_run_id:
        # Built one at a time: several models in memory are not needed.
        before = read.children_of(parent_run_id, experiment_id) if resumed else []
        results = [
            _trained_already(one, dataset, before, experiment_id, parent_run_id)
            or _trained(one, dataset, parent_run_id, restart)
            for one in prepared
        ]
        verdicts, figures, texts = report.comparison(results, dataset.test.images)
        logged.log_results({}, figures, texts)
        tracking.describe_run(texts[report.VERDICTS])
    return Comparison(parent_run_id, results, verdicts)


def _trained_already(prepared, dataset, before, experiment_id, parent_run_id):
    """The result of the run below a comparison that was interrupted, where it is finished; where it can neither be read
    nor gone on with, it is deleted, so that none counts twice.
    """
    key = training_key(prepared.recipe, dataset) if before else None
    for run in before:
        if run["tags"].get(TRAINING) != key:
            continue
        if run["status"] == "FINISHED":
            result = read.read_result(read.find_finished_run(run["run_id"]))
            print(f"{result.name}: trained already, as run {result.run_id[:8]}.", flush=True)
            return result
        if run["run_id"] not in checkpoints.interrupted_runs(experiment_id, parent_run_id):
            tracking.delete_run(run["run_id"])
    return None


def compare_runs(run_ids) -> Comparison:
    """Compare runs of the store on their stored test predictions; the comparison becomes a run of its own.

    Args:
        run_ids: at least two, whole or the first characters.

    Raises:
        ArgumentError: a run is unknown or unfinished, or they were tested on different images.
        LabError: a run's predictions are gone.
    """
    with store.opened(writes=False):
        return _compare_runs(run_ids)


def _compare_runs(run_ids):
    found = {run.info.run_id: run for run in map(read.find_finished_run, run_ids)}
    if len(found) < 2:
        raise ArgumentError("Expected at least two different runs to compare. Received one. Name another.")
    results = [read.read_result(run) for run in found.values()]
    for r in results[1:]:
        if r.test.digest != results[0].test.digest:
            raise ArgumentError(
                f"Expected runs that were tested on the same images. Received: {results[0].run_id[:8]} on "
                f"{len(results[0].test.labels):,} images of {results[0].dataset_name}, {r.run_id[:8]} on "
                f"{len(r.test.labels):,} others of {r.dataset_name}. Train them with the same dataset, "
                "picture_size, limit and split_seed."
            )
    verdicts, figures, texts = report.comparison(results, _test_images(results[0]))
    if store.is_read_only():
        return Comparison(None, results, verdicts)
    with recorded(experiment_id=next(iter(found.values())).info.experiment_id) as ids:
        comparison = _record_comparison(found, results, verdicts, figures, texts)
    return renamed(comparison, ids)


def _record_comparison(found, results, verdicts, figures, texts):
    first = next(iter(found.values()))
    names = " and ".join(r.run_id[:6] for r in results)
    data = {key: value for key, value in our_tags(first.data.tags).items() if key.startswith("dataset")}
    with tracking.tracked_run(
        tracking.experiment_here(first.info.experiment_id),
        f"compare {names}",
        params={},
        tags={"kind": "compare", "figure": report.CURVES, "runs": ",".join(found), **data},
        description=f"The stored runs {names}, on their stored predictions.",
    ) as run_id:
        logged.log_results({}, figures, texts)
        tracking.describe_run(texts[report.VERDICTS])
    return Comparison(run_id, results, verdicts)


def _test_images(result):
    """The test images that a run saw, or `None` with a warning where they are not to be had any more."""
    try:
        test = load_for(result.recipe).test
        reason = None if test.digest == result.test.digest else "its images are others now"
    except LabError as error:
        reason = str(error)
    if reason is None:
        return test.images
    where = shown(result.recipe.dataset)
    print(f"warning: no grid of disagreements, since {where} cannot be read: {reason}", file=sys.stderr)
    return None
