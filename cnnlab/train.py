"""Train one model on one data set as one MLflow run: from a recipe, from a checkpoint, or your own Keras model."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cnnlab import resume
from cnnlab.data.class_weights import read_class_weights
from cnnlab.data.image_dataset import ImageDataset
from cnnlab.errors import ArgumentError
from cnnlab.evaluation import run_figures
from cnnlab.evaluation.run_result import RunResult
from cnnlab.models import custom_model
from cnnlab.recipe import Recipe, ResolvedRecipe, RunOptions
from cnnlab.resolve import Loaded, build_model, prepare
from cnnlab.tracking import checkpoint_files, epoch_metrics, run_logging, run_queries
from cnnlab.tracking.provenance import data_tags, environment_tags, file_tags
from cnnlab.tracking.recorder import Recorder
from cnnlab.tracking.session import Session, opened_store
from cnnlab.tracking.tag_names import MODEL_SOURCE, STATE, TRAINING
from cnnlab.training import multi_device, runtime
from cnnlab.training.checkpointing import StoredCheckpoint
from cnnlab.training.model_contract import recipe_of
from cnnlab.training.optimizers import compile_params, learning_rate_of
from cnnlab.training.stages import describe_stages
from cnnlab.training.trainer import TrainingResult, train
from cnnlab.utils.log import log
from cnnlab.utils.ray_workers import passes_on_cluster
from cnnlab.utils.text import escape_control_characters

if TYPE_CHECKING:
    import keras


def train_model(
    recipe: Recipe,
    restart: bool = False,
    *,
    options: RunOptions | None = None,
    loaded: Loaded | None = None,
    parent_run_id: str | None = None,
) -> RunResult:
    """Load the data, build the model and train it as a recipe says, or resume an equal training that was interrupted.

    Args:
        recipe: says what is trained.
        restart: train from the beginning in any case.
        options: how the training is carried out: devices, checkpoints, experiment, cluster.
        loaded: what `prepare` gave for the recipe, where that is known already.
        parent_run_id: makes the run a child of that run.

    Raises:
        ArgumentError: a model cannot be built for these images.
        LabError: data or weights cannot be had, the store cannot be used, or the training diverged (NaN or infinity).

    Example:
        result = cnnlab.train_model(cnnlab.Recipe(dataset="digits", limit=150, filters=(8, 8), epochs=1))
        print(result.test_accuracy, result.run_id)
    """
    options = options or RunOptions()  # refuses a wrong variable before any work
    with (
        Session([recipe.model], options=options) as session,
        passes_on_cluster(options.cluster, options.cpus, options.gpus),
    ):
        dataset, prepared = loaded or prepare([recipe], options=options)[0]
        recipe = prepared.recipe
        recorder = session.recorder(resume_key=f"train-{resume.training_key(recipe, dataset)[:12]}")
        if not parent_run_id:
            checkpoint_files.sweep()
            parent_run_id = recorder.outer_run_id()
        model = build_model(recipe, dataset, options)  # may refuse, before anything is in the store
        resumed = None
        if not restart:
            place = recorder.experiment_for(dataset), parent_run_id
            resumed = resume.interrupted_run(recipe, dataset, *place, kind="train", reproduces=None, continues=None)
        run = {"tags": prepared.tags, "parent_run_id": parent_run_id, "resume_run_id": resumed}
        return fit_and_evaluate(model, dataset, recipe, **run, options=options)


def resume_run(run_id: str, *, epochs: int | None = None, options: RunOptions | None = None) -> RunResult:
    """Resume a run that was interrupted, from its last checkpoint, or train a finished one for more epochs.

    Args:
        run_id: whole or its first characters.
        epochs: of a finished run, how many it is to have then. They are a new run, which has the old one's curve first
            and begins with its weights and its optimizer's state.

    Raises:
        ArgumentError: there is no such run, it is none of a single model, it is finished and has as many epochs, it was
            trained in two stages, or its data or files changed.
        LabError: it has no checkpoint, a damaged one, or another process works on it.

    Example:
        result = cnnlab.train_model(cnnlab.Recipe(dataset="digits", limit=150, filters=(8, 8), epochs=1))
        print(len(cnnlab.resume_run(result.run_id, epochs=2).history["loss"]))  # 2
    """
    options = options or RunOptions()
    if epochs is not None:
        return _train_longer(run_id, epochs, options)
    with Session(options=options) as session:
        recorder = session.recorder(resumed_run_id=run_id)
        run_id = run_queries.find_interrupted_run(recorder.recorded_id(run_id)).info.run_id
        recipe = Recipe.from_json(resume.read_checkpoint(run_id).about["recipe"])
        with Session([recipe.model]), passes_on_cluster(options.cluster, options.cpus, options.gpus):
            [(dataset, prepared)] = prepare([recipe], options=options)
            model = build_model(prepared.recipe, dataset, options)
            return fit_and_evaluate(model, dataset, prepared.recipe, resume_run_id=run_id, options=options)


@opened_store()
def _train_longer(run_id: str, epochs: int, options: RunOptions) -> RunResult:
    """Train a finished run for more epochs, as a new run."""
    before = run_queries.find_finished_run(run_id)
    finished = run_queries.read_result(before)
    recipe = resume.longer_recipe(finished, epochs)
    source = run_queries.read_text(before, MODEL_SOURCE) if custom_model.is_custom(recipe.model) else None
    with (
        Session([recipe.model], source, options=options) as session,
        passes_on_cluster(options.cluster, options.cpus, options.gpus),
    ):
        [(dataset, prepared)] = prepare([recipe], options=options)
        resume.expect_same_data(before, prepared.recipe, dataset)
        recorder = session.recorder()
        model = build_model(prepared.recipe, dataset, options)
        earlier, tags = resume.earlier_training(before, finished, model, prepared.recipe, len(dataset.train))
        place = recorder.experiment_for(dataset), recorder.outer_run_id()
        resumed = resume.interrupted_run(prepared.recipe, dataset, *place, kind="train", continues=tags["continues"])
        run = {"run_name": f"{before.info.run_name}, {epochs} epochs", "tags": {**prepared.tags, **tags}}
        run |= {"earlier": earlier, "resume_run_id": resumed, "options": options}
        return fit_and_evaluate(model, dataset, prepared.recipe, **run)


def fit_and_evaluate(
    model: keras.Model,
    dataset: ImageDataset,
    recipe: Recipe,
    *,
    run_name: str | None = None,
    parent_run_id: str | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    tags: Mapping[str, Any] | None = None,
    splits: Sequence[str] = ("val", "test"),
    resume_run_id: str | None = None,
    earlier: StoredCheckpoint | None = None,
    options: RunOptions | None = None,
) -> RunResult:
    """Train a compiled model, test it, and record everything in one MLflow run.

    Args:
        model: compiled `keras.Model` from raw images `(N, H, W, 3) uint8` to probabilities `(N, num_classes)`: of
            `build_model`, or any other, which is recorded as what it is, with its optimizer, loss and layers.
        dataset: an `ImageDataset`.
        recipe: gives epochs, batch size, seed and patience, and is recorded.
        run_name: defaults to the model's name and data set.
        parent_run_id: makes the run a child of that run.
        callbacks: further Keras callbacks.
        tags: further tags of the run.
        splits: that the finished model is scored on. `("val",)` keeps the test set out of it, as in a search: the run
            gets its curves and its validation scores, but no test scores and no model, and nothing is printed.
        resume_run_id: an interrupted run with a checkpoint and an equal recipe on equal data, to be resumed: `model`
            is as it was built for that. Callbacks of the caller begin anew.
        earlier: the state of a finished training whose epochs become the first ones of this run.
        options: how often checkpoints are written, and in which experiment the run goes.

    Returns:
        A `RunResult`. Its figures, curves, predictions, recipe and the whole model are on the run too.

    Raises:
        ArgumentError: the run to be resumed has another recipe or other data.
        LabError: the model does not give probabilities of the classes for these images, the store cannot be opened, the
            training diverged, or the run to be resumed has no whole checkpoint.

    Example:
        dataset = cnnlab.load_dataset("digits", limit=150)
        recipe = cnnlab.Recipe(filters=(8, 8), epochs=1, limit=150, dataset="digits")
        result = cnnlab.fit_and_evaluate(cnnlab.build_model(recipe, dataset), dataset, recipe)
        print(result.history["val_accuracy"])
    """
    _expect_splits(splits)
    options = options or RunOptions()
    with Session([recipe.model], options=options) as session:
        recorder = session.recorder()
        started, recipe = time.perf_counter(), recipe_of(model, recipe, dataset)
        weights = read_class_weights(recipe.class_weights, dataset.class_names)
        recipe = dataclasses.replace(recipe, class_weights=weights)
        stored = resume.checkpoint_to_resume(resume_run_id, recipe, dataset) if resume_run_id else None
        about = resume.training_facts(recipe, dataset)
        recipe = _as_recorded(recipe, dataset, model)
        run = _run(model, dataset, recipe, run_name, {TRAINING: about["training"], **(tags or {})})
        if not stored:
            run["params"] = {**compile_params(model), **run["params"]}
        if begins_with := stored or earlier:
            started -= begins_with.progress["seconds"]
        if stored and resume_run_id:
            run["run_name"] = stored.about["run_name"]
            run["tags"]["resumed"] = resume.resumption_told(resume_run_id, stored, recipe, callbacks, run["tags"])
        place = {"parent_run_id": parent_run_id, "resumed_run_id": resume_run_id, "dataset": dataset}
        with recorder.start(recorder.experiment_for(dataset), **run, **place) as run_id:
            seconds = options.checkpoint_seconds
            checkpoint = resume.checkpoint_for(run_id, {**about, "run_name": run["run_name"]}, stored, seconds)
            logged = epoch_metrics.logged_history(run_id, begins_with.progress["history"]) if begins_with else None
            how = {"callbacks": callbacks, "splits": splits, "quiet": "test" not in splits, "checkpoint": checkpoint}
            around_fit = epoch_metrics.fits_of_a_run(logged if stored else None)
            trained = train(model, dataset, recipe, around_fit=around_fit, earlier=earlier, **how)
            if stored and logged and (difference := epoch_metrics.difference_to_logged(logged, trained.history)):
                run_logging.tag_run(resumed=f"{run['tags']['resumed']}{resume.difference_told(difference)}")
            result = _result(model, dataset, recipe, run_id, run["run_name"], trained, recorder)
            result = _log_results(recorder, model, dataset, result, trained, started)
        if checkpoint:
            checkpoint.remove()
        return result


def _expect_splits(splits: Sequence[str]) -> None:
    if not {"val"} <= set(splits) <= {"val", "test"} or isinstance(splits, str):
        raise ArgumentError(f"Expected splits to be ('val',) or ('val', 'test'). Received: {splits!r}.")


def _as_recorded(recipe: ResolvedRecipe, dataset: ImageDataset, model: keras.Model) -> ResolvedRecipe:
    """Return the recipe with the data set's name, and with the learning rate that the user compiled the model with."""
    recipe = dataclasses.replace(recipe, dataset=recipe.dataset or dataset.name)
    rate = learning_rate_of(model.optimizer) if recipe.learning_rate is None else None
    return dataclasses.replace(recipe, learning_rate=rate) if rate and 0 < rate <= 10 else recipe


