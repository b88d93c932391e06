"""Separate a model's frozen first layers from its head, and compute their features once for all images.

A frozen layer gives the same output for the same image in every epoch, run and trial of a search. So the longest chain
of first layers that are frozen and draw no random numbers is run once over the images, its outputs ("features") are
stored, and only the rest of the model (the "head") is trained on them. The head has the model's own layers: training
the head trains the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import keras
import numpy as np
import numpy.typing as npt

from cnnlab.data.disk_rows import MappedRows, row_digests
from cnnlab.training import frozen_features
from cnnlab.training.frozen_features import FeatureType
from cnnlab.training.optimizers import compile_like

LEAST_WORK = 0.02  # share of the model's work that frozen layers must do for their features to be stored
IN_MEMORY = 2**30  # bytes; larger features are read from the disk batch by batch

Rows = npt.NDArray[Any] | MappedRows


@dataclass(frozen=True)
class ModelParts:
    """A model in two parts."""

    frozen: keras.Model  # the frozen layers, from images `(N, H, W, 3)` to features `(N, ...)`; not compiled
    head: keras.Model  # the rest, from features to probabilities; compiled as the model
    # Whether the model starts with a random horizontal flip. Then the head takes `(N, 2, ...)`, the features of an
    # image and of its mirror image, and picks one of the two at random while training, else the first.
    flips: bool


def separate_frozen_layers(model: keras.Model) -> ModelParts | None:
    """Separate a compiled functional model at its first layer that is trained or random.

    Returns:
        The two parts; `None` where nothing is gained: no weights before that layer, or so few that storing features
        saves no time, or a graph that cannot be cut at one tensor.
    """
    if not isinstance(model, keras.Model) or not getattr(model, "operations", None):
        return None
    layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    flips = isinstance(layers[0], keras.layers.RandomFlip) and layers[0].mode == "horizontal"
    start = layers[0].output if flips else model.inputs[0]
    # A layer that draws random numbers has the state of its generator, a variable, but no weight.
    ends = (one for one in layers[flips:] if one.trainable_weights or len(one.variables) > len(one.weights))
    first = next(ends, None)
    if first is None or len(model.inputs) > 1 or isinstance(first.input, list):
        return None
    try:
        frozen = keras.Model(start, first.input)
        head = keras.Model(first.input, model.outputs[0], name=model.name)
    except ValueError:  # a later layer also needs what an earlier one gives
        return None
    if not frozen.weights or _work(frozen) < LEAST_WORK * _work(model):
        return None
    if flips:
        both = keras.Input((None, *frozen.output_shape[1:]), name="features_and_mirrored")
        head = keras.Model(both, head(PickOneOfTwo()(both)), name=model.name)
    compile_like(head, model)
    return ModelParts(frozen, head, flips)


def compute_features(
    frozen: keras.Model, *images: Rows, flips: bool = False, dtype: FeatureType = "float32"
) -> list[Rows] | None:
    """Compute the features of several arrays of images, or read them from the cache.

    All images go through the frozen layers in one pass, sorted by their digests: another split of the same images finds
    the same file.

    Args:
        frozen: the frozen layers of a model.
        images: arrays `(N, H, W, 3) uint8`, the training images first.
        flips: whether to compute the features of the mirrored training images too.
        dtype: the type to store features in.

    Returns:
        For each array, features `(N, ...)`; with `flips`, `(N, 2, ...)` for the training images and `(N, 1, ...)` for
        others; a `MappedRows` where they are too large for memory. `None` where there is no room for them.
    """
    digests = [_image_digests(array) for array in images]
    unique, first = np.unique(np.concatenate(digests), return_index=True)
    stored = frozen_features.load_or_compute(frozen, images, first, unique, dtype=dtype)
    if stored is None:
        return None
    sources = [[(stored, np.searchsorted(unique, array))] for array in digests]
    if flips:
        unique, first = np.unique(digests[0], return_index=True)
        stored = frozen_features.load_or_compute(frozen, images[:1], first, unique, mirrored=True, dtype=dtype)
        if stored is None:
            return None
        sources[0].append((stored, np.searchsorted(unique, digests[0])))
    rows = [MappedRows(source, flips) for source in sources]
    return [array[:] if array.nbytes <= IN_MEMORY else array for array in rows]


class PickOneOfTwo(keras.layers.Layer):
    """Pick the features of each image or, at random while training, those of its mirror image.

    The input is `(N, 2, ...)` while training, `(N, 1, ...)` or more else; the output is `(N, ...)`.
    """

    def __init__(self) -> None:
        super().__init__(name="pick_one_of_two")
        self.seed_generator: keras.random.SeedGenerator = keras.random.SeedGenerator()

    def call(self, both: Any, training: bool = False) -> Any:
        if not training:
            return both[:, 0]
        count = cast("tuple[Any, ...]", keras.ops.shape(both))[0]
        shape = (count,) + (1,) * (len(both.shape) - 2)
        mirrored = keras.random.uniform(shape, seed=self.seed_generator) < 0.5
        return keras.ops.where(mirrored, both[:, 1], both[:, 0])

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (input_shape[0], *input_shape[2:])


def _work(model: keras.Model) -> int:
    """Estimate a model's multiplications for one image: each weight once at each place of its layer's output."""
    work = 0
    for layer in model.layers:
        shape = getattr(getattr(layer, "output", None), "shape", ())
        places = math.prod(side or 1 for side in shape[1:-1]) if len(shape) == 4 else 1
        work += places * layer.count_params()
    return work


def _image_digests(images: Rows) -> npt.NDArray[np.bytes_]:
    known = images.digests if isinstance(images, MappedRows) else None  # computed when the images were decoded
    return row_digests(images) if known is None else known
