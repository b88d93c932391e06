"""Build the compiled model of a recipe with seeded weights, and check what a custom model function returns.

`build_model` is the way in; `build_cnn` and `build_vgg16` build these two from keyword arguments, without a recipe.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from cnnlab.data.dataset import ImageDataset
from cnnlab.errors import ArgumentError, LabError, first_line
from cnnlab.models import custom_model
from cnnlab.models.augmentation import parse_augment
from cnnlab.models.cnn import cnn
from cnnlab.models.layers import image_input
from cnnlab.models.model_table import TRAINING, find_model
from cnnlab.models.transfer import transfer
from cnnlab.recipe import Recipe, ResolvedRecipe
from cnnlab.training import multi_device, runtime
from cnnlab.training.optimizers import compile_for, compile_model
from cnnlab.utils.log import log
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
    rate = float(model.optimizer.learning_rate)
    same_rate = recipe.learning_rate is not None and math.isclose(recipe.learning_rate, rate, rel_tol=1e-6)
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
    try:
        model = factory(dataset.image_shape, len(dataset.class_names), **arguments)
    except LabError:
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise LabError(
            f"Expected {function} to build a model for {dataset.image_shape}. Received {type(error).__name__}: "
            f"{first_line(error)}. Correct it in '{recipe.model.rpartition(':')[0]}'."
        ) from error
    if not isinstance(model, keras.Model):
        raise LabError(f"Expected {function} to return a keras.Model. Received: {type(model).__name__}.")
    _expect_probabilities(model, function, dataset)
    if model.compiled:
        _expect_integer_labels(model, function, dataset)
    _expect_saveable(model, function)
    if not parse_augment(recipe.augment):
        return model
    if model.compiled:
        raise ArgumentError(
            f"Expected no augment with a model that its function compiles. Received: {recipe.augment}. Put the "
            "layers into the model, or return it without compiling it."
        )
    images, x = image_input(dataset.image_shape, recipe.augment)
    return keras.Model(images, model(x), name=model.name)


def _expect_probabilities(model: keras.Model, function: str, dataset: ImageDataset) -> None:
    """Raise `LabError` unless a model with finite weights gives class probabilities for two images of the data set."""
    expected = f"class probabilities of shape (N, {len(dataset.class_names)})"
    try:
        probabilities = runtime.to_numpy(model(dataset.train.images[:2], training=False))
    except Exception as error:  # the user's layers may raise anything
        raise LabError(
            f"Expected the model of {function} to take images (N, {', '.join(map(str, dataset.image_shape))}) uint8. "
            f"Received {type(error).__name__}: {first_line(error)}."
        ) from error
    if probabilities.ndim != 2 or probabilities.shape[1] != len(dataset.class_names):
        raise LabError(f"Expected the model of {function} to give {expected}. Received: shape {probabilities.shape}.")
    if not all(np.isfinite(value).all() for value in model.get_weights()):
        raise LabError(f"Expected the model of {function} to start with finite weights. Received others. Correct it.")
    # Written so that NaN fails.
    if not (abs(probabilities.astype("float64").sum(axis=1) - 1).max() <= 0.02 and probabilities.min() >= 0):
        raise LabError(
            f"Expected the model of {function} to give {expected}, which sum to 1. Received: others. "
            "End it with a softmax."
        )


def _expect_integer_labels(model: keras.Model, function: str, dataset: ImageDataset) -> None:
    """Raise `LabError` unless the loss and metrics of a compiled model take integer labels `(N,)`."""
    try:
        model.test_on_batch(dataset.train.images[:3], dataset.train.labels[:3])
        model.reset_metrics()
    except Exception as error:  # the user's loss and metrics may raise anything
        raise LabError(
            f"Expected the loss and metrics that {function} compiles with to take labels that are integers. Received "
            f"{type(error).__name__}. Use sparse ones, such as sparse_categorical_crossentropy."
        ) from error


def _expect_saveable(model: keras.Model, function: str) -> None:
    """Raise `LabError` before the training where a model could not be loaded after it; warn of layers outside Keras."""
    try:
        keras.models.model_from_json(model.to_json())
    except Exception as error:  # the user's layers may raise anything
        raise LabError(
            f"Expected the model of {function} to be saved and loaded again. Received {type(error).__name__}: "
            f"{first_line(error)}. Use Keras's own layers, or give yours get_config() and "
            "@keras.saving.register_keras_serializable()."
        ) from error
    foreign = {type(layer) for layer in model.layers if type(layer).__module__.partition(".")[0] != "keras"}
    if foreign:
        log.warning(
            f"{', '.join(sorted(cls.__name__ for cls in foreign))} is no layer of Keras: the logged model loads only "
            "where its file is imported first, so not in 'cnnlab predict' and 'cnnlab serve'."
        )
