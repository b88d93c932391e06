"""Build the compiled model of a recipe with seeded weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import keras

from cnnlab.data.image_dataset import ImageDataset
from cnnlab.errors import ArgumentError, LabError, expecting
from cnnlab.models import custom_model
from cnnlab.models.augmentation import parse_augment
from cnnlab.models.cnn import cnn
from cnnlab.models.layers import image_input
from cnnlab.models.model_table import TRAINING, find_model
from cnnlab.models.transfer import transfer
from cnnlab.recipe import Recipe, ResolvedRecipe
from cnnlab.training import multi_device, runtime
from cnnlab.training.model_contract import expect_labels, expect_probabilities, expect_saveable
from cnnlab.training.optimizers import compile_for, compile_model, learning_rate_of
from cnnlab.utils.signals import signals_held


@signals_held()
def build_model(recipe: Recipe, dataset: ImageDataset, devices: int | str = 1) -> keras.Model:
    """Build the model of a recipe for a data set's image shape and classes, with seeded weights, and compile it.

    Args:
        recipe: says which model.
        dataset: gives the images' shape and the classes.
        devices: that it will be trained on, as in `RunOptions`.

    Returns:
        A compiled model: `(N, H, W, 3) uint8, 0..255` to `(N, num_classes) float32` probabilities.

    Raises:
        ArgumentError: there is no such model, or it cannot be built for these images.
        LabError: its weights cannot be had, or a custom model function fails.
    """
    runtime.expect_keras_settings()
    recipe = recipe.with_defaults()
    row = find_model(recipe.model)
    precision, frozen = runtime.resolve_precision(recipe.precision), recipe.frozen_precision
    arguments = recipe.factory_arguments()
    if "frozen_precision" in row.arguments:
        arguments["frozen_precision"] = runtime.resolve_precision(frozen or precision)
    keras.utils.set_random_seed(recipe.seed)
    with runtime.dtype_policy(precision), multi_device.scope_for(recipe.batch_size, devices):
        if not row.is_custom:
            model = row.factory(dataset.image_shape, len(dataset.class_names), **arguments)
        else:
            model = _build_custom_model(row.factory, recipe, dataset, arguments)
    multi_device.expect_replicable(model)
    if row.prepare:
        row.prepare(model, dataset.train.images)
    if model.compiled:
        _expect_nothing_to_compile(recipe, model, arguments)
    else:
        with multi_device.scope(model):
            compile_for(model, recipe, len(dataset.train), recipe.epochs)
    return model


def compiles_itself(recipe: ResolvedRecipe, dataset: ImageDataset) -> bool:
    """Return whether the model of a recipe is a custom one that its function compiles.

    Raises:
        ArgumentError: the recipe says something that such a model does not take.
        LabError: the function fails.
    """
    row = find_model(recipe.model)
    return row.is_custom and _build_custom_model(row.factory, recipe, dataset, recipe.factory_arguments()).compiled


def _expect_nothing_to_compile(recipe: ResolvedRecipe, model: keras.Model, arguments: Mapping[str, Any]) -> None:
    """Raise `ArgumentError` where a recipe sets what a custom model function has already compiled its model with."""
    rate = learning_rate_of(model.optimizer)
    same_rate = recipe.learning_rate is not None and math.isclose(recipe.learning_rate, rate or 0, rel_tol=1e-6)
    for name in TRAINING:
        if getattr(recipe, name) is not None and name not in arguments and not (name == "learning_rate" and same_rate):
            raise ArgumentError(
                f"Expected no {name} with a model that its function compiles. Received: {getattr(recipe, name)}. "
                f"Leave it out, give the function an argument '{name}', or return the model without compiling it."
            )


def build_cnn(
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    **arguments: Any,
) -> keras.Model:
    """Build the CNN and compile it with Adam.

    Args:
        input_shape: `(height, width, 3)`.
        num_classes: number of classes.
        learning_rate: Adam's learning rate.
        weight_decay: share of every weight taken off at each step, times the learning rate (AdamW, arXiv:1711.05101).
        arguments: those of `cnnlab.models.cnn`: filters, kernel_size, padding, dense_units, dropout, augment.

    Returns:
        A compiled `keras.Model`: `(N, height, width, 3) uint8, 0..255` to `(N, num_classes) float32` probabilities.

    Raises:
        ArgumentError: the images are too small for that many blocks.
    """
    model = cnn(input_shape, num_classes, **arguments)
    compile_model(model, learning_rate, weight_decay)
    return model


def build_vgg16(
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    learning_rate: float = 1e-4,
    weight_decay: float = 0.0,
    **arguments: Any,
) -> keras.Model:
    """Build VGG16 (Simonyan and Zisserman, 2015, arXiv:1409.1556), frozen, under a dense head, and compile it.

    Args:
        input_shape: `(height, width, 3)`, at least 32 pixels a side.
        num_classes: number of classes.
        learning_rate, weight_decay: as in `build_cnn`.
        arguments: those of `cnnlab.models.transfer`; by default the ImageNet weights under Flatten and `Dense(256)`.

    Returns:
        A compiled `keras.Model`: `(N, height, width, 3) uint8, 0..255` to `(N, num_classes) float32` probabilities.

    Raises:
        ArgumentError: the images are under 32 pixels a side, or `weights` names nothing.
        LabError: the weights cannot be downloaded, or the file is corrupt or does not fit.
    """
    head = {"pooling": "flatten", "dense_units": 256}
    model = transfer(input_shape, num_classes, backbone="vgg16", **{**head, **arguments})
    compile_model(model, learning_rate, weight_decay)
    return model


def _build_custom_model(
    factory: Callable[..., Any], recipe: ResolvedRecipe, dataset: ImageDataset, arguments: Mapping[str, Any]
) -> keras.Model:
    """Call a custom model function, check the model that it returns, and add the recipe's augmentation."""
    function = custom_model.function_name(recipe.model)
    cure = f"Correct it in '{recipe.model.rpartition(':')[0]}'."
    with expecting(f"{function} to build a model for {dataset.image_shape}", cure, kinds=(Exception, SystemExit)):
        model = factory(dataset.image_shape, len(dataset.class_names), **arguments)
    if not isinstance(model, keras.Model):
        raise LabError(f"Expected {function} to return a keras.Model. Received: {type(model).__name__}.")
    what = f"the model of {function}"
    expect_probabilities(model, what, dataset)
    if model.compiled:
        expect_labels(model, what, dataset)
    expect_saveable(model, what)
    if not parse_augment(recipe.augment):
        return model
    if model.compiled:
        raise ArgumentError(
            f"Expected no augment with a model that its function compiles. Received: {recipe.augment}. Put the "
            "layers into the model, or return it without compiling it."
        )
    images, x = image_input(dataset.image_shape, recipe.augment)
    return keras.Model(images, model(x), name=model.name)
