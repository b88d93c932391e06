"""A recipe's model, built with seeded weights and compiled."""

import math

import keras
import numpy as np

from cnnlab.errors import ArgumentError, LabError, first_line
from cnnlab.models import custom_model
from cnnlab.models.augmentation import parse_augment
from cnnlab.models.cnn import cnn
from cnnlab.models.layers import image_input
from cnnlab.models.model_table import TRAINING, find_model
from cnnlab.models.transfer import transfer
from cnnlab.training import multi_device, runtime
from cnnlab.training.optimizers import compile_for, compile_model
from cnnlab.utils.log import log
from cnnlab.utils.signals import signals_held


@signals_held()
def build_model(recipe, dataset):
    """Build the recipe's model for the dataset's image shape and classes, with the weights seeded, and compile it.

    Raises:
        ArgumentError: there is no such model, or it cannot be built for these images.
        LabError: its weights cannot be had, or a function of the user's fails.
    """
    runtime.expect_keras()
    model = find_model(recipe.model)
    precision, frozen = runtime.resolve(recipe.precision), recipe.frozen_precision
    arguments = recipe.factory_arguments()
    if "frozen_precision" in model.arguments:
        arguments["frozen_precision"] = runtime.resolve(frozen or precision)
    keras.utils.set_random_seed(recipe.seed)
    with runtime.policy(precision), multi_device.built_for(recipe.batch_size):
        if not model.own:
            network = model.factory(dataset.image_shape, len(dataset.class_names), **arguments)
        else:
            network = _call_own(model.factory, recipe, dataset, arguments)
    multi_device.expect_shareable(network)
    if model.prepare:
        model.prepare(network, dataset.train.images)
    if not network.compiled:
        with multi_device.scope(network):
            compile_for(network, recipe, len(dataset.train), recipe.epochs)
        return network
    rate = float(network.optimizer.learning_rate)
    same = recipe.learning_rate is not None and math.isclose(recipe.learning_rate, rate, rel_tol=1e-6)
    for name in TRAINING:
        if recipe.said(name) and name not in arguments and not (name == "learning_rate" and same):
            raise ArgumentError(
                f"Expected no {name} with a model that its function compiles. Received: {getattr(recipe, name)}. "
                f"Leave it out, give the function an argument '{name}', or return the model without compiling it."
            )
    return network


def build_cnn(input_shape, num_classes, *, learning_rate=1e-3, weight_decay=0.0, **arguments):
    """The CNN from scratch, compiled with Adam.

    Args:
        input_shape: `(height, width, 3)`.
        num_classes: number of classes.
        learning_rate: Adam's.
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


def build_vgg16(input_shape, num_classes, *, learning_rate=1e-4, weight_decay=0.0, **arguments):
    """VGG16 without its top (Simonyan and Zisserman, 2015, arXiv:1409.1556), frozen, under a dense head, compiled.

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


def _call_own(factory, recipe, dataset, arguments):
    """A model of the user's function, found to keep the contract of all models."""
    name = recipe.model
    function = custom_model.function_name(name)
    try:
        model = factory(dataset.image_shape, len(dataset.class_names), **arguments)
    except LabError:
        raise
    except (Exception, SystemExit) as error:  # code of the user's
        raise LabError(
            f"Expected {function} to build a model for {dataset.image_shape}. Received {type(error).__name__}: "
            f"{first_line(error)}. Correct it in '{name.rpartition(':')[0]}'."
        ) from error
    if not isinstance(model, keras.Model):
        raise LabError(f"Expected {function} to return a keras.Model. Received: {type(model).__name__}.")
    expected = f"class probabilities of shape (N, {len(dataset.class_names)})"
    try:
        probabilities = keras.ops.convert_to_numpy(model(dataset.train.images[:2], training=False))
    except Exception as error:
        raise LabError(
            f"Expected the model of {function} to take images (N, {', '.join(map(str, dataset.image_shape))}) uint8. "
            f"Received {type(error).__name__}: {first_line(error)}."
        ) from error
    if probabilities.ndim != 2 or probabilities.shape[1] != len(dataset.class_names):
        raise LabError(f"Expected the model of {function} to give {expected}. Received: shape {probabilities.shape}.")
    # Written so that NaN fails.
    if not all(np.isfinite(value).all() for value in model.get_weights()):
        raise LabError(f"Expected the model of {function} to start with finite weights. Received others. Correct it.")
    if not (abs(probabilities.astype("float64").sum(axis=1) - 1).max() <= 0.02 and probabilities.min() >= 0):
        raise LabError(
            f"Expected the model of {function} to give {expected}, which sum to 1. Received: others. "
            "End it with a softmax."
        )
    if model.compiled:
        _expect_loss(model, function, dataset)
    _expect_saveable(model, function)
    if parse_augment(recipe.augment):
        if model.compiled:
            raise ArgumentError(
                f"Expected no augment with a model that its function compiles. Received: {recipe.augment}. Put the "
                "layers into the model, or return it without compiling it."
            )
        images, x = image_input(dataset.image_shape, recipe.augment)
        return keras.Model(images, model(x), name=model.name)
    return model


def _expect_loss(model, function, dataset):
    try:
        model.test_on_batch(dataset.train.images[:3], dataset.train.labels[:3])
        model.reset_metrics()
    except Exception as error:  # of whatever the function compiled with
        raise LabError(
            f"Expected the loss and metrics that {function} compiles with to take labels that are integers. Received "
            f"{type(error).__name__}. Use sparse ones, such as sparse_categorical_crossentropy."
        ) from error


def _expect_saveable(model, function):
    """Found before the training, not after it."""
    try:
        keras.models.model_from_json(model.to_json())
    except Exception as error:  # of layers of the user's own
        raise LabError(
            f"Expected the model of {function} to be saved and loaded again. Received {type(error).__name__}: "
            f"{first_line(error)}. Use Keras's own layers, or give yours get_config() and "
            "@keras.saving.register_keras_serializable()."
        ) from error
    if foreign := sorted({type(layer).__name__ for layer in model.layers if not _is_kerass(layer)}):
        log.warning(
            f"{', '.join(foreign)} is no layer of Keras: the logged model loads only where its file is "
            "imported first, so not in 'cnnlab predict' and 'cnnlab serve'."
        )


def _is_kerass(layer):
    return type(layer).__module__.partition(".")[0] == "keras"
