"""What models are put together from: the input with its augmentation, and the head."""

import keras
from keras import layers

from cnnlab.models.augmentation import augmented

MEAN_OF_VIEWS, MEAN_OF_MEMBERS = "mean_of_views", "mean_of_members"
POOLINGS = {
    "flatten": lambda: layers.Flatten(name="flatten"),
    "average": lambda: layers.GlobalAveragePooling2D(name="average_pool"),
    "max": lambda: layers.GlobalMaxPooling2D(name="max_pool"),
}


def image_input(input_shape, augment, image_size=None):
    """The model's input and the augmented images, resized where the model wants another size than the pictures have.

    Args:
        input_shape: `(height, width, 3)` of the pictures.
        augment: names of `cnnlab.models.augmentation`; only active while training.
        image_size: pixels a side; larger than the pictures, they are enlarged (bicubic).

    Returns:
        `(images, x)`: `(N, height, width, 3) uint8`, and `(N, image_size, image_size, 3)`, still from 0 to 255.
    """
    images = keras.Input(input_shape, dtype="uint8", name="images")
    x = augmented(images, {False: "none", True: "full"}.get(augment, augment))
    if image_size and tuple(input_shape[:2]) != (image_size, image_size):
        smaller = image_size < min(input_shape[:2])
        how = {"interpolation": "bilinear", "antialias": True} if smaller else {"interpolation": "bicubic"}
        # float32 under any policy, as bfloat16 has not the digits for pixels; and cast before, since Keras gives back
        # uint8 for uint8 outside a graph, float32 inside one.
        x = layers.Resizing(image_size, image_size, name="resize", dtype="float32", **how)(keras.ops.cast(x, "float32"))
        x = keras.ops.clip(x, 0, 255)  # bicubic goes beyond
    return images, x


def dense_head(x, num_classes, pooling, dense_units, dropout):
    """Pooling, a dense layer, and the softmax: `(N, H, W, C)` or `(N, C)` to `(N, num_classes) float32`.

    Args:
        pooling: "flatten", "average" or "max", for features with places.
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


def average_views(model, views):
    """A model that averages the probabilities of several views of each image, with `model` inside.

    Args:
        model: `(N, H, W, 3) uint8` to probabilities.
        views: 2, the image and its mirror image; or 6, also both moved by a pixel to the upper left and to the lower
            right, which together weigh as much as the two that are not (arXiv:2404.00498).
    """
    images = keras.Input(model.input_shape[1:], dtype="uint8", name="images")
    answer = _mean(model, [images], None if views > 2 else MEAN_OF_VIEWS)
    if views > 2:
        padded = keras.ops.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
        moved = _mean(model, [padded[:, 2:, 2:], padded[:, :-2, :-2]])
        answer = layers.Average(dtype="float32", name=MEAN_OF_VIEWS)([answer, moved])
    return keras.Model(images, answer, name=model.name)


def _mean(model, views, name=None):
    """The mean of a model's answers to views of an image and to their mirror images."""
    answers = [model(side) for view in views for side in (view, keras.ops.flip(view, axis=2))]
    return layers.Average(dtype="float32", name=name)(answers)


def average_members(models, name):
    """A model that averages the probabilities of several models of one shape, which are inside."""
    images = keras.Input(models[0].input_shape[1:], dtype="uint8", name="images")
    answers = [model(images) for model in models]
    return keras.Model(images, layers.Average(dtype="float32", name=MEAN_OF_MEMBERS)(answers), name=name)


def stack_outputs(models):
    """A model of several ones' probabilities, one's rows behind the other's: `(N, H, W, 3)` to `(models * N, C)`.

    With labels repeated as often, its loss is the mean of theirs. A mean over so many rows has a part of the gradients
    that each model would have alone; they are made whole again, so that each learns as it would alone.
    """
    images = keras.Input(models[0].input_shape[1:], dtype="uint8", name="images")
    answers = keras.ops.concatenate([model(images) for model in models], axis=0)
    answers = len(models) * answers - keras.ops.stop_gradient((len(models) - 1) * answers)
    return keras.Model(images, answers, name="side_by_side")


def member_networks(model) -> list:
    """What is trained of a model: the members inside of one by `average_views` or `average_members`, or the model."""
    if getattr(model, "layers", None) and model.layers[-1].name in (MEAN_OF_VIEWS, MEAN_OF_MEMBERS):
        inside = [layer for layer in model.layers if isinstance(layer, keras.Model)]
        return [network for one in inside for network in member_networks(one)]
    return [model]
