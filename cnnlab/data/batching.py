"""`Batches`: a Keras data set that makes shuffled, cropped, mirrored, mixed and weighted batches one at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from cnnlab.data.disk_rows import MappedRows


class Batches(keras.utils.PyDataset):
    """Make batches of rows and labels, in a new order each epoch.

    Arrays given to `fit` directly would be shuffled once: with a seed set, Keras 3.15 repeats that order in every
    epoch, which cost 5 points of a small CNN's accuracy after ten epochs of 9,000 images.

    Args:
        rows: array or `MappedRows`, `(N, ...)`; images `(N, H, W, 3) uint8` where they are cropped, mirrored or mixed.
        labels: `(N,)` integers, or one-hot `(N, C) float32`, which mixing needs.
        batch_size: rows a batch; the last batch of an epoch may have fewer.
        seed: determines, with the epoch, the order of the rows and how they are augmented, so that a training can be
            resumed at any epoch. Without a seed the rows keep their order.
        epoch: the number of the first epoch.
        weights: `(C,)`, the weight of each class in the loss.
        mixing: Keras layers that take `{"images", "labels"}`; each batch goes through one of them, at random.
        alternating: whether images are mirrored in every second epoch: a half of them, drawn by the seed, in even
            epochs, and the others in odd ones.
        side: pixels a side of random crops of the images; `None` for whole images.
        copies: how often the labels of each batch are repeated, for models that stack the outputs of several networks.
    """

    def __init__(
        self,
        rows: npt.NDArray[Any] | MappedRows,
        labels: npt.NDArray[Any],
        batch_size: int,
        seed: int | None = None,
        epoch: int = 0,
        weights: npt.NDArray[np.float32] | None = None,
        mixing: Sequence[Any] = (),
        alternating: bool = False,
        side: int | None = None,
        copies: int = 1,
    ) -> None:
        super().__init__()
        self.rows: npt.NDArray[Any] | MappedRows = rows
        self.labels: npt.NDArray[Any] = labels
        self.batch_size: int = batch_size
        self.seed: int | None = seed
        self.epoch: int = epoch
        self.weights: npt.NDArray[np.float32] | None = weights
        self.mixing: Sequence[Any] = mixing
        self.side: int | None = side
        self.copies: int = copies
        # Which images are mirrored in even epochs, `(N,) bool`.
        self.mirrored_in_even: npt.NDArray[np.bool_] | None
        self.mirrored_in_even = np.random.default_rng(seed).permutation(len(rows)) % 2 == 0 if alternating else None
        self.order: npt.NDArray[np.int64] = self._draw_order()

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
        return (x, y) if self.weights is None else (x, y, sample_weights(self.weights, y))

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


def sample_weights(weights: npt.NDArray[np.float32], labels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return `(N,) float32`, the weight of each sample.

    Args:
        weights: `(C,)`, one for each class.
        labels: `(N,)` integers, or `(N, C)` shares of classes.
    """
    return (weights[labels] if labels.ndim == 1 else labels @ weights).astype("float32")
