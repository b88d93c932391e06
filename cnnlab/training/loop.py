"""A training from a compiled model to its history and its predictions, without a word about where they are recorded."""

import sys
import time
from dataclasses import dataclass

import keras
import numpy as np

from cnnlab.data.batches import Batches
from cnnlab.errors import LabError
from cnnlab.results.predictions import Predictions
from cnnlab.signals import signals_between_batches, signals_held
from cnnlab.training import compute
from cnnlab.training.frozen import features_of, split_at_frozen_front

PREDICT_BATCH = 256  # images; large batches use the cores better, and memory is bounded by them


@dataclass(frozen=True)
class Trained:
    """What a training gave.

    Attributes:
        history: per-epoch metrics as Keras gives them.
        seconds: spent in `fit` and in the pass through the frozen layers before it.
        predictions: `Predictions` of the finished model by part, "val" and "test", those that were asked for.
    """

    history: dict
    seconds: float
    predictions: dict[str, Predictions]


def train(model, dataset, recipe, *, callbacks=(), parts=("val", "test"), quiet=False) -> Trained:
    """Train a compiled model, on cached features where it has a frozen front, and predict with what came out.

    Args:
        model: compiled `keras.Model` from raw images to probabilities.
        dataset: an `ImageDataset`.
        recipe: gives epochs, batch size, seed, patience and determinism.
        callbacks: further Keras callbacks; they see the logs that Keras gives.
        parts: to predict with the finished model; images of other parts are not looked at.
        quiet: nothing on the screen, for the many runs of a search.

    Raises:
        LabError: the loss is not a finite number.
    """
    if recipe.deterministic:
        compute.expect_determinism()
    callbacks = [keras.callbacks.TerminateOnNaN(), *callbacks]
    if recipe.patience:
        callbacks.append(keras.callbacks.EarlyStopping("val_loss", patience=recipe.patience, restore_best_weights=True))
    started = time.perf_counter()
    used = {"train": dataset.train, "val": dataset.val, **{part: getattr(dataset, part) for part in parts}}
    trained, inputs = model, {name: part.images for name, part in used.items()}
    split = split_at_frozen_front(model)
    if split:
        features = features_of(
            split, *inputs.values(), dtype="float16" if recipe.feature_dtype == "float16" else "float32"
        )
        trained, inputs = split.head, dict(zip(inputs, features, strict=True))
    # The moving bar on a terminal, a line an epoch in a file.
    verbose = 0 if quiet else 1 if sys.stdout.isatty() else 2
    keras.utils.set_random_seed(recipe.seed)
    with signals_between_batches() as between_batches:
        history = trained.fit(
            **_batched(inputs["train"], dataset.train.labels, recipe.batch_size, shuffle=True),
            epochs=recipe.epochs,
            **_validation(inputs["val"], dataset.val.labels),
            callbacks=[*callbacks, between_batches],
            verbose=verbose,
        ).history
    seconds = time.perf_counter() - started
    if not np.isfinite(history["loss"]).all():
        raise LabError(
            f"Expected a finite loss. Received: {history['loss'][-1]} in epoch {len(history['loss'])}. "
            "Lower the learning rate."
        )
    predictions = {}
    for name in sorted(parts):
        same = name == "val" and dataset.val_is_test and "test" in predictions
        predictions[name] = predictions["test"] if same else _predict(trained, inputs[name], used[name])
    if split and parts:
        rounded = "mixed_bfloat16" in (recipe.precision, recipe.frozen_precision)
        _expect_same(model, used[parts[0]].images[:16], predictions[parts[0]].probabilities[:16], rounded)
    return Trained(history, seconds, predictions)


def _predict(trained, inputs, part):
    batched = _batched(inputs, part.labels, PREDICT_BATCH, shuffle=False)
    batched.pop("y", None)
    with signals_between_batches() as between_batches:
        probabilities = trained.predict(**batched, callbacks=[between_batches], verbose=0)  # (N, C) float32
    return Predictions(probabilities, part.labels, part.digest)


def _batched(x, labels, batch_size, shuffle):
    """Arrays as they are; features too large for memory as a data set that reads batches from the disk."""
    if isinstance(x, np.ndarray):
        return {"x": x, "y": labels, "batch_size": batch_size}
    return {"x": Batches(x, labels, batch_size, shuffle)}


def _validation(x, labels):
    data = _batched(x, labels, PREDICT_BATCH, shuffle=False)
    if "y" not in data:
        return {"validation_data": data["x"]}
    return {"validation_data": (data["x"], data["y"]), "validation_batch_size": PREDICT_BATCH}


def _expect_same(model, images, probabilities, rounded):
    """The head on stored features and the full model on the images must agree; a stale or wrong file would show here.

    bfloat16 keeps 8 bits, so that single images may differ by more in another pass, but not most of them.
    """
    # Called, not predicted: compiling the full model for a few images would take longer than running it.
    with signals_held():
        full = np.asarray(model(images, training=False))
    by_image = np.abs(full - probabilities).max(axis=1)
    difference = float(by_image.mean() if rounded else by_image.max())
    if difference > 0.05:
        raise RuntimeError(f"The full model and its head on cached features differ by {difference} in a probability.")
