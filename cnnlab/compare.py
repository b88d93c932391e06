"""Several models on the same data, side by side: trained now as children of one run, or read back from the store."""

import hashlib
from dataclasses import dataclass

from cnnlab.errors import ArgumentError, LabError
from cnnlab.evaluation import comparison_report
from cnnlab.evaluation.run_result import RunResult
from cnnlab.models import custom_model
from cnnlab.resolve import load_for, prepare
from cnnlab.resume import training_key
from cnnlab.tracking import checkpoint_files, mlflow_store, run_logging, run_queries
from cnnlab.tracking import tracked_run as tracking
from cnnlab.tracking.offline.delivery import recorded, renamed
from cnnlab.tracking.provenance import data_tags
from cnnlab.tracking.tag_names import TRAINING, our_tags
from cnnlab.train import train_prepared
from cnnlab.utils.log import log
from cnnlab.utils.text import escape_control_characters, markdown


@dataclass(frozen=True)
class Comparison:
    """`run_id` of the run that carries it, `None` where the store may not be written; `results`, a `RunResult` for each
    model; `verdicts`, sentences.
    """

    run_id: str
    results: list[RunResult]
    verdicts: list[str]


def compare_models(recipes, restart=False) -> Comparison:
    """Train each recipe on the same data as children of one parent run that carries the comparison.

    Where the newest comparison of these recipes on this data was interrupted, it goes on: what it has trained stays.

    Args:
        recipes: `Recipe`s that agree in their data fields (those of the first are used).
        restart: train all from the beginning in any case.
    """
    if len(set(recipes)) < len(recipes):
        raise ArgumentError("Expected different models or seeds. Received one twice. Leave it out, or use --seeds.")
    checkpoint_files.seconds_between()  # a wrong number is said before any work
    mlflow_store.expect_usable_store()
    with custom_model.pinned_sources([recipe.model for recipe in recipes]):
        return _compare_models(recipes, restart)


def _compare_models(recipes, restart):
    dataset, prepared = prepare(recipes)
    keys = "".join(training_key(one.recipe, dataset) for one in prepared)
    key = hashlib.sha256(keys.encode()).hexdigest()[:32]
    with recorded(goes_on=f"compare-{key[:12]}") as ids:
        checkpoint_files.sweep()
        comparison = _compare_prepared(recipes, dataset, prepared, key, restart)
    return renamed(comparison, ids)


def _compare_prepared(recipes, dataset, prepared, key, restart):
    names = " and ".join(dict.fromkeys(recipe.label for recipe in recipes))
    experiment_id = tracking.experiment_for(dataset)
    resumed = None if restart else run_queries.newest_run(experiment_id, interrupted=True, kind="compare", training=key)
    if resumed:
        log.info(f"Going on with comparison {resumed[:8]}, which was interrupted.")
    with tracking.tracked_run(
        experiment_id,
        f"compare {names}",
        params={},
        tags={"kind": "compare", "figure": comparison_report.CURVES, TRAINING: key, **data_tags(dataset)},
        description=f"{markdown(names)} on the same **{markdown(dataset.name)}** images; the runs below it are the "
        "models.",
        resumed_run_id=resumed,
    ) as parent_run_id:
        # Built one at a time: several models in memory are not needed.
        before = run_queries.children_of(parent_run_id, experiment_id) if resumed else []
        results = [
            _trained_already(one, dataset, before, experiment_id, parent_run_id)
            or train_prepared(one, dataset, parent_run_id, restart)
            for one in prepared
        ]
        verdicts, figures, texts = comparison_report.comparison(results, dataset.test.images)
        run_logging.log_results({}, figures, texts)
        tracking.describe_run(texts[comparison_report.VERDICTS])
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
            result = run_queries.read_result(run_queries.find_finished_run(run["run_id"]))
            log.info(f"{result.name}: trained already, as run {result.run_id[:8]}.")
            return result
        if run["run_id"] not in checkpoint_files.interrupted_runs(experiment_id, parent_run_id):
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
    with mlflow_store.opened(writes=False):
        return _compare_runs(run_ids)


def _compare_runs(run_ids):
    found = {run.info.run_id: run for run in map(run_queries.find_finished_run, run_ids)}
    if len(found) < 2:
        raise ArgumentError("Expected at least two different runs to compare. Received one. Name another.")
    results = [run_queries.read_result(run) for run in found.values()]
    for r in results[1:]:
        if r.test.digest != results[0].test.digest:
            raise ArgumentError(
                f"Expected runs that were tested on the same images. Received: {results[0].run_id[:8]} on "
                f"{len(results[0].test.labels):,} images of {results[0].dataset_name}, {r.run_id[:8]} on "
                f"{len(r.test.labels):,} others of {r.dataset_name}. Train them with the same dataset, "
                "stored_size, limit and split_seed."
            )
    verdicts, figures, texts = comparison_report.comparison(results, _test_images(results[0]))
    if mlflow_store.is_read_only():
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
        tags={"kind": "compare", "figure": comparison_report.CURVES, "runs": ",".join(found), **data},
        description=f"The stored runs {names}, on their stored predictions.",
    ) as run_id:
        run_logging.log_results({}, figures, texts)
        tracking.describe_run(texts[comparison_report.VERDICTS])
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
    where = escape_control_characters(result.recipe.dataset)
    log.warning(f"no grid of disagreements, since {where} cannot be read: {reason}")
    return None
