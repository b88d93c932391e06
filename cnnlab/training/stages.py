"""The stages of a training: the head first, then upper layers of the backbone too."""

import re
from dataclasses import dataclass

import keras

from cnnlab.models.transfer import fine_tuned_layers
from cnnlab.training.compiling import compile_for


@dataclass(frozen=True)
class Stage:
    """One `fit` of a training: its `name` for people, `epochs`, the `learning_rate` at its highest, and `start`, the
    recipe's `fine_tune_from`, or `None` where nothing is unfrozen.
    """

    name: str
    epochs: int
    learning_rate: float | None
    start: str | None = None


def stages_of(recipe) -> list[Stage]:
    """One stage for an ordinary training, two where a backbone is fine-tuned."""
    first = Stage("head" if recipe.fine_tune else "training", recipe.epochs, recipe.learning_rate)
    if not recipe.fine_tune:
        return [first]
    name = f"fine-tuning from {recipe.fine_tune_from}"
    return [first, Stage(name, recipe.fine_tune, recipe.fine_tune_learning_rate, recipe.fine_tune_from)]


def begin_fine_tuning(model, stage, recipe, images) -> None:
    """Unfreeze what a stage trains too, and compile the model for it.

    BatchNormalization keeps its stored statistics and stays frozen, as Keras's guide to fine-tuning advises
    (https://keras.io/guides/transfer_learning): those of a few batches would spoil what it was trained with.

    Args:
        model: as it was built by the recipe.
        stage: the second of `stages_of`.
        images: number of training images.
    """
    groups = fine_tuned_layers(
        recipe.backbone or recipe.model, recipe.weights, stage.start, recipe.image_size or min(model.input_shape[1:3])
    )
    for name in (name for group in groups for name in group):
        _unfreeze(model.get_layer(name))
    slower = {}
    if recipe.layer_decay not in (None, 1):
        slower = {
            f"({'|'.join(map(re.escape, group))})/.*": recipe.layer_decay**depth
            for depth, group in enumerate(groups, start=1)
        }
    compile_for(model, recipe, images, stage.epochs, stage.learning_rate, slower)


def _unfreeze(layer):
    layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
    if isinstance(layer, keras.Model):  # which has unfrozen all that is in it
        for part in layer.layers:
            _unfreeze(part)
