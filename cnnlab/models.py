"""The model factories. Every model takes raw uint8 images and gives class probabilities; preprocessing is inside."""

import inspect
from pathlib import Path

from cnnlab import precision
from cnnlab.errors import ArgumentError, LabError, expect_one_of
from cnnlab.interrupts import signals_held

AUGMENTATIONS = ("none", "flip", "full")
PREPROCESSING = ("vgg16", "scale")
PADDINGS = ("valid", "same")
STEPS_PER_EXECUTION = 16  # steps between returns to Python: a dense head trains 1.8 times as fast, results are equal


def build_cnn(
    input_shape,
    num_classes,
    *,
    filters=(32, 64, 128),
    kernel_size=3,
    dense_units=128,
    dropout=0.0,
    learning_rate=1e-3,
    weight_decay=0.0,
    augment=False,
    padding="valid",
):
    """A CNN from scratch: a convolution and 2x2 max pooling per entry of `filters`, Flatten, Dense, softmax.

    Args:
        input_shape: `(height, width, 3)`.
        num_classes: number of classes.
        filters: filters of each convolution block.
        kernel_size: side of the square kernels.
        dense_units: width of the hidden dense layer.
        dropout: rate after the hidden dense layer, 0 for none.
        learning_rate: Adam's.
        weight_decay: share of every weight taken off at each step, times the learning rate (AdamW, arXiv:1711.05101).
        augment: `False` or "none", "flip", or `True` or "full" (flip, shift, rotation, zoom).
        padding: of the convolutions, "valid" or "same".

    Returns:
        A compiled `keras.Model`: `(N, height, width, 3) uint8, 0..255` to `(N, num_classes) float32` probabilities.

    Raises:
        ArgumentError: the images are too small for that many blocks.
    """
    import keras
    from keras import layers

    expect_one_of("padding", padding, PADDINGS)
    images = keras.Input(input_shape, dtype="uint8", name="images")
    x = layers.Rescaling(1 / 255, name="scale")(_augmentation(images, augment))
    smallest = 2 if padding == "same" else kernel_size + 1
    for i, count in enumerate(filters, start=1):
        if min(x.shape[1:3]) < smallest:
            raise ArgumentError(
                f"Expected images large enough for {len(filters)} blocks of {kernel_size}x{kernel_size} convolutions "
                f"and pooling. Received: {input_shape[0]}x{input_shape[1]} pixels, used up before block {i}. "
                "Raise image_size or use fewer filters."
            )
        x = layers.Conv2D(count, kernel_size, padding=padding, activation="relu", name=f"conv{i}")(x)
        x = layers.MaxPooling2D(2, name=f"pool{i}")(x)
    return _compile(images, x, num_classes, dense_units, dropout, learning_rate, weight_decay, name="cnn")


def build_vgg16(
    input_shape,
    num_classes,
    *,
    weights="imagenet",
    dense_units=256,
    dropout=0.0,
    learning_rate=1e-4,
    weight_decay=0.0,
    augment=False,
    preprocessing="vgg16",
    train_blocks=0,
):
    """VGG16 without its top (Simonyan and Zisserman, 2015, arXiv:1409.1556), frozen, under a new dense head.

    Args:
        input_shape: `(height, width, 3)`, at least 32 pixels a side.
        num_classes: number of classes.
        weights: "imagenet" (downloaded once, checked by hash), "random", or the path of a weights file.
        dense_units, dropout, learning_rate, weight_decay, augment: as in `build_cnn`.
        preprocessing: "vgg16" for what the weights were trained with (BGR, minus ImageNet's means), "scale" for 0..1.
        train_blocks: how many of the five convolution blocks, counted from the top, are trained too.

    Returns:
        A compiled `keras.Model`: `(N, height, width, 3) uint8, 0..255` to `(N, num_classes) float32` probabilities.

    Raises:
        ArgumentError: the images are under 32 pixels a side, or `weights` names nothing.
        LabError: the weights cannot be downloaded, or the file is corrupt or does not fit.
    """
    import keras

    if min(input_shape[:2]) < 32:
        raise ArgumentError(
            f"Expected images of at least 32x32 pixels for vgg16. Received: {input_shape[0]}x{input_shape[1]}. "
            "Raise image_size."
        )
    expect_one_of("preprocessing", preprocessing, PREPROCESSING)
    pretrained = _load_vgg16(input_shape, weights)

    images = keras.Input(input_shape, dtype="uint8", name="images")
    x = _augmentation(images, augment)
    if preprocessing == "vgg16":
        x = keras.applications.vgg16.preprocess_input(keras.ops.cast(x, "float32"))
    else:
        x = keras.layers.Rescaling(1 / 255, name="scale")(x)
    # Built into the same graph, not nested as one layer, so that the frozen front can end at any of its layers.
    base = keras.applications.VGG16(include_top=False, weights=None, input_tensor=x)
    for layer, source in zip(base.layers[-len(pretrained.layers) + 1 :], pretrained.layers[1:], strict=True):
        for variable, value in zip(layer.variables, source.variables, strict=True):
            variable.assign(value)
    trained = tuple(f"block{5 - i}" for i in range(train_blocks))
    for layer in base.layers:
        layer.trainable = bool(trained) and layer.name.startswith(trained)
    x = base.output
    return _compile(images, x, num_classes, dense_units, dropout, learning_rate, weight_decay, name="vgg16")


