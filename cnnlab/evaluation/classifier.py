"""Classify pictures with a loaded model, using the class names, image size and resizing it was trained with."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cnnlab.data.decoding import SIXTEEN_BITS, decode_image
from cnnlab.errors import LabError
from cnnlab.utils.log import log_levels
from cnnlab.utils.signals import signals_held

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Classifier:
    """A loaded model and what its input and output mean.

    Attributes:
        uri: where it was loaded from.
        model: from images `(N, image_size, image_size, 3) uint8` to probabilities `(N, num_classes)`.
        class_names: of the probabilities, from the model's own metadata.
        image_size: pixels a side.
        resize_mode, grey_range: how a picture becomes an image of that size, as in the training.
    """

    uri: str
    model: keras.Model
    class_names: tuple[str, ...]
    image_size: int
    resize_mode: str = "stretch"
    grey_range: tuple[float, float] = SIXTEEN_BITS

    def image(self, file: str | os.PathLike[str] | bytes, **bounds: int) -> npt.NDArray[np.uint8]:
        """Decode one picture, a path or its bytes, to `(image_size, image_size, 3)`; raises as `decode_image`."""
        return decode_image(file, self.image_size, resize_mode=self.resize_mode, grey_range=self.grey_range, **bounds)

    def probabilities(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Predict `(N, num_classes)` probabilities of images `(N, image_size, image_size, 3)`.

        Raises:
            LabError: they are not finite numbers.
        """
        # TensorFlow takes the calls of one model after another for a mistake ("retracing").
        with signals_held(), log_levels({"tensorflow": logging.ERROR}):
            probabilities = np.asarray(self.model.predict_on_batch(images))
        if not np.isfinite(probabilities).all():
            raise LabError(
                f"Expected finite probabilities from '{self.uri}'. Received: NaN or infinity. Train it again with a "
                "lower learning rate, or use another model."
            )
        return probabilities

    def top(self, probabilities: npt.NDArray[np.floating[Any]], count: int) -> list[tuple[str, float]]:
        """List the `count` most probable classes of a picture's `(num_classes,)` as `(name, share)`, best first."""
        order = np.argsort(-probabilities, kind="stable")[:count]
        return [(self.class_names[i], float(probabilities[i])) for i in order]
