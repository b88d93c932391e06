"""Build `resnet9`, a small network that trains fast from scratch, following airbench (arXiv:2404.00498)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cnnlab.errors import ArgumentError

if TYPE_CHECKING:  # Keras is loaded where a model is built
    import keras
    import numpy as np
    import numpy.typing as npt

WHITENED = 5000  # training images that the first layers are computed from
VIEWS = (1, 2, 6)  # of a picture, whose probabilities are averaged
EPSILON = 5e-4  # added to variances, as in airbench


def resnet9(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    image_size: int | None = None,
    filters: Sequence[int] = (64, 128, 256),
    augment: str = "altflip+crop:0.0625",
    tta_views: int = 2,
    ensemble_size: int = 1,
) -> keras.Model:
    """Build a whitening 2x2 convolution, then a block per entry of `filters`, global max pooling and softmax.

    A block is two 3x3 convolutions, each with BatchNormalization and SiLU, and 2x2 max pooling after the first one.
    The network follows David Page's ResNet-9 (https://github.com/davidcpage/cifar10-fast) as Keller Jordan's airbench
    has it (arXiv:2404.00498): the whitening convolution is computed from the training images and not trained, and the
    other convolutions start as near to the identity as they can.

    Args:
        input_shape: `(height, width, 3)` of the pictures.
        num_classes: number of classes.
        image_size: pixels a side inside the model, by default the pictures' own.
        filters: filters of each block.
        augment: "none", or names of `cnnlab.models.augmentation`, separated by commas.
        tta_views: views of each image whose probabilities are averaged, as in `average_views`; 1 for none.
        ensemble_size: networks with different initial weights, whose probabilities are averaged.

    Returns:
        A `keras.Model`: `(N, height, width, 3) uint8, 0..255` to `(N, num_classes) float32` probabilities. `adapt`
        computes the weights of its first layers.

    Raises:
        ArgumentError: the images are too small for that many blocks, or another number of views.
    """
    from cnnlab.models.layers import average_members, average_views

    check_resnet9(image_size or min(input_shape[:2]), filters=filters, tta_views=tta_views)
    given = (input_shape, num_classes, image_size, filters, augment)
    if ensemble_size == 1:
        model = _network(*given, name="resnet9")
    else:
        model = average_members([_network(*given, name=f"member{i}") for i in range(1, ensemble_size + 1)], "resnet9")
    return average_views(model, tta_views) if tta_views > 1 else model


def _network(
    input_shape: tuple[int, ...],
    num_classes: int,
    image_size: int | None,
    filters: Sequence[int],
    augment: str,
    name: str,
) -> keras.Model:
    import keras
    from keras import layers

    from cnnlab.models.layers import image_input

    images, x = image_input(input_shape, augment, image_size)
    # float32 under any policy, as bfloat16 has not the digits for pixels.
    x = layers.Normalization(name="normalize", dtype="float32")(x)
    whiten: dict[str, Any] = {"use_bias": False, "trainable": False, "name": "whiten"}
    x = layers.Conv2D(2 * 2 * 2 * input_shape[-1], 2, **whiten)(x)
    x = layers.Activation("silu", name="silu0")(x)
    for i, count in enumerate(filters, start=1):
        for part in ("a", "b"):
            start = keras.initializers.VarianceScaling(1 / 3, mode="fan_in", distribution="uniform")
            given: dict[str, Any] = {"padding": "same", "use_bias": False, "kernel_initializer": start}
            x = layers.Conv2D(count, 3, name=f"conv{i}{part}", **given)(x)
            if part == "a":
                x = layers.MaxPooling2D(2, name=f"pool{i}")(x)
            x = layers.BatchNormalization(momentum=0.6, epsilon=1e-5, scale=False, name=f"norm{i}{part}")(x)
            x = layers.Activation("silu", name=f"silu{i}{part}")(x)
    x = layers.GlobalMaxPooling2D(name="max_pool")(x)
    x = layers.Dense(num_classes, use_bias=False, dtype="float32", name="scores")(x)
    x = layers.Rescaling(1 / 9, dtype="float32", name="temper")(x)
    return keras.Model(images, layers.Softmax(dtype="float32", name="probabilities")(x), name=name)


def adapt(model: keras.Model, images: npt.NDArray[np.uint8]) -> None:
    """Compute the normalisation and the whitening convolution of a `resnet9` from its first 5,000 training images.

    The convolution's filters are the principal components of 2x2 patches, each scaled to a variance of 1, and their
    negatives, as the activation behind it keeps about one half of its input (Page's whitening).
    """
    from cnnlab.models.layers import member_networks

    first = images[:WHITENED].astype("float32")
    for network in member_networks(model):
        _adapt_network(network, first)


def _adapt_network(model: Any, images: npt.NDArray[np.float32]) -> None:
    import numpy as np

    normalize, whiten = model.get_layer("normalize"), model.get_layer("whiten")
    normalize.adapt(images)
    if "resize" in [layer.name for layer in model.layers]:
        images = np.asarray(model.get_layer("resize")(images))
    images = np.asarray(normalize(images))
    patches = np.lib.stride_tricks.sliding_window_view(images, (2, 2), axis=(1, 2))  # (N, H-1, W-1, 3, 2, 2)
    patches = patches.transpose(0, 1, 2, 4, 5, 3).reshape(-1, 2 * 2 * images.shape[-1])
    variances, components = np.linalg.eigh(patches.T @ patches / len(patches))
    # The largest first: a first block of fewer filters starts as these and nothing else.
    variances, components = variances[::-1], components[:, ::-1]
    filters = (components / np.sqrt(np.maximum(variances, 0) + EPSILON)).reshape(2, 2, images.shape[-1], -1)
    whiten.set_weights([np.concatenate([filters, -filters], axis=-1)])
    for layer in model.layers:
        if layer.name.startswith("conv"):
            [kernel] = layer.get_weights()  # (3, 3, C, F)
            same = np.arange(min(kernel.shape[2:]))
            kernel[:, :, :, same] = 0
            kernel[1, 1, same, same] = 1
            layer.set_weights([kernel])


def check_resnet9(side: int, *, filters: Sequence[int], tta_views: int, **_: Any) -> None:
    """Raise `ArgumentError` where images of `side` x `side` pixels are too small, or the number of views is unknown."""
    if tta_views not in VIEWS:
        raise ArgumentError(f"Expected tta_views to be 1, 2 or 6. Received: {tta_views}.")
    if side - 1 < 2 ** len(filters):
        raise ArgumentError(
            f"Expected images of at least {2 ** len(filters) + 1} pixels a side for {len(filters)} blocks that halve "
            f"them. Received: {side}x{side}. Raise image_size or use fewer filters."
        )
