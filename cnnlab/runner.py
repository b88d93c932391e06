"""The shared runner: one model, one data set, one MLflow run."""

import dataclasses
import sys
import time
from dataclasses import dataclass

import numpy as np

from cnnlab import store, tracking
from cnnlab.data import digest_of
from cnnlab.errors import LabError
from cnnlab.features import batches, features_of, split_at_frozen_front
from cnnlab.interrupts import signals_between_batches, signals_held
from cnnlab.predictions import PREDICTIONS_FILE, Predictions, describe, save_predictions
from cnnlab.provenance import data_tags, environment_tags, weights_tags
from cnnlab.recipe import Recipe

PREDICT_BATCH = 256  # images; large batches use the cores better, and memory is bounded by them


@dataclass(frozen=True)
class RunResult:
    """What a run gave, as plain data.

    Attributes:
        run_id: MLflow's.
        name: the run's name.
        recipe: what was trained.
        dataset_name, class_names: of the data set.
        history: per-epoch metrics as Keras gives them, `{"loss": [...], "val_accuracy": [...], ...}`.
        test, validation: `Predictions` of the finished model; `None` where the test set was kept out, as in a search.
        params, trainable_params: numbers of weights.
        train_seconds: spent in `fit` (and in the pass through the frozen layers before it).
        total_seconds: from opening the run to closing it.
        model_uri: `models:/m-...`, for `mlflow.keras.load_model` and `mlflow.pyfunc.load_model`, or `None`.
    """

    run_id: str
    name: str
    recipe: Recipe
    dataset_name: str
    class_names: tuple[str, ...]
    history: dict
    test: Predictions | None
    validation: Predictions | None
    params: int
    trainable_params: int
    train_seconds: float
    total_seconds: float
    model_uri: str | None

    @property
    def test_accuracy(self) -> float:
        return self.test.accuracy

    @property
    def test_loss(self) -> float:
        return self.test.loss


