"""The stages of a training, one `fit` each: crops before whole images, or the head before the backbone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import keras
import numpy as np

from cnnlab.data.image_dataset import ImageDataset
from cnnlab.models.transfer import fine_tuned_layers
from cnnlab.recipe import ResolvedRecipe
from cnnlab.training.optimizers import compile_for


@dataclass(frozen=True)
class Stage:
    """One `fit` of a training."""

    name: str  # what the user reads
    epochs: int  # how many epochs it trains
    schedule_epochs: int  # how many epochs the learning rate schedule and Lookahead are spread over
    learning_rate: float | None  # the highest learning rate; `None` for the optimizer's default
    # Where in the backbone fine-tuning starts, as in the recipe; `None` where nothing is unfrozen.
    fine_tune_from: str | None = None
    on_crops: bool = False  # whether it trains on small crops of the images


@dataclass(frozen=True)
class StageResult:
    """What one of several stages gave."""

    name: str  # the stage's name
    epochs: int  # how many epochs it trained
    seconds: float  # how long it took
    val_accuracy: float  # accuracy on the validation images with the weights that it ended with
    val_loss: float  # crossentropy on the validation images with these weights
    kept: bool = True  # whether the finished model has these weights


def plan_stages(recipe: ResolvedRecipe) -> list[Stage]:
    """Return one stage for an ordinary training, two where it starts with crops or fine-tunes a backbone."""
    epochs, rate = recipe.epochs, recipe.learning_rate
    if recipe.progressive_resizing:
        on_crops = min(max(1, round(recipe.progressive_resizing * epochs)), epochs - 1)
        return [
            Stage("small pictures", on_crops, epochs, rate, on_crops=True),
            Stage("whole pictures", epochs - on_crops, epochs, rate),
        ]
    if not recipe.fine_tune:
        return [Stage("training", epochs, epochs, rate)]
    name, more = f"fine-tuning from {recipe.fine_tune_from}", recipe.fine_tune
    return [
        Stage("head", epochs, epochs, rate),
        Stage(name, more, more, recipe.fine_tune_learning_rate, recipe.fine_tune_from),
    ]


def kept_epoch(history: Mapping[str, Sequence[float]], patience: int | None, results: Sequence[StageResult]) -> int:
    """Return the number of the epoch, from 1, whose weights a training keeps.

    Args:
        history: metrics by name, one value for each epoch.
        patience: of the recipe; with one, each stage ends with the weights of its lowest `val_loss`.
        results: of the stages, empty for a training of one.
    """
    stages = [result.epochs for result in results if result.kept] or [len(history["loss"])]
    begin, end = sum(stages[:-1]), sum(stages)
    losses = np.nan_to_num(history["val_loss"][begin:end], nan=np.inf)
    return begin + 1 + int(losses.argmin()) if patience else end


def clone_for_crops(model: keras.Model) -> keras.Model:
    """Rebuild a model from its own layers for images of any size, without its random crop; it is not compiled."""
    images = keras.Input((None, None, model.input_shape[-1]), dtype="uint8", name="images")

    def reuse(layer: keras.layers.Layer) -> keras.layers.Layer:
        return keras.layers.Identity(name="random_crop") if layer.name == "random_crop" else layer

    return keras.models.clone_model(model, input_tensors=images, clone_function=reuse)


def begin_fine_tuning(model: keras.Model, stage: Stage, recipe: ResolvedRecipe, num_images: int) -> None:
    """Unfreeze the layers of the backbone that the second stage trains, and compile the model for that stage.

    BatchNormalization keeps its stored statistics and stays frozen, as Keras's guide to fine-tuning advises
    (https://keras.io/guides/transfer_learning): statistics of a few batches would spoil the pre-trained weights.
    """
    groups = fine_tuned_layers(
        recipe.backbone or recipe.model,
        recipe.weights,
        stage.fine_tune_from or "top",
        recipe.image_size or min(model.input_shape[1:3]),
    )
    for name in (name for group in groups for name in group):
        _unfreeze(model.get_layer(name))
    lr_scales = {}
    if recipe.layer_decay not in (None, 1):
        lr_scales = {
            f"({'|'.join(map(re.escape, group))})/.*": recipe.layer_decay**depth
            for depth, group in enumerate(groups, start=1)
        }
    compile_for(model, recipe, num_images, stage.epochs, stage.learning_rate, lr_scales)


def _unfreeze(layer: keras.layers.Layer) -> None:
    layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
    if isinstance(layer, keras.Model):  # has set the same on every layer inside
        for inner in layer.layers:
            _unfreeze(inner)


def describe_stages(results: list[StageResult] | tuple[StageResult, ...], dataset: ImageDataset) -> str:
    """Say what each stage scored, and which weights are kept because of that."""
    split = "test" if dataset.val_is_test else "validation"
    sentences = [f"{r.name}: {split} accuracy {r.val_accuracy:.4f} after {r.epochs} epochs" for r in results]
    last = results[-1]
    if not last.kept:
        sentences.append(f"{last.name} made it worse, so the weights before it are kept")
    elif dataset.val_is_test:
        sentences.append("nothing is held out to choose by, so the last weights are kept")
    return "; ".join(sentences) + "."
