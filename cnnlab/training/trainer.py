"""Train a compiled model stage by stage, then predict with it: `train`, and the `TrainingResult` that it returns.

Nothing here knows where a run is recorded: the caller hands in callbacks, a context around each `fit`, and where
checkpoints are written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt

from cnnlab.data.image_dataset import ImageDataset
from cnnlab.errors import LabError
from cnnlab.evaluation.predictions import Predictions
from cnnlab.recipe import Recipe, ResolvedRecipe
from cnnlab.training import fitting, multi_device, runtime
from cnnlab.training.checkpointing import Checkpoint, Progress, StoredCheckpoint, restore_variables, state_writer
from cnnlab.training.fitting import Callbacks
from cnnlab.training.frozen_layers import Rows
from cnnlab.training.stages import Stage, StageResult, begin_fine_tuning, describe_stages, kept_epoch, plan_stages
from cnnlab.training.trained_part import TrainedPart, select_trained_part
from cnnlab.utils.log import log
from cnnlab.utils.signals import signals_held

MOST_DIFFERENCE = 0.05  # in a probability, between the whole model and its head on stored features


@dataclass(frozen=True)
class TrainingResult:
    """What a training gave."""

    # Metrics by name, one value for each epoch; `learning_rate` is that at the epoch's end.
    history: dict[str, list[float]]
    seconds: float  # time spent in `fit` and in the pass through frozen layers before it
    predictions: dict[str, Predictions]  # by split, predictions of the finished model
    kept_epoch: int  # the epoch, from 1, whose weights the finished model has
    stages: tuple[StageResult, ...] = ()  # the results of several stages; empty for a training of one
    # Writes what a training of one stage can be continued from; `None` where that is too much.
    write_state: Callable[[Path], None] | None = None


def train(
    model: keras.Model,
    dataset: ImageDataset,
    recipe: Recipe,
    *,
    callbacks: Callbacks = (),
    splits: Sequence[str] = ("val", "test"),
    quiet: bool = False,
    around_fit: Callable[[], AbstractContextManager[Callbacks]] = lambda: contextlib.nullcontext(()),
    checkpoint: Checkpoint | None = None,
    earlier: StoredCheckpoint | None = None,
) -> TrainingResult:
    """Train a compiled model stage by stage, on stored features where its first layers are frozen, and predict.

    Args:
        model: a compiled model from images `(N, H, W, 3) uint8` to probabilities `(N, num_classes) float32`.
        dataset: the images and labels.
        recipe: gives epochs, batch size, seed, patience, stages and determinism.
        callbacks: further Keras callbacks, which see the metrics as Keras gives them.
        splits: which splits to predict with the finished model; images of others are not read.
        quiet: print nothing, for the many runs of a search.
        around_fit: makes a context for each `fit`, which gives further callbacks for it.
        checkpoint: where checkpoints are written, and the one to resume from, if any.
        earlier: a finished training of one stage whose epochs are the first of this one. Without variables the
            optimizer begins anew, with the weights that the model has.

    Raises:
        LabError: a loss, weight or probability is not a finite number.
    """
    recipe = recipe.with_defaults()
    if recipe.deterministic:
        runtime.enable_determinism()
    stored = checkpoint.stored if checkpoint else None
    progress = Progress.from_checkpoint(stored or earlier)
    images = {name: getattr(dataset, name).images for name in dict.fromkeys(("train", "val", *splits))}
    stages, part = plan_stages(recipe), None
    for stage in stages[len(progress.stages) :]:
        part = None  # frees the features of the stage before, to make room for the next ones
        part = _begin_stage(model, images, recipe, stage, progress)
        if earlier and earlier.arrays and not stored:
            restore_variables(part.model, earlier, "the state of the run to be continued")
        with around_fit() as last:
            how = {"callbacks": callbacks, "last_callbacks": last, "quiet": quiet}
            progress.add_history(fitting.fit(part, dataset, recipe, stage, progress, checkpoint, **how))
        _expect_finite(
            {
                "a finite loss": [progress.history["loss"]],
                "a finite validation loss": [progress.history["val_loss"]],
                "finite weights": part.model.get_weights(),
            },
            progress,
            checkpoint,
        )
        if len(stages) > 1:
            progress.end_stage(_result_of_stage(stage, part, dataset, progress))
    assert part is not None  # a checkpoint is written before the last stage has ended
    seconds = time.perf_counter() - progress.started
    _restore_better_stage(part, dataset, progress)
    if progress.stages and not quiet:
        log.info(describe_stages(progress.stages, dataset))
    predictions = _predict_splits(part, dataset, splits)
    finite = {f"finite probabilities of the {name} images": [p.probabilities] for name, p in predictions.items()}
    _expect_finite(finite, progress, checkpoint)
    if part.on_features and splits:
        _check_head(model, images[splits[0]][:16], predictions[splits[0]].probabilities[:16], recipe)
    kept = kept_epoch(progress.history, recipe.patience, progress.stages)
    write_state = state_writer(part.model, progress) if checkpoint and len(stages) == 1 else None
    return TrainingResult(progress.history, seconds, predictions, kept, tuple(progress.stages), write_state)


def _begin_stage(
    model: keras.Model, images: dict[str, Rows], recipe: ResolvedRecipe, stage: Stage, progress: Progress
) -> TrainedPart:
    """Unfreeze what a stage fine-tunes, and choose the part of the model that it trains."""
    if stage.fine_tune_from:
        with multi_device.scope(model):
            begin_fine_tuning(model, stage, recipe, len(images["train"]))
    part = select_trained_part(model, images, recipe, stage)
    if progress.stages and not progress.weights_before_stage:
        progress.weights_before_stage = part.model.get_weights()
    return part


def _expect_finite(
    values: Mapping[str, Iterable[npt.ArrayLike]], progress: Progress, checkpoint: Checkpoint | None
) -> None:
    """Raise `LabError`, and remove the checkpoint, where a number is NaN or infinite; `values` are by what they are."""
    for expected, arrays in values.items():
        if not all(np.isfinite(array).all() for array in arrays):
            if checkpoint:
                checkpoint.remove()
            raise LabError(
                f"Expected {expected}. Received: NaN or infinity after epoch {progress.epochs}. Lower the learning "
                "rate, or correct the layer or loss of your own that gives it."
            )


def _result_of_stage(stage: Stage, part: TrainedPart, dataset: ImageDataset, progress: Progress) -> StageResult:
    seconds, epochs = time.perf_counter() - progress.stage_started, progress.epochs - progress.epochs_before_stage
    val = fitting.predict(part, "val", dataset.val)
    return StageResult(stage.name, epochs, seconds, val.accuracy, val.loss)


def _restore_better_stage(part: TrainedPart, dataset: ImageDataset, progress: Progress) -> None:
    """Restore the first stage's weights where the second is less accurate on held-out images."""
    if len(progress.stages) < 2:
        return
    first, second = progress.stages
    if not dataset.val_is_test and second.val_accuracy < first.val_accuracy:
        part.model.set_weights(progress.weights_before_stage)
        progress.stages[1] = dataclasses.replace(second, kept=False)


