"""The shared runner: one model, one data set, one MLflow run."""

import contextlib
import dataclasses
import itertools
import time

import numpy as np

from cnnlab import resume
from cnnlab.errors import ArgumentError
from cnnlab.evaluation import plots
from cnnlab.evaluation.gradcam import looked_at
from cnnlab.evaluation.predictions import PREDICTIONS_FILE, describe, save_predictions
from cnnlab.evaluation.run_result import RunResult
from cnnlab.models import custom_model
from cnnlab.models.augmentation import augment_examples, parse_augment
from cnnlab.models.safe_loading import save_model
from cnnlab.recipe import Recipe
from cnnlab.resolve import build_model, prepare
from cnnlab.resume import found_of, interrupted_run, training_key
from cnnlab.tracking import checkpoint_files, epoch_metrics, mlflow_store, run_logging, run_queries
from cnnlab.tracking import tracked_run as tracking
from cnnlab.tracking.offline import server_unavailable, spool
from cnnlab.tracking.offline.delivery import recorded, renamed
from cnnlab.tracking.provenance import data_tags, environment_tags, file_tags
from cnnlab.tracking.store_location import is_server
from cnnlab.tracking.tag_names import MODEL_SOURCE, TRAINING
from cnnlab.training import multi_device, runtime
from cnnlab.training.trainer import stages_in_words, train
from cnnlab.utils.log import log
from cnnlab.utils.text import escape_control_characters, markdown


def train_model(recipe, restart=False) -> RunResult:
    """Load the data, build the model and run it, as one recipe says, or go on with an equal run that was interrupted.

    Args:
        restart: at the beginning in any case.
    """
    checkpoint_files.seconds_between()  # a wrong number is said before any work
    mlflow_store.expect_usable_store()
    with custom_model.pinned_sources([recipe.model]):
        dataset, [prepared] = prepare([recipe])
        with recorded(goes_on=f"train-{training_key(prepared.recipe, dataset)[:12]}") as ids:
            checkpoint_files.sweep()
            result = train_prepared(prepared, dataset, tracking.outer_run_id(), restart)
    return renamed(result, ids)


def train_prepared(prepared, dataset, parent_run_id, restart) -> RunResult:
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
    again, run_id = (spool.recorded_run(run_id) if is_server(mlflow_store.address()) else None) or (None, run_id)
    with recorded(directly=again is None, again=again) as ids:
        run = run_queries.find_interrupted_run(run_id)
        recipe = Recipe.from_json(found_of(run.info.run_id).about["recipe"])
        with custom_model.pinned_sources([recipe.model]):
            dataset, [prepared] = prepare([recipe])
            model = build_model(prepared.recipe, dataset)
            result = fit_and_evaluate(model, dataset, prepared.recipe, resume_run_id=run.info.run_id)
    return renamed(result, ids)


def fit_and_evaluate(
    model,
    dataset,
    recipe,
    *,
    run_name=None,
    parent_run_id=None,
    callbacks=(),
    tags=None,
    parts=("val", "test"),
    resume_run_id=None,
) -> RunResult:
    """Train a compiled model, test it, and record everything in one MLflow run.

    Args:
        model: compiled `keras.Model` from raw images `(N, H, W, 3) uint8` to probabilities `(N, num_classes)`.
        dataset: an `ImageDataset`.
        recipe: gives epochs, batch size, seed and patience, and is recorded.
        run_name: defaults to the model's name and data set.
        parent_run_id: makes the run a child of that run.
        callbacks: further Keras callbacks.
        tags: further tags of the run.
        parts: that the finished model is scored on. `("val",)` keeps the test set out of it, as in a search: the run
            gets its curves and its validation scores, but no test scores and no model, and nothing is printed.
        resume_run_id: of an interrupted run with a checkpoint and an equal recipe on equal data, to go on with: `model`
            is as it was built for that. Callbacks of the caller begin anew.

    Returns:
        A `RunResult`. Its figures, curves, predictions, recipe and the whole model are on the run too.

    Raises:
        ArgumentError: the run to go on with has another recipe or other data.
        LabError: the store cannot be opened, the loss is not a finite number, or the run to go on with has no
            checkpoint, a damaged one, or another process that works on it.
    """
    if not {"val"} <= set(parts) <= {"val", "test"} or isinstance(parts, str):
        raise ArgumentError(f"Expected parts to be ('val',) or ('val', 'test'). Received: {parts!r}.")
    with recorded() as ids:
        result = _fit_and_evaluate(
            model, dataset, recipe, run_name, parent_run_id, callbacks, tags or {}, parts, resume_run_id
        )
    return renamed(result, ids)


