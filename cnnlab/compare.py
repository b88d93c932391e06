"""Compare several models on the same data: train them as children of one run, or read back runs of the store."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cnnlab.data.image_dataset import ImageDataset
from cnnlab.errors import ArgumentError, LabError, ServerUnavailable, first_line, masked
from cnnlab.evaluation import comparison_report
from cnnlab.evaluation.run_result import RunResult
from cnnlab.recipe import Recipe, ResolvedRecipe, RunOptions
from cnnlab.resolve import Loaded, load_for, prepare
from cnnlab.resume import training_key
from cnnlab.tracking import checkpoint_files, mlflow_store, run_logging, run_queries
from cnnlab.tracking.provenance import data_tags
from cnnlab.tracking.recorder import Recorder
from cnnlab.tracking.session import Session, opened_store
from cnnlab.tracking.tag_names import TRAINING, our_tags
from cnnlab.train import train_model
from cnnlab.training.runtime import free_models
from cnnlab.utils.log import log
from cnnlab.utils.text import escape_control_characters, markdown

if TYPE_CHECKING:
    from cnnlab.data.image_dataset import Images


@dataclass(frozen=True)
class Comparison:
    """What a comparison gave.

    Attributes:
        run_id: of the run that carries it, `None` where the store may not be written.
        results: a `RunResult` for each model.
        verdicts: sentences.
        failed: models whose training failed, and why, as `(label, reason)`.
    """

    run_id: str | None
    results: list[RunResult]
    verdicts: list[str]
    failed: list[tuple[str, str]] = field(default_factory=list)


def compare_models(
    recipes: Sequence[Recipe], restart: bool = False, *, options: RunOptions | None = None
) -> Comparison:
    """Train each recipe as `train_model` does, on the same pictures, below one parent run that carries the comparison.

    Where a model cannot be trained, the others are. Where the newest comparison of these recipes on this data was
    interrupted, or models of it failed, it is resumed: what it has trained stays.

    Args:
        recipes: `Recipe`s; all get the data fields of the first. Each has the pictures at its own size.
        restart: train all from the beginning in any case.
        options: how the trainings are carried out.

    Raises:
        ArgumentError: a recipe is there twice, or does not go with these images.
        Exception: what the last training raised, where none succeeds.

    Example:
        small = cnnlab.Recipe(dataset="digits", limit=150, filters=(4, 4), epochs=1)
        wide = cnnlab.Recipe(dataset="digits", limit=150, filters=(8, 8), epochs=1)
        comparison = cnnlab.compare_models([small, wide])
        print(comparison.verdicts)
    """
    if not recipes:
        raise ArgumentError("Expected recipes to compare. Received none. Name one, or several.")
    if len({recipe.with_defaults() for recipe in recipes}) < len(recipes):
        raise ArgumentError("Expected different models or seeds. Received one twice. Leave it out, or change its seed.")
    options = options or RunOptions()  # refuses a wrong variable before any work
    with Session([recipe.model for recipe in recipes], options=options) as session:
        prepared = prepare(recipes, options=options)
        dataset = _expect_same_test_images([dataset for dataset, _ in prepared])
        key = _key(prepared)
        recorder = session.recorder(resume_key=f"compare-{key[:12]}")
        checkpoint_files.sweep()
        experiment_id = recorder.experiment_for(dataset)
        resumed = None if restart else _interrupted_comparison(experiment_id, key)
        names = " and ".join(dict.fromkeys(recipe.label for recipe in recipes))
        run = {
            "params": {},
            "tags": {"kind": "compare", "figure": comparison_report.CURVES, TRAINING: key, **data_tags(dataset)},
            "description": f"{markdown(names)} on the same **{markdown(dataset.name)}** images; the runs below it are "
            "the models.",
        }
        with recorder.start(experiment_id, f"compare {names}", **run, resumed_run_id=resumed) as parent_run_id:
            finished = _finished_before(prepared, experiment_id, parent_run_id, recorder) if resumed else {}
            results, failed = [], []
            for loaded in prepared:  # built one at a time: several models in memory are not needed
                recipe = loaded[1].recipe
                if (result := finished.get(_training_key(loaded))) is None:
                    free_models()  # that of the training before
                    how = {"options": options, "loaded": loaded, "parent_run_id": parent_run_id}
                    try:
                        result = train_model(recipe, restart, **how)
                    except ServerUnavailable:
                        raise
                    except Exception as error:  # of any library
                        if loaded is prepared[-1] and not results:
                            raise
                        failed.append(_failure(recipe, error))
                        continue
                results.append(result)
            verdicts = _log_comparison(results, dataset.test.images, failed)
            recorder.is_incomplete = bool(failed)
    return Comparison(recorder.id_to_show(parent_run_id), results, verdicts, failed)


def _failure(recipe: ResolvedRecipe, error: Exception) -> tuple[str, str]:
    """Return the label of a model that failed, and why, and warn of it."""
    label = f"{recipe.label} seed {recipe.seed}"
    reason = str(error) if isinstance(error, LabError) else masked(f"{type(error).__name__}: {first_line(error)}")
    log.warning(f"{label} failed, and the comparison goes on without it: {reason}")
    return label, reason


def _expect_same_test_images(datasets: Sequence[ImageDataset]) -> ImageDataset:
    """Return the data set with the largest images, of several that have the same ones at different sizes."""
    if len({dataset.test.identity for dataset in datasets}) > 1:
        raise LabError(
            f"Expected the same test images at each size. Received: others, as the files of {datasets[0].name} change. "
            "Compare again when they do not."
        )
    return max(datasets, key=lambda dataset: dataset.image_shape)


def _training_key(loaded: Loaded) -> str:
    dataset, prepared = loaded
    return training_key(prepared.recipe, dataset)


def _key(prepared: Sequence[Loaded]) -> str:
    """Return the key of a comparison, by which an equal one resumes it."""
    return hashlib.sha256("".join(map(_training_key, prepared)).encode()).hexdigest()[:32]


def _interrupted_comparison(experiment_id: str, key: str) -> str | None:
    run_id = run_queries.newest_run(experiment_id, interrupted=True, kind="compare", training=key)
    if run_id:
        log.info(f"Going on with comparison {run_id[:8]}, which was interrupted or lacks models that failed.")
    return run_id


def _finished_before(
    prepared: Sequence[Loaded], experiment_id: str, parent_run_id: str, recorder: Recorder
) -> dict[str, RunResult]:
    """Read what an interrupted comparison has trained, by `training_key`.

    A child that is neither finished nor can be resumed is deleted, so that no training counts twice.
    """
    keys = set(map(_training_key, prepared))
    resumable = checkpoint_files.interrupted_runs(experiment_id, parent_run_id)
    finished: dict[str, RunResult] = {}
    for run in run_queries.children_of(parent_run_id, experiment_id):
        key = run["tags"].get(TRAINING)
        if key not in keys or key in finished:
            continue
        if run["status"] == "FINISHED":
            stored = run_queries.find_finished_run(run["run_id"])
            finished[key] = result = run_queries.read_result(stored, recorder.id_to_show)
            log.info(f"{result.name}: trained already, as run {result.run_id[:8]}.")
        elif run["run_id"] not in resumable:
            run_logging.delete_run(run["run_id"])
    return finished


def _log_comparison(
    results: list[RunResult], test_images: Images | None, failed: Sequence[tuple[str, str]] = ()
) -> list[str]:
    """Log the table, the verdicts and the figures on the active run; return the verdicts."""
    verdicts, figures, texts = comparison_report.comparison(results, test_images, failed)
    run_logging.log_results({}, figures, texts)
    if failed:
        run_logging.tag_run(failed="; ".join(f"{label}: {reason}" for label, reason in failed)[:5000])
    run_logging.describe_run(texts[comparison_report.VERDICTS])
    return verdicts


@opened_store(writes=False)
def compare_runs(run_ids: Sequence[str], *, options: RunOptions | None = None) -> Comparison:
    """Compare runs of the store on their stored test predictions; the comparison becomes a run of its own.

    Args:
        run_ids: at least two, whole or the first characters.
        options: say whether the stored pictures of a folder are checked.

    Raises:
        ArgumentError: a run is unknown or unfinished, or they were tested on different images.
        LabError: a run's predictions are missing, or which images one of an earlier version was tested on is not known.

    Example:
        recipes = [cnnlab.Recipe(dataset="digits", limit=150, filters=(n,), epochs=1) for n in (4, 8)]
        results = [cnnlab.train_model(recipe) for recipe in recipes]
        print(cnnlab.compare_runs([result.run_id for result in results]).verdicts)
    """
    runs = {run.info.run_id: run for run in map(run_queries.find_finished_run, run_ids)}
    if len(runs) < 2:
        raise ArgumentError("Expected at least two different runs to compare. Received one. Name another.")
    results = [run_queries.read_result(run) for run in runs.values()]
    _expect_same_images(list(runs.values()), results)
    largest = max(results, key=lambda result: result.recipe.data_arguments()["image_size"])
    test_images = _test_images(largest, options or RunOptions())
    if mlflow_store.is_read_only():
        return Comparison(None, results, comparison_report.comparison(results, test_images)[0])
    first = next(iter(runs.values()))
    names = " and ".join(r.run_id[:6] for r in results)
    data = {key: value for key, value in our_tags(first.data.tags).items() if key.startswith("dataset")}
    with Session() as session:
        recorder = session.recorder(experiment_id=first.info.experiment_id)
        with recorder.start(
            recorder.experiment_for(),
            f"compare {names}",
            params={},
            tags={"kind": "compare", "figure": comparison_report.CURVES, "runs": ",".join(runs), **data},
            description=f"The stored runs {names}, on their stored predictions.",
        ) as run_id:
            verdicts = _log_comparison(results, test_images)
    return Comparison(recorder.id_to_show(run_id), results, verdicts)


def _expect_same_images(runs: Sequence[run_queries.Run], results: list[RunResult]) -> None:
    first = results[0].test
    for run, r in zip(runs[1:], results[1:], strict=True):
        test = r.test
        assert first
        assert test, "the store gives only runs that were tested"
        if first.shares_images(test) is None:
            first, test = (
                run_queries.identified(*one)["test"] for one in ((runs[0], {"test": first}), (run, {"test": test}))
            )
        if not first.shares_images(test):
            others = "others" if r.class_names == results[0].class_names else "with other classes"
            raise ArgumentError(
                f"Expected runs that were tested on the same images. Received: {results[0].run_id[:8]} on "
                f"{len(first.labels):,} images of {results[0].dataset_name}, {r.run_id[:8]} on "
                f"{len(test.labels):,} {others} of {r.dataset_name}. Train them with the same dataset, class names, "
                "limit and split_seed."
            )


def _test_images(result: RunResult, options: RunOptions) -> Images | None:
    """Load the test images of a run; return `None`, with a warning, where they cannot be had any more."""
    try:
        test = load_for(result.recipe, recheck=options.recheck).test
        if result.test and result.test.shares_images(test):
            return test.images
        reason = "its images, or how they are decoded, have changed"
    except LabError as error:
        reason = str(error)
    where = escape_control_characters(result.recipe.dataset)
    log.warning(f"no grid of disagreements, since {where} cannot be read: {reason}")
    return None