MODELS = {"cnn": build_cnn, "vgg16": build_vgg16}


def factory_defaults(model: str) -> dict:
    """The keyword defaults of a model's factory; empty for a model that is not in the table."""
    if model not in MODELS:
        return {}
    parameters = inspect.signature(MODELS[model]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


@signals_held()
def build_model(recipe, dataset):
    """Build the recipe's model for the dataset's image shape and classes, with the weights seeded.

    Raises:
        ArgumentError: the recipe's model is not one of the table.
    """
    import keras

    expect_one_of("model", recipe.model, MODELS)
    keras.utils.set_random_seed(recipe.seed)
    arguments = {name: getattr(recipe, name) for name in factory_defaults(recipe.model)}
    arguments = {name: value for name, value in arguments.items() if value is not None}
    with precision.policy(precision.resolve(recipe.precision)):
        return MODELS[recipe.model](dataset.train_images.shape[1:], len(dataset.class_names), **arguments)


def _augmentation(images, augment):
    from keras import layers

    augment = {False: "none", True: "full"}.get(augment, augment)
    expect_one_of("augment", augment, AUGMENTATIONS)
    x = images
    if augment in ("flip", "full"):
        x = layers.RandomFlip("horizontal", name="random_flip")(x)
    if augment == "full":
        x = layers.RandomTranslation(0.1, 0.1, fill_mode="reflect", name="random_shift")(x)
        x = layers.RandomRotation(0.03, fill_mode="reflect", name="random_rotation")(x)
        x = layers.RandomZoom(0.1, fill_mode="reflect", name="random_zoom")(x)
    return x


def _compile(images, x, num_classes, dense_units, dropout, learning_rate, weight_decay, name):
    import keras
    from keras import layers

    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(dense_units, activation="relu", name="dense")(x)
    if dropout:
        x = layers.Dropout(dropout, name="dropout")(x)
    # float32 also under a mixed precision policy: probabilities and the loss need the digits.
    outputs = layers.Dense(num_classes, activation="softmax", dtype="float32", name="probabilities")(x)
    model = keras.Model(images, outputs, name=name)
    model.compile(
        # Named, or Keras numbers it within the process and autologging shows equal runs as different.
        optimizer=keras.optimizers.Adam(learning_rate, weight_decay=weight_decay or None, name="adam"),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        steps_per_execution=STEPS_PER_EXECUTION,
    )
    return model


def _load_vgg16(input_shape, weights):
    import keras

    from cnnlab.data import download_timeout

    def vgg16(weights):
        return keras.applications.VGG16(include_top=False, weights=weights, input_shape=input_shape)

    if weights in ("random", None):
        return vgg16(None)
    if weights == "imagenet":
        try:
            with download_timeout():
                return vgg16("imagenet")
        except Exception as error:  # Keras raises a bare Exception when the host cannot be reached
            raise LabError(
                f"Expected to download VGG16's ImageNet weights. Received: {error}. Connect to a network, pass a "
                "weights file, or use weights='random'."
            ) from error
    if not Path(weights).is_file():
        raise ArgumentError(f"Expected weights to be 'imagenet', 'random' or an existing file. Received: '{weights}'.")
    try:
        return vgg16(str(weights))
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise LabError(
            f"Expected '{weights}' to hold the weights of VGG16 without its top (.weights.h5 or .h5). "
            f"Received a file that does not load: {reason.rstrip('.')}. Use another file, 'imagenet' or 'random'."
        ) from error