def _predict_splits(part: TrainedPart, dataset: ImageDataset, splits: Sequence[str]) -> dict[str, Predictions]:
    """Predict each of these splits, once where the validation images are the test images."""
    predictions: dict[str, Predictions] = {}
    for name in sorted(splits):  # "test" before "val"
        if name == "val" and dataset.val_is_test and "test" in predictions:
            predictions[name] = predictions["test"]
        else:
            predictions[name] = fitting.predict(part, name, getattr(dataset, name))
    return predictions


def _check_head(
    model: keras.Model, images: npt.NDArray[np.uint8], probabilities: npt.NDArray[np.float32], recipe: ResolvedRecipe
) -> None:
    """Raise `RuntimeError` where the whole model and its head on stored features differ, as with a wrong file.

    Args:
        model: the whole model.
        images: a few images, `(n, H, W, 3)`.
        probabilities: `(n, num_classes)` that the head gives for their features.
        recipe: gives the precisions. bfloat16 keeps 8 bits, so that single images, but not most of them, may differ by
            more in another pass.
    """
    # Called, not predicted: compiling the whole model for a few images would take longer than running it.
    with signals_held():
        expected = np.asarray(model(images, training=False))
    by_image = np.abs(expected - probabilities).max(axis=1)
    is_rounded = "mixed_bfloat16" in (recipe.precision, recipe.frozen_precision)
    difference = float(by_image.mean() if is_rounded else by_image.max())
    if not difference <= MOST_DIFFERENCE:  # NaN fails too
        raise RuntimeError(f"The full model and its head on cached features differ by {difference} in a probability.")
