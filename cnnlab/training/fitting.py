"""Call `model.fit` for one stage, or `model.predict` for one split, with the batches and callbacks that they need."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from cnnlab.data.batching import Batches
from cnnlab.data.class_weights import class_weights
from cnnlab.data.image_dataset import ImageDataset, Split
from cnnlab.evaluation.predictions import Predictions
from cnnlab.models.augmentation import crop_side, has_alternating_flip, mixing_layers
from cnnlab.recipe import ResolvedRecipe
from cnnlab.training import multi_device, runtime
from cnnlab.training.callbacks import BestSoFar, LearningRate, Lookahead, StopWhereNotFinite
from cnnlab.training.checkpointing import Checkpoint, CheckpointCallback, Progress
from cnnlab.training.frozen_layers import Rows
from cnnlab.training.optimizers import STEPS_PER_EXECUTION, takes_one_hot_labels
from cnnlab.training.stages import Stage
from cnnlab.training.trained_part import TrainedPart
from cnnlab.utils.screen import is_live
from cnnlab.utils.signals import signals_between_batches

PREDICT_BATCH = 256  # images; large batches use the cores better
PREDICT_BYTES = 2**26  # at most, of the batches of float32 that Keras predicts in one call
PLATEAU: dict[str, Any] = {"factor": 0.5, "patience": 2}  # epochs

Callbacks = Sequence[keras.callbacks.Callback]


def fit(
    part: TrainedPart,
    dataset: ImageDataset,
    recipe: ResolvedRecipe,
    stage: Stage,
    progress: Progress,
    checkpoint: Checkpoint | None,
    *,
    callbacks: Callbacks,
    last_callbacks: Callbacks,
    quiet: bool,
) -> dict[str, list[float]]:
    """Train a part of a model for the epochs that are left of a stage.

    Args:
        callbacks: further callbacks, which see an epoch's metrics as Keras gives them.
        last_callbacks: further callbacks, which see the metrics with all additions.
        quiet: print nothing.

    Returns:
        The metrics of these epochs by name.
    """
    made = _callbacks(recipe, stage, len(dataset.train), callbacks, checkpoint, progress)
    last_epoch = progress.epochs if progress.stopped else progress.epochs_before_stage + stage.epochs
    batches, validation = _fit_data(part, dataset, recipe, stage, progress.epochs)
    if multi_device.device_count(part.model) > 1:
        made.append(multi_device.PerReplicaSeeds())
    keras.utils.set_random_seed(recipe.seed)
    with (
        signals_between_batches() as between_batches,
        multi_device.single_device_semantics(part.model),
        runtime.untuned_datasets(),
        runtime.freed_graphs(),
    ):
        return part.model.fit(
            batches,
            shuffle=False,  # Keras would shuffle the batches too, by whatever state Python's `random` has
            epochs=last_epoch,
            initial_epoch=progress.epochs,
            **validation,
            callbacks=[*made, *last_callbacks, between_batches],
            # A moving bar on a terminal, a line for each epoch in a file; Keras cannot print where there is no stream.
            verbose=0 if quiet or sys.stdout is None else 1 if is_live(sys.stdout) else 2,
        ).history


def _callbacks(
    recipe: ResolvedRecipe,
    stage: Stage,
    num_images: int,
    further: Callbacks,
    checkpoint: Checkpoint | None,
    progress: Progress,
) -> list[keras.callbacks.Callback]:
    """Make the callbacks that a recipe asks for, in the order in which each sees what it has to see."""
    first, last = [], []
    if recipe.lookahead:
        # The first, so that all others see the weights that its steps leave.
        steps = stage.schedule_epochs * math.ceil(num_images / recipe.batch_size)
        first.append(Lookahead(recipe.lookahead, steps))
    if recipe.ema:
        # Before the next ones, so that they see the averaged weights at an epoch's end.
        last.append(keras.callbacks.SwapEMAWeights(swap_on_epoch=True))
    begin = []
    if recipe.patience:
        early = keras.callbacks.EarlyStopping("val_loss", patience=recipe.patience, restore_best_weights=True)
        last.append(early)
        losses = progress.history.get("val_loss", [])[progress.epochs_before_stage :]
        if losses and not (checkpoint and checkpoint.stored):  # of a finished run, with whose weights this begins
            begin.append(BestSoFar(early, losses))
    if recipe.schedule == "plateau":
        last.append(keras.callbacks.ReduceLROnPlateau("val_loss", **PLATEAU))
    made = [*first, StopWhereNotFinite(), *further, *last, *begin, LearningRate()]
    return [*made, CheckpointCallback(checkpoint, progress, [*first, *last])] if checkpoint else made


def _fit_data(
    part: TrainedPart, dataset: ImageDataset, recipe: ResolvedRecipe, stage: Stage, epoch: int
) -> tuple[keras.utils.PyDataset, dict[str, Any]]:
    """Return the training batches, from an epoch on, and the arguments of `fit` for the validation data."""
    devices = multi_device.device_count(part.model)
    train_labels, val_labels = dataset.train.labels, dataset.val.labels
    if takes_one_hot_labels(part.model):
        classes = len(dataset.class_names)
        train_labels, val_labels = (
            np.asarray(keras.utils.to_categorical(y, classes)) for y in (train_labels, val_labels)
        )
    batches = Batches(
        part.inputs["train"],
        train_labels,
        recipe.batch_size,
        recipe.seed,
        epoch,
        class_weights(recipe.class_weights, dataset.train.labels, dataset.class_names),
        mixing_layers(recipe.augment, recipe.seed),
        has_alternating_flip(recipe.augment),
        crop_side(dataset.image_shape[0]) if stage.on_crops else None,
        part.members,
    )
    x = part.inputs["val"]
    batch_size = _prediction_batch_size(x)
    if devices > 1:
        val_batches = Batches(x, val_labels, max(1, batch_size // devices) * devices)
        validation = {"validation_data": multi_device.ReplicaBatches(val_batches, devices)}
        return multi_device.ReplicaBatches(batches, devices), validation
    if part.members > 1 or not isinstance(x, np.ndarray):
        return batches, {"validation_data": Batches(x, val_labels, batch_size, copies=part.members)}
    return batches, {"validation_data": (x, val_labels), "validation_batch_size": batch_size}


def predict(part: TrainedPart, name: str, split: Split) -> Predictions:
    """Predict the images of one split, whose inputs the part has by its name."""
    x = part.inputs[name]
    batch_size = _prediction_batch_size(x)
    if isinstance(x, np.ndarray):
        data = {"x": x, "batch_size": batch_size}
    else:  # larger than memory
        data = {"x": Batches(x, split.labels, batch_size)}
    with signals_between_batches() as between_batches, runtime.untuned_datasets():
        probabilities = part.predictor.predict(**data, callbacks=[between_batches], verbose=0)  # (N, C) float32
    return Predictions(probabilities, split.labels, split.digest, split.identity)


def _prediction_batch_size(x: Rows) -> int:
    """Return how many rows of any size may be predicted at a time within the bound on memory."""
    row_bytes = 4 * STEPS_PER_EXECUTION * math.prod(x.shape[1:])
    return max(1, min(PREDICT_BATCH, PREDICT_BYTES // row_bytes))
