"""The stages of a training: the head first, then upper layers of the backbone too; or small pictures first."""

import re
from dataclasses import dataclass

import keras

from cnnlab.models.transfer import fine_tuned_layers
from cnnlab.training.optimizers import compile_for


@dataclass(frozen=True)
class Stage:
    """One `fit` of a training.

    Attributes:
        name: for people.
        epochs: of it.
        scheduled: epochs that its schedules of the learning rate and the lookahead are over.
        learning_rate: at its highest.
        start: the recipe's `fine_tune_from`, or `None` where nothing is unfrozen.
        small: whether it is on crops.
    """

    name: str
    epochs: int
    scheduled: int
    learning_rate: float | None
    start: str | None = None
    small: bool = False


def stages_of(recipe) -> list[Stage]:
    """One stage for an ordinary training, two where a backbone is fine-tuned or the pictures are small at first."""
    epochs, rate = recipe.epochs, recipe.learning_rate
    if recipe.progressive_resizing:
        small = min(max(1, round(recipe.progressive_resizing * epochs)), epochs - 1)
        return [
            Stage("small pictures", small, epochs, rate, small=True),
            Stage("whole pictures", epochs - small, epochs, rate),
        ]
    if not recipe.fine_tune:
        return [Stage("training", epochs, epochs, rate)]
    name, more = f"fine-tuning from {recipe.fine_tune_from}", recipe.fine_tune
    return [
        Stage("head", epochs, epochs, rate),
        Stage(name, more, more, recipe.fine_tune_learning_rate, recipe.fine_tune_from),
    ]


def for_crops(model):
    """The same layers, but for the augmentation's own crop, behind an input of pictures of any size, `(N, H, W, 3)
    uint8`; not compiled.
    """
    images = keras.Input((None, None, model.input_shape[-1]), dtype="uint8", name="images")

    def same(layer):
        return keras.layers.Identity(name="random_crop") if layer.name == "random_crop" else layer

    return keras.models.clone_model(model, input_tensors=images, clone_function=same)


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
