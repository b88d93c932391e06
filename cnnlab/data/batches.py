"""Batches that are made one at a time: of rows on the disk, mixed, or weighted."""

import math

import keras
import numpy as np


class Batches(keras.utils.PyDataset):
    """Rows and labels as a Keras data set that makes one batch at a time, in a new order each epoch if shuffled.

    Args:
        rows: array or `MappedRows`; images `(N, H, W, 3) uint8` where they are mixed.
        labels: `(N,)` integers, or one-hot `(N, C) float32`, as mixing wants them.
        weights: `(C,)` of the classes in the loss.
        mixing: Keras layers that take `{"images", "labels"}`; each batch goes through one of them, at random.
        alternating: a half of the rows, images drawn at the start, is mirrored in every second epoch, the rest in the
            others.
    """

    def __init__(self, rows, labels, batch_size, shuffle, weights=None, mixing=(), alternating=False):
        super().__init__()
        self.rows, self.labels, self.batch_size, self.shuffle = rows, labels, batch_size, shuffle
        self.weights, self.mixing = weights, mixing
        self.order = np.arange(len(rows))
        self.mirrored = np.random.permutation(len(rows)) % 2 == 0 if alternating else None  # noqa: NPY002  seeded as below
        self.on_epoch_end()

    def __len__(self):
        return math.ceil(len(self.rows) / self.batch_size)

    def __getitem__(self, i):
        index = np.sort(self.order[i * self.batch_size : (i + 1) * self.batch_size])
        x, y = self.rows[index], self.labels[index]
        if self.mirrored is not None:
            x = np.where(self.mirrored[index][:, None, None, None], x[:, :, ::-1], x)
        if self.mixing:
            layer = self.mixing[np.random.randint(len(self.mixing))]  # noqa: NPY002  seeded as below
            mixed = layer({"images": x.astype("float32"), "labels": y}, training=True)
            x = np.rint(np.asarray(mixed["images"])).astype("uint8")
            y = np.asarray(mixed["labels"])
        return (x, y) if self.weights is None else (x, y, sample_weights(self.weights, y))

    def on_epoch_end(self):
        if self.shuffle:
            np.random.shuffle(self.order)  # noqa: NPY002  seeded by keras.utils.set_random_seed
        if self.mirrored is not None:
            self.mirrored = ~self.mirrored


def sample_weights(weights, labels):
    """`(N,) float32`: the weights `(C,)` of the samples' classes, labels being integers or shares of classes."""
    return (weights[labels] if labels.ndim == 1 else labels @ weights).astype("float32")