def _run(
    model: keras.Model, dataset: ImageDataset, recipe: ResolvedRecipe, run_name: str | None, tags: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the name, parameters, tags and description of a training's run, as arguments of `Recorder.start`."""
    circumstances = {"kind": "train", "threads": runtime.threads(), "devices": multi_device.device_count(model)}
    return {
        "run_name": escape_control_characters(run_name or f"{recipe.label} on {dataset.name}"),
        "params": recipe.params(),
        "tags": {**circumstances, **data_tags(dataset), **environment_tags(), **file_tags(recipe), **tags},
        "description": run_figures.description(recipe, dataset),
    }


def _result(
    model: keras.Model,
    dataset: ImageDataset,
    recipe: ResolvedRecipe,
    run_id: str,
    run_name: str,
    trained: TrainingResult,
    recorder: Recorder,
) -> RunResult:
    """Return what a training gave, without the address of its model and the total time, which are not known yet."""
    return RunResult(
        recorded_id=run_id,
        name=run_name,
        recipe=recipe,
        dataset_name=dataset.name,
        class_names=dataset.class_names,
        history=trained.history,
        test=trained.predictions.get("test"),
        validation=trained.predictions.get("val"),
        params=model.count_params(),
        trainable_params=int(sum(np.prod(w.shape) for w in model.trainable_weights)),  # of several stages the last's
        train_seconds=trained.seconds,
        total_seconds=trained.seconds,
        recorded_model_uri=None,
        kept_epoch=trained.kept_epoch,
        stage_borders=tuple(itertools.accumulate(stage.epochs for stage in trained.stages[:-1])),
        id_to_show=recorder.id_to_show,
    )


def _log_results(
    recorder: Recorder,
    model: keras.Model,
    dataset: ImageDataset,
    result: RunResult,
    trained: TrainingResult,
    started: float,
) -> RunResult:
    """Log a training's scores, figures, files and, where it was tested, the model; see `Recorder.log_results`."""
    metrics = _metrics(result, trained)
    if trained.stages:
        run_logging.tag_run(stages=describe_stages(trained.stages, dataset))
    recipe, predictions = result.recipe, trained.predictions
    files = run_figures.run_files(model, dataset, result, predictions)
    if result.test and trained.write_state:
        files.files[STATE] = trained.write_state
    if custom_model.is_custom(recipe.model):
        files.texts[MODEL_SOURCE] = custom_model.read_source(recipe.model)
    if result.test:
        kept, epochs = result.kept_epoch, len(result.history["loss"])
        weights = "" if kept == epochs else f", with the weights of epoch {kept} of {epochs}"
        log.info(f"{result.name}: test_accuracy {result.test_accuracy:.4f}, test_loss {result.test_loss:.4f}{weights}")
    return recorder.log_results(result, metrics, files, (model, dataset) if result.test else None, started)


def _metrics(result: RunResult, trained: TrainingResult) -> dict[str, float]:
    """Return what a training gave in numbers, besides its curves."""
    metrics: dict[str, float] = {name: getattr(result, name) for name in ("params", "trainable_params", "kept_epoch")}
    metrics["train_seconds"] = round(trained.seconds, 1)  # the UI shows every digit
    if val := result.validation:  # of the finished model; the last epoch's may be of other weights than were kept
        metrics |= {f"final_val_{name}": value for name, value in {**val.scores, "loss": val.loss}.items()}
    for number, stage in enumerate(trained.stages, start=1):
        facts = {name: getattr(stage, name) for name in ("val_accuracy", "val_loss", "epochs", "seconds")}
        metrics |= {f"stage{number}_{name}": value for name, value in facts.items()}
    if test := result.test:
        metrics |= {f"test_{name}": value for name, value in {**test.scores, "loss": test.loss}.items()}
    return metrics
