"""Build layers that models share: augmented input, dense head, averages over test-time views and ensembles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import keras
from keras import layers

from cnnlab.models.augmentation import augment_pixels

# Names of layers, by which `member_networks` finds what is inside.
MEAN_OF_VIEWS, MEAN_OF_MEMBERS = "mean_of_views", "mean_of_members"
POOLINGS = {
    "flatten": lambda: layers.Flatten(name="flatten"),
    "average": lambda: layers.GlobalAveragePooling2D(name="average_pool"),
    "max": lambda: layers.GlobalMaxPooling2D(name="max_pool"),
}


def image_input(
    input_shape: tuple[int, ...], augment: str | bool, image_size: int | None = None
) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """Make the input of a model, augment the images, and resize them to the size inside the model.

    Args:
        input_shape: `(height, width, 3)` of the pictures.
        augment: names of `cnnlab.models.augmentation`, which only act in training; `True` is "full", `False` "none".
        image_size: pixels a side inside the model; smaller pictures are enlarged (bicubic).

    Returns:
        `(images, x)`: `(N, height, width, 3) uint8`, and `(N, image_size, image_size, 3)`, still from 0 to 255.
    """
    images: Any = keras.Input(input_shape, dtype="uint8", name="images")
    names = augment if isinstance(augment, str) else "full" if augment else "none"
    x: Any = augment_pixels(images, names)
    if image_size and tuple(input_shape[:2]) != (image_size, image_size):
        smaller = image_size < min(input_shape[:2])
        how: dict[str, Any] = {"interpolation": "bilinear" if smaller else "bicubic", "antialias": smaller}
        # float32 under any policy, as bfloat16 has not the digits for pixels; and cast before, since Keras gives back
        # uint8 for uint8 outside a graph, float32 inside one.
        x = layers.Resizing(image_size, image_size, name="resize", dtype="float32", **how)(keras.ops.cast(x, "float32"))
        x = keras.ops.clip(x, 0, 255)  # bicubic goes beyond
    return images, x


def dense_head(
    x: keras.KerasTensor, num_classes: int, pooling: str, dense_units: int, dropout: float
) -> keras.KerasTensor:
    """Add pooling, a dense layer and the softmax: `(N, H, W, C)` or `(N, C)` to `(N, num_classes) float32`.

    Args:
        pooling: "flatten", "average" or "max", for features `(N, H, W, C)`.
        dense_units: width of the dense layer with ReLU, 0 for none.
        dropout: rate before the softmax, 0 for none.
    """
    if len(x.shape) > 2:
        x = POOLINGS[pooling]()(x)
    if dense_units:
        x = layers.Dense(dense_units, activation="relu", name="dense")(x)
    if dropout:
        x = layers.Dropout(dropout, name="dropout")(x)
    # float32 also under a mixed precision policy: probabilities and the loss need the digits.
    return layers.Dense(num_classes, activation="softmax", dtype="float32", name="probabilities")(x)


def average_views(model: keras.Model, views: int) -> keras.Model:
    """Return a model that averages the probabilities of several views of each image, with `model` inside.

    Args:
        model: `(N, H, W, 3) uint8` to probabilities.
        views: 2, the image and its mirror image; or 6, also both moved by a pixel to the upper left and to the lower
            right, which together weigh as much as the two that are not (arXiv:2404.00498).
    """
    images = keras.Input(model.input_shape[1:], dtype="uint8", name="images")
    mean = _mean_of_mirrored(model, [images], None if views > 2 else MEAN_OF_VIEWS)
    if views > 2:
        padded: Any = keras.ops.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
        moved = _mean_of_mirrored(model, [padded[:, 2:, 2:], padded[:, :-2, :-2]])
        mean = layers.Average(dtype="float32", name=MEAN_OF_VIEWS)([mean, moved])
    return keras.Model(images, mean, name=model.name)


def _mean_of_mirrored(model: keras.Model, views: Sequence[Any], name: str | None = None) -> keras.KerasTensor:
    """Return the mean of a model's probabilities for views of an image and for their mirror images."""
    probabilities = [model(side) for view in views for side in (view, keras.ops.flip(view, axis=2))]
    return layers.Average(dtype="float32", name=name)(probabilities)


def average_members(models: Sequence[keras.Model], name: str) -> keras.Model:
    """Return a model that averages the probabilities of several models of one input shape, which are inside."""
    images = keras.Input(models[0].input_shape[1:], dtype="uint8", name="images")
    probabilities = [model(images) for model in models]
    return keras.Model(images, layers.Average(dtype="float32", name=MEAN_OF_MEMBERS)(probabilities), name=name)


def stack_outputs(models: Sequence[keras.Model]) -> keras.Model:
    """Return a model that stacks the probabilities of M models along the batch: `(N, H, W, 3)` to `(M * N, C)`.

    With labels repeated M times, its loss is the mean of the models' losses. That divides the gradients of each model
    by M; they are multiplied by M again, so that each model learns as it would alone.
    """
    images = keras.Input(models[0].input_shape[1:], dtype="uint8", name="images")
    stacked: Any = keras.ops.concatenate([model(images) for model in models], axis=0)
    stacked = len(models) * stacked - keras.ops.stop_gradient((len(models) - 1) * stacked)
    return keras.Model(images, stacked, name="side_by_side")


def member_networks(model: keras.Model) -> list[keras.Model]:
    """Return the networks that are trained: those inside of `average_views` or `average_members`, or the model."""
    if getattr(model, "layers", None) and model.layers[-1].name in (MEAN_OF_VIEWS, MEAN_OF_MEMBERS):
        inside = [layer for layer in model.layers if isinstance(layer, keras.Model)]
        return [network for one in inside for network in member_networks(one)]
    return [model]


def operations_of(model: Any) -> Iterator[Any]:
    """Yield the layers and other operations of a model, and those of the models within it."""
    for operation in getattr(model, "operations", model.layers):
        yield operation
        if isinstance(operation, keras.Model):
            yield from operations_of(operation)