def _fit_and_evaluate(model, dataset, recipe, run_name, parent_run_id, callbacks, tags, parts, resume_run_id):
    started = time.perf_counter()
    tested = "test" in parts
    found = resume.found_to_go_on_with(resume_run_id, recipe, dataset) if resume_run_id else None
    about = resume.about(recipe, dataset)
    source = (
        custom_model.read_source(recipe.model) if custom_model.is_custom(recipe.model) else None
    )  # before a training in which it may change
    recipe = dataclasses.replace(recipe, dataset=recipe.dataset or dataset.name)
    if source and recipe.learning_rate is None and (rate := float(model.optimizer.learning_rate)) > 0:
        recipe = dataclasses.replace(recipe, learning_rate=rate)
    run_name = (
        found.about["run_name"] if found else escape_control_characters(run_name or f"{recipe.label} on {dataset.name}")
    )
    params = model.count_params()
    tags = {
        **{
            "kind": "train",
            "threads": runtime.threads(),
            "devices": multi_device.count(model),
            TRAINING: about["training"],
        },
        **{**data_tags(dataset), **environment_tags(), **file_tags(recipe), **tags},
    }
    if found:
        tags["resumed"] = resume.said_of(resume_run_id, run_name, found, recipe, callbacks, multi_device.count(model))
        started -= found.progress["seconds"]
    with tracking.tracked_run(
        tracking.experiment_for(dataset),
        run_name,
        params=recipe.params(),
        tags=tags,
        description=_description(recipe, dataset),
        parent_run_id=parent_run_id,
        resumed_run_id=resume_run_id,
    ) as run_id:
        checkpoint = resume.checkpoint_of(run_id, {**about, "run_name": run_name}, found)
        how = {"callbacks": callbacks, "parts": parts, "quiet": not tested, "checkpoint": checkpoint}
        trained = _train_recorded(model, dataset, recipe, run_id, found, tags, how)
        sizes = {"params": params, "trainable_params": _trainable(model)}
        metrics = {**sizes, **_metrics(trained)}
        borders = tuple(itertools.accumulate(stage.epochs for stage in trained.stages[:-1]))
        if trained.stages:
            tracking.tag_run(stages=stages_in_words(trained.stages, dataset))
        figures, texts, files = _files(model, dataset, recipe, trained, borders, source)
        if tested:
            test = trained.predictions["test"]
            log.info(f"{run_name}: test_accuracy {test.accuracy:.4f}, test_loss {test.loss:.4f}")

        def save(folder):
            everything = {**files, "model.keras": lambda path: save_model(model, path)}
            facts = {"metrics": metrics, "history": trained.history}
            run_logging.write_results(folder, figures, texts, everything, **facts)

        model_uri = None
        with server_unavailable.results_kept(run_id, save) if tested else contextlib.nullcontext():
            epoch_metrics.complete_history(run_id, trained.history)
            if tested:
                model_uri = run_logging.log_model(model, dataset)
            run_logging.log_results(metrics, figures, texts, files)
            total_seconds = time.perf_counter() - started
            run_logging.log_results({"total_seconds": round(total_seconds, 1)}, {}, {})
    if checkpoint:
        checkpoint.remove()
    return RunResult(
        run_id=run_id,
        name=run_name,
        recipe=recipe,
        dataset_name=dataset.name,
        class_names=dataset.class_names,
        history=trained.history,
        test=trained.predictions.get("test"),
        validation=trained.predictions.get("val"),
        **sizes,
        train_seconds=trained.seconds,
        total_seconds=total_seconds,
        model_uri=model_uri,
        stage_borders=borders,
    )


def _train_recorded(model, dataset, recipe, run_id, found, tags, how):
    """Train within a run, or go on with what was `found` of it, so that the run has every epoch once."""
    if found is None:
        run_logging.log_dataset(dataset)
        return train(model, dataset, recipe, recorded=epoch_metrics.fits_of_a_run(), **how)
    before = epoch_metrics.logged_history(run_id, found.progress["history"])
    trained = train(model, dataset, recipe, recorded=epoch_metrics.fits_of_a_run(before), **how)
    if difference := epoch_metrics.difference_to_logged(before, trained.history):
        tracking.tag_run(resumed=f"{tags['resumed']}{resume.said_of_difference(difference)}")
    return trained


