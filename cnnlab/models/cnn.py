"""`cnn`: a small convolutional network that is trained from scratch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from cnnlab.errors import ArgumentError

if TYPE_CHECKING:  # Keras is loaded where a model is built
    import keras


def cnn(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    image_size: int | None = None,
    filters: Sequence[int] = (32, 64, 128),
    kernel_size: int = 3,
    padding: Literal["valid", "same"] = "valid",
    dense_units: int = 128,
    dropout: float = 0.0,
    augment: str = "none",
) -> keras.Model:
    """Build a convolution and 2x2 max pooling per entry of `filters`, then Flatten, Dense and softmax.

    Args:
        input_shape: `(height, width, 3)` of the pictures.
        num_classes: number of classes.
        image_size: pixels a side inside the model, by default the pictures' own.
        filters: filters of each convolution block.
        kernel_size: side of the square kernels.
        padding: of the convolutions, "valid" or "same".
        dense_units: width of the hidden dense layer, 0 for none.
        dropout: rate after the hidden dense layer, 0 for none.
        augment: "none", or names of `cnnlab.models.augmentation`, separated by commas.

    Returns:
        A `keras.Model`: `(N, height, width, 3) uint8, 0..255` to `(N, num_classes) float32` probabilities.

    Raises:
        ArgumentError: the images are too small for that many blocks.
    """
    import keras
    from keras import layers

    from cnnlab.models.layers import dense_head, image_input

    check_cnn(image_size or min(input_shape[:2]), filters=filters, kernel_size=kernel_size, padding=padding)
    images, x = image_input(input_shape, augment, image_size)
    x = layers.Rescaling(1 / 255, name="scale")(x)
    for i, count in enumerate(filters, start=1):
        x = layers.Conv2D(count, kernel_size, padding=padding, activation="relu", name=f"conv{i}")(x)
        x = layers.MaxPooling2D(2, name=f"pool{i}")(x)
    return keras.Model(images, dense_head(x, num_classes, "flatten", dense_units, dropout), name="cnn")


def check_cnn(side: int, *, filters: Sequence[int], kernel_size: int, padding: str, **_: Any) -> None:
    """Raise `ArgumentError` where images of `side` x `side` pixels are too small for that many blocks."""
    left = side
    for i in range(1, len(filters) + 1):
        if left < (2 if padding == "same" else kernel_size + 1):
            raise ArgumentError(
                f"Expected images large enough for {len(filters)} blocks of {kernel_size}x{kernel_size} convolutions "
                f"and pooling. Received: {side}x{side} pixels, used up before block {i}. "
                "Raise image_size or use fewer filters."
            )
        left = (left if padding == "same" else left - kernel_size + 1) // 2
