"""Batches that are made one at a time: in a new order each epoch, of rows on the disk, mixed, or weighted."""

import math

import keras
import numpy as np


class Batches(keras.utils.PyDataset):
    """Rows and labels as a Keras data set that makes one batch at a time.

    Arrays given to `fit` as they are would be shuffled once: with a seed set, Keras 3.15 repeats that order in every
    epoch, which cost 5 points of a small CNN's accuracy after ten epochs of 9,000 images.

    Args:
        rows: array or `MappedRows`; images `(N, H, W, 3) uint8` where they are mixed.
        labels: `(N,)` integers, or one-hot `(N, C) float32`, as mixing wants them.
        seed: with the epoch, it alone gives the order of the rows and how they are mixed, so that a training can go on
            at any epoch. Without one the rows keep their own order.
        epoch: the first one's number.
        weights: `(C,)` of the classes in the loss.
        mixing: Keras layers that take `{"images", "labels"}`; each batch goes through one of them, at random.
        alternating: a half of the rows, images drawn by the seed, is mirrored in every second epoch, the rest in the
            others.
        copies: how often each batch has its labels, one copy behind the other.
        side: pixels a side of random crops that are taken of images, `None` for whole ones.
    """

    def __init__(
        self,
        rows,
        labels,
        batch_size,
        seed=None,
        epoch=0,
        weights=None,
        mixing=(),
        alternating=False,
        side=None,
        copies=1,
    ):
        super().__init__()
        self.rows, self.labels, self.batch_size = rows, labels, batch_size
        self.weights, self.mixing, self.side, self.copies = weights, mixing, side, copies
        self.seed, self.epoch = seed, epoch
        self.drawn = np.random.default_rng(seed).permutation(len(rows)) % 2 == 0 if alternating else None
        self.set_order()

    def set_order(self):
        self.order = np.arange(len(self.rows))
        if self.seed is not None:
            np.random.default_rng((self.seed, self.epoch)).shuffle(self.order)

    def on_epoch_end(self):
        self.epoch += 1
        self.set_order()

    def __len__(self):
        return math.ceil(len(self.rows) / self.batch_size)

    def __getitem__(self, i):
        index = np.sort(self.order[i * self.batch_size : (i + 1) * self.batch_size])  # the disk is read forwards
        x, y = self.rows[index], self.labels[index]
        if self.drawn is not None:
            mirrored = self.drawn[index] ^ (self.epoch % 2 == 1)
            x = np.where(mirrored[:, None, None, None], x[:, :, ::-1], x)
        if self.side:
            x = _crops(x, self.side, np.random.default_rng((self.seed, self.epoch, i, self.side)))
        if self.mixing:
            # Of the batch's own number: Keras asks for the first ones once more, to see what they look like.
            generator = np.random.default_rng((self.seed, self.epoch, i))
            layer = self.mixing[generator.integers(len(self.mixing))]
            layer.generator.state.assign(generator.integers(2**31, size=2))
            mixed = layer({"images": x.astype("float32"), "labels": y}, training=True)
            x = np.rint(np.asarray(mixed["images"])).astype("uint8")
            y = np.asarray(mixed["labels"])
        y = np.concatenate([y] * self.copies)
        return (x, y) if self.weights is None else (x, y, sample_weights(self.weights, y))


def _crops(images, side, generator):
    """A square of each image, anywhere in it: `(N, H, W, 3)` to `(N, side, side, 3)`."""
    top, left = (generator.integers(length - side + 1, size=len(images)) for length in images.shape[1:3])
    squares = np.lib.stride_tricks.sliding_window_view(images, (side, side), axis=(1, 2))
    return np.moveaxis(squares[np.arange(len(images)), top, left], 1, -1)  # from (N, 3, side, side)


def sample_weights(weights, labels):
    """`(N,) float32`: the weights `(C,)` of the samples' classes, labels being integers or shares of classes."""
    return (weights[labels] if labels.ndim == 1 else labels @ weights).astype("float32")