def fit_and_evaluate(
    model, dataset, recipe, *, run_name=None, parent_run_id=None, callbacks=(), tags=None, test=True
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
        test: `False` keeps the test set out of it, as in a search: the run gets its curves and its validation scores,
            but no test scores and no model, and nothing is printed.

    Returns:
        A `RunResult`. Its figures, curves, predictions, recipe and the whole model are on the run too.

    Raises:
        LabError: the store cannot be opened, or the loss is not a finite number.
    """
    from cnnlab import plots

    started = time.perf_counter()
    if parent_run_id is None:
        store.open_store()
    recipe = dataclasses.replace(recipe, dataset=recipe.dataset or dataset.name)
    run_name = run_name or f"{recipe.model} on {dataset.name}"
    trainable = int(sum(np.prod(w.shape) for w in model.trainable_weights))
    with tracking.tracked_run(
        tracking.experiment_for(dataset),
        run_name,
        params=recipe.params(),
        tags={"kind": "train", **data_tags(dataset), **environment_tags(), **weights_tags(recipe), **(tags or {})},
        description=_description(recipe, dataset),
        parent_run_id=parent_run_id,
    ) as run_id:
        tracking.log_dataset(dataset)
        history, train_seconds, predictions = _fit_and_predict(model, dataset, recipe, callbacks, test)
        metrics = {
            "params": model.count_params(),
            "trainable_params": trainable,
            "train_seconds": round(train_seconds, 1),  # the UI shows every digit
        }
        figures = {"curves.png": plots.curves({recipe.model: history})}
        # The summary in place of autologging's, which is of the head alone where features were cached.
        texts = {"recipe.json": recipe.to_json(), "model_summary.txt": _summary(model)}
        files, model_uri = {}, None
        if test:
            scores = predictions["test"]
            print(f"{run_name}: test_accuracy {scores.accuracy:.4f}, test_loss {scores.loss:.4f}")
            # Of the finished model; with patience the last epoch's `val_accuracy` is of other weights.
            metrics |= {"test_accuracy": scores.accuracy, "test_loss": scores.loss}
            metrics |= {"final_val_accuracy": predictions["val"].accuracy, "final_val_loss": predictions["val"].loss}
            model_uri = tracking.log_model(model, dataset.class_names, dataset.test_images.shape[1:])
            more_figures, more_texts = describe(recipe.model, dataset.class_names, dataset.test_images, scores)
            figures |= more_figures
            texts |= more_texts
            files[PREDICTIONS_FILE] = lambda path: save_predictions(path, dataset.class_names, **predictions)
        tracking.log_results(metrics, figures, texts, files)
        total_seconds = time.perf_counter() - started
        tracking.log_results({"total_seconds": round(total_seconds, 1)}, {}, {})
    return RunResult(
        run_id=run_id,
        name=run_name,
        recipe=recipe,
        dataset_name=dataset.name,
        class_names=dataset.class_names,
        history=history,
        test=predictions.get("test"),
        validation=predictions.get("val"),
        params=model.count_params(),
        trainable_params=trainable,
        train_seconds=train_seconds,
        total_seconds=total_seconds,
        model_uri=model_uri,
    )


def _fit_and_predict(model, dataset, recipe, callbacks, test=True):
    """Train under autologging, on cached features where the model has a frozen front, and predict with what came out.

    Returns:
        `(history, train_seconds, predictions)`: the seconds hold the pass through the frozen layers too; the
        predictions are those of "test" and "val", or none where the test set is kept out.
    """
    import keras
    import tensorflow as tf

    if recipe.deterministic:
        tf.config.experimental.enable_op_determinism()  # for the rest of the process; there is no way back

    callbacks = [_without_validation_copies(), keras.callbacks.TerminateOnNaN(), *callbacks]
    if recipe.patience:
        callbacks.append(keras.callbacks.EarlyStopping("val_loss", patience=recipe.patience, restore_best_weights=True))
    started = time.perf_counter()
    trained, inputs = model, (dataset.train_images, dataset.val_images, dataset.test_images)
    split = split_at_frozen_front(model)
    if split:
        trained, inputs = split.head, features_of(split, *inputs)
    train_inputs, val_inputs, test_inputs = inputs
    # The moving bar on a terminal, a line an epoch in a file, nothing from the many runs of a search.
    verbose = 0 if not test else 1 if sys.stdout.isatty() else 2
    keras.utils.set_random_seed(recipe.seed)
    with tracking.autologging(), signals_between_batches() as between_batches:
        history = trained.fit(
            **_batched(train_inputs, dataset.train_labels, recipe.batch_size, shuffle=True),
            epochs=recipe.epochs,
            **_validation(val_inputs, dataset.val_labels),
            callbacks=[*callbacks, between_batches],
            verbose=verbose,
        ).history
    seconds = time.perf_counter() - started
    if not np.isfinite(history["loss"]).all():
        raise LabError(
            f"Expected a finite loss. Received: {history['loss'][-1]} in epoch {len(history['loss'])}. "
            "Lower the learning rate."
        )
    if not test:
        return history, seconds, {}
    predictions = {"test": _predict(trained, test_inputs, dataset.test_images, dataset.test_labels, dataset)}
    predictions["val"] = (
        predictions["test"]
        if dataset.val_is_test
        else _predict(trained, val_inputs, dataset.val_images, dataset.val_labels, dataset)
    )
    if split:
        _expect_same(model, dataset.test_images[:16], predictions["test"].probabilities[:16])
    return history, seconds, predictions


def _predict(trained, inputs, images, labels, dataset):
    batched = _batched(inputs, labels, PREDICT_BATCH, shuffle=False)
    batched.pop("y", None)
    with signals_between_batches() as between_batches:
        probabilities = trained.predict(**batched, callbacks=[between_batches], verbose=0)  # (N, C) float32
    return Predictions(probabilities, labels, digest_of(dataset.class_names, images, labels))


def _batched(x, labels, batch_size, shuffle):
    """Arrays as they are; features too large for memory as a data set that reads batches from the disk."""
    if isinstance(x, np.ndarray):
        return {"x": x, "y": labels, "batch_size": batch_size}
    return {"x": batches(x, labels, batch_size, shuffle)}


def _validation(x, labels):
    data = _batched(x, labels, PREDICT_BATCH, shuffle=False)
    if "y" not in data:
        return {"validation_data": data["x"]}
    return {"validation_data": (data["x"], data["y"]), "validation_batch_size": PREDICT_BATCH}


def _expect_same(model, images, probabilities):
    """The head on stored features and the full model on the images must agree; a stale or wrong file would show here.

    bfloat16 keeps 8 bits, so the pass in other batches may differ by that much.
    """
    # Called, not predicted: compiling the full model for a few images would take longer than running it.
    with signals_held():
        full = np.asarray(model(images, training=False))
    difference = float(np.abs(full - probabilities).max())
    if difference > 0.05:
        raise RuntimeError(f"The full model and its head on cached features differ by {difference} in a probability.")


def _without_validation_copies():
    """A callback that keeps autologging from logging `val_*` a second time as `validation_*`, all at step 0.

    Keras hands one dict to all callbacks of the event; emptied here, it has nothing left for MLflow's callback after
    this one. The history and the `val_*` metrics come from elsewhere.
    """
    import keras

    return keras.callbacks.LambdaCallback(on_test_end=lambda logs: logs.clear() if logs else None)


def _summary(model):
    lines = []
    model.summary(print_fn=lambda line, **_: lines.append(line), line_length=100)
    return "\n".join(lines)


def _description(recipe, dataset):
    validation = "the test set itself" if dataset.val_is_test else f"{len(dataset.val_labels):,} held-out images"
    text = (
        f"**{recipe.model}** on **{dataset.name}**: {len(dataset.train_labels):,} training images, validated on "
        f"{validation}, tested on {len(dataset.test_labels):,}."
    )
    if recipe.weights:
        text += f" Weights: {recipe.weights}."
    if dataset.stands_in_for:
        text += f" {dataset.name} stands in for {dataset.stands_in_for}, which could not be downloaded."
    return text
