"""The frozen front of a model, run once over the images.

A frozen layer gives the same output for the same image in every epoch, run and search trial. The longest front of a
model that is frozen and has no randomness is found, its outputs ("features") are computed in large batches and stored,
and only the rest (the "head") is trained on them. The head's layers are the full model's own, so the full model is
trained when the head is.
"""

import hashlib
import math
from dataclasses import dataclass

import keras
import numpy as np

from cnnlab.data.disk_rows import MappedRows
from cnnlab.training import frozen_features
from cnnlab.training.optimizers import compile_like

WORTH = 0.02  # share of the model's work that a front must do for its features to be stored
IN_MEMORY = 2**30  # bytes; larger features are read from the disk batch by batch


@dataclass(frozen=True)
class Split:
    """A model cut in two: `front` from images to features, `head` from features to probabilities.

    With `flips`, the model starts with a random horizontal flip: the head takes `(N, 2, ...)`, the features of an image
    and of its mirror image, and picks one of the two at random while training, the first one otherwise.
    """

    front: object
    head: object
    flips: bool


def split_at_frozen_front(model) -> Split | None:
    """Cut a compiled functional model behind its frozen, deterministic front.

    Returns:
        `None` where nothing is gained: no frozen weights before the first trained or random layer, or a graph that
        cannot be cut at one tensor. The head is compiled like the model, with the model's own optimizer.
    """
    if not isinstance(model, keras.Model) or not getattr(model, "operations", None):
        return None
    layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    first = layers[0]
    flips = isinstance(first, keras.layers.RandomFlip) and first.mode == "horizontal"
    start = first.output if flips else model.inputs[0]
    live = next((layer for layer in layers[flips:] if layer.trainable_weights or _is_random(layer)), None)
    if live is None or len(model.inputs) > 1 or isinstance(live.input, list):
        return None
    try:
        front = keras.Model(start, live.input)
        head = keras.Model(live.input, model.outputs[0], name=model.name)
    except ValueError:  # something after the cut also needs something before it
        return None
    if not front.weights or _work(front) < WORTH * _work(model):
        return None
    if flips:
        both = keras.Input((None, *live.input.shape[1:]), name="features_and_mirrored")
        head = keras.Model(both, head(PickOneOfTwo()(both)), name=model.name)
    compile_like(head, model)
    return Split(front, head, flips)


def features_of(split, *parts, dtype="float32"):
    """The head's inputs for the training images and any further parts, computed once and stored.

    All images go through the front in one pass, in an order of their own, so that another split of the same images
    finds the same file.

    Args:
        split: a `Split`.
        parts: arrays of images, the training images first.
        dtype: that the features are stored in, "float16" or "float32".

    Returns:
        Arrays `(N, ...)`, with flips `(N, 2, ...)` for training and `(N, 1, ...)` for the rest; each a `MappedRows`
        instead where it is too large for memory. `None` where there is no room for them.
    """
    hashes = [_image_hashes(part) for part in parts]
    unique, first = np.unique(np.concatenate(hashes), return_index=True)
    stored = frozen_features.load_or_compute(split.front, parts, first, unique, dtype=dtype)
    if stored is None:
        return None
    sources = [[(stored, np.searchsorted(unique, part))] for part in hashes]
    if split.flips:
        unique, first = np.unique(hashes[0], return_index=True)
        stored = frozen_features.load_or_compute(split.front, parts[:1], first, unique, mirrored=True, dtype=dtype)
        if stored is None:
            return None
        sources[0].append((stored, np.searchsorted(unique, hashes[0])))
    rows = [MappedRows(source, split.flips) for source in sources]
    return [part[:] if part.nbytes <= IN_MEMORY else part for part in rows]


class PickOneOfTwo(keras.layers.Layer):
    """`(N, 2, ...)`, the features of images and of their mirror images, to `(N, ...)`: one of the two at random."""

    def __init__(self):
        super().__init__(name="pick_one_of_two")
        self.seed_generator = keras.random.SeedGenerator()

    def call(self, both, training=False):
        if not training:
            return both[:, 0]
        shape = (keras.ops.shape(both)[0],) + (1,) * (len(both.shape) - 2)
        mirrored = keras.random.uniform(shape, seed=self.seed_generator) < 0.5
        return keras.ops.where(mirrored, both[:, 1], both[:, 0])

    def compute_output_shape(self, shape):
        return (shape[0], *shape[2:])


def _work(model):
    """Multiplications of an image's way through a model, about: each weight at each place of its layer's output."""
    work = 0
    for layer in model.layers:
        output = getattr(layer, "output", None)
        shape = getattr(output, "shape", ())
        places = math.prod(side or 1 for side in shape[1:-1]) if len(shape) == 4 else 1
        work += places * layer.count_params()
    return work


def _is_random(layer):
    """Whether a layer draws random numbers: its seed state is among its variables, but is no weight."""
    return len(layer.variables) > len(layer.weights)


def _image_hashes(images):
    """`(N,)` of 32-byte sha256 digests, one an image."""
    if isinstance(images, MappedRows):  # known since they were decoded
        return images.digests
    return np.array([hashlib.sha256(image).digest() for image in images], dtype="S32")