def _metrics(trained):
    """What a training gave in numbers, besides its curves."""
    test, val = trained.predictions.get("test"), trained.predictions.get("val")
    metrics = {"train_seconds": round(trained.seconds, 1)}  # the UI shows every digit
    if val:  # of the finished model; with patience the last epoch's `val_accuracy` is of other weights
        metrics |= {f"final_val_{name}": value for name, value in {**val.scores, "loss": val.loss}.items()}
    for number, stage in enumerate(trained.stages, start=1):
        facts = {name: getattr(stage, name) for name in ("val_accuracy", "val_loss", "epochs", "seconds")}
        metrics |= {f"stage{number}_{name}": value for name, value in facts.items()}
    if test:
        metrics |= {f"test_{name}": value for name, value in {**test.scores, "loss": test.loss}.items()}
    return metrics


def _files(model, dataset, recipe, trained, borders, source):
    """`(figures, texts, files)` of a training by artifact path."""
    test = trained.predictions.get("test")
    figures = {"curves.png": plots.curves({recipe.label: trained.history}, {recipe.label: borders})}
    if parse_augment(recipe.augment):
        figures["augmented.png"] = _augmented(recipe, dataset)
    # The summary in place of autologging's, which is of the head alone where features were cached.
    texts = {"recipe.json": recipe.to_json(), "model_summary.txt": _summary(model)}
    if dataset.summary:
        texts |= {"data.txt": dataset.summary.text, **dataset.summary.tables}
    if source:
        texts[MODEL_SOURCE] = source
    if test is None:
        return figures, texts, {}
    more_figures, more_texts = describe(recipe.label, dataset.class_names, dataset.test.images, test)
    if dataset.summary and dataset.summary.duplicates:
        figures["duplicates.png"] = _duplicates(dataset)
    figures |= {**more_figures, **looked_at(model, dataset.class_names, dataset.test.images, test)}
    files = {PREDICTIONS_FILE: lambda path: save_predictions(path, dataset.class_names, **trained.predictions)}
    return figures, {**texts, **more_texts}, files


def _trainable(model):
    """Numbers that are trained; of several stages in the last one."""
    return int(sum(np.prod(w.shape) for w in model.trainable_weights))


def _augmented(recipe, dataset, count=6, rows=3):
    """A few training images as they are, and below them as the training sees them."""
    some = np.linspace(0, len(dataset.train) - 1, count).astype(int)  # of several classes, in whatever order they are
    images, labels, names = dataset.train.images[some], dataset.train.labels[some], dataset.class_names
    one_hot = np.eye(len(names), dtype="float32")[labels]
    shown, captions = [images], [names[label] for label in labels]
    for row in range(rows):
        seen, shares = augment_examples(images, one_hot, recipe.augment, recipe.seed + row)
        shown.append(seen)
        for share in shares:
            parts = sorted(np.flatnonzero(share > 0.005), key=lambda label: -share[label])
            captions.append(
                "\n".join(f"{share[label]:.0%} {names[label]}" for label in parts) if len(parts) > 1 else ""
            )
    return plots.image_grid(np.concatenate(shown), captions, f"Training images, and augmented by {recipe.augment}")


def _duplicates(dataset, count=12):
    """A few pairs of pictures that are one, side by side."""
    pictures, positions = dataset.pictures, [i for p in dataset.summary.duplicates[:count] for i in (p.first, p.second)]
    captions = [f"{pictures.splits[i]}\n{dataset.class_names[pictures.labels[i]]}" for i in positions]
    return plots.image_grid(pictures.images(np.array(positions))[:], captions, "Pictures that are there twice")


def _summary(model):
    lines = []
    model.summary(print_fn=lambda line, **_: lines.append(line), line_length=100)
    return "\n".join(lines)


def _description(recipe, dataset):
    validation = "the test set itself" if dataset.val_is_test else f"{len(dataset.val):,} held-out images"
    text = (
        f"**{markdown(recipe.label)}** on **{markdown(dataset.name)}**: {len(dataset.train):,} training images, "
        f"validated on {validation}, tested on {len(dataset.test):,}."
    )
    if recipe.weights:
        text += f" Weights: {markdown(recipe.weights)}."
    if dataset.stands_in_for:
        text += f" {markdown(dataset.name)} stands in for {dataset.stands_in_for}, which could not be downloaded."
    return text
