"""Make training batches one at a time as a `keras.utils.PyDataset`: shuffled, cropped, mirrored, mixed and weighted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from cnnlab.data.disk_rows import MappedRows


@dataclass(eq=False, repr=False)
class Batches(keras.utils.PyDataset):
    """Make batches of rows and labels, in a new order each epoch.

    Arrays given to `fit` directly would be shuffled once: with a seed set, Keras 3.15 repeats that order in every
    epoch, which cost 5 points of a small CNN's accuracy after ten epochs of 9,000 images.
    """

    rows: npt.NDArray[Any] | MappedRows  # `(N, ...)`; images `(N, H, W, 3) uint8` to be cropped, mirrored or mixed
    labels: npt.NDArray[Any]  # `(N,)` integers, or one-hot `(N, C) float32`, which mixing needs
    batch_size: int  # rows a batch; the last batch of an epoch may have fewer
    # It determines, with the epoch, the order of the rows and how they are augmented, so that a training can be resumed
    # at any epoch. Without a seed the rows keep their order.
    seed: int | None = None
    epoch: int = 0  # the number of the first epoch
    weights: npt.NDArray[np.float32] | None = None  # `(C,)`, the weight of each class in the loss
    # Keras layers that take `{"images", "labels"}`; each batch goes through one of them, at random.
    mixing: Sequence[Any] = ()
    # Whether images are mirrored in every second epoch: a half of them, drawn by the seed, in even epochs, and the
    # others in odd ones.
    alternating: bool = False
    side: int | None = None  # pixels a side of random crops of the images; `None` for whole images
    copies: int = 1  # how often a batch's labels are repeated, for models that stack the outputs of several networks

    def __post_init__(self) -> None:
        super().__init__()
        # Which images are mirrored in even epochs, `(N,) bool`.
        draw = np.random.default_rng(self.seed).permutation
        self.mirrored_in_even = draw(len(self.rows)) % 2 == 0 if self.alternating else None
        self.order = self._draw_order()

    def _draw_order(self) -> npt.NDArray[np.int64]:
        order = np.arange(len(self.rows))
        if self.seed is not None:
            np.random.default_rng((self.seed, self.epoch)).shuffle(order)
        return order

    def on_epoch_end(self) -> None:
        """Draw the order of the next epoch."""
        self.epoch += 1
        self.order = self._draw_order()

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.batch_size)

    def __getitem__(self, i: int) -> tuple[npt.NDArray[Any], ...]:
        """Return batch `i` as `(x, y)`, or as `(x, y, sample_weights)` with class weights."""
        index = np.sort(self.order[i * self.batch_size : (i + 1) * self.batch_size])  # to read the disk forwards
        x, y = self.rows[index], self.labels[index]
        if self.mirrored_in_even is not None:
            mirrored = self.mirrored_in_even[index] ^ (self.epoch % 2 == 1)
            x = np.where(mirrored[:, None, None, None], x[:, :, ::-1], x)
        if self.side:
            x = _random_crops(x, self.side, self._generator(i, self.side))
        if self.mixing:
            x, y = self._mix(x, y, self._generator(i))
        y = np.concatenate([y] * self.copies)
        if self.weights is None:
            return x, y
        labels: Any = y
        return x, y, (self.weights[labels] if y.ndim == 1 else labels @ self.weights).astype("float32")

    def _generator(self, i: int, *further: int) -> np.random.Generator:
        """Return a generator seeded by the batch's number, as Keras reads the first batches twice, for their types."""
        if self.seed is None:
            raise ValueError("Expected a seed with crops or mixing. Received: None.")
        return np.random.default_rng((self.seed, self.epoch, i, *further))

    def _mix(
        self, x: npt.NDArray[np.uint8], y: npt.NDArray[np.float32], generator: np.random.Generator
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        layer = self.mixing[int(generator.integers(len(self.mixing)))]
        layer.generator.state.assign(generator.integers(2**31, size=2))
        mixed = layer({"images": x.astype("float32"), "labels": y}, training=True)
        return np.rint(np.asarray(mixed["images"])).astype("uint8"), np.asarray(mixed["labels"])


def _random_crops(images: npt.NDArray[np.uint8], side: int, generator: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Cut a random square out of each image: `(N, H, W, 3)` to `(N, side, side, 3)`."""
    top, left = (generator.integers(length - side + 1, size=len(images)) for length in images.shape[1:3])
    squares = np.lib.stride_tricks.sliding_window_view(images, (side, side), axis=(1, 2))
    return np.moveaxis(squares[np.arange(len(images)), top, left], 1, -1)  # from (N, 3, side, side)
