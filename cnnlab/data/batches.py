"""Rows that do not fit in memory, read from the disk batch by batch."""

import math

import keras
import numpy as np


class MappedRows:
    """Rows of memory-mapped arrays, read when indexed; with `stacked`, the arrays side by side on axis 1."""

    def __init__(self, sources, stacked):
        self.sources, self.stacked = sources, stacked
        stored, rows = sources[0]
        self.nbytes = len(sources) * len(rows) * stored[:1].nbytes

    def __len__(self):
        return len(self.sources[0][1])

    def __getitem__(self, index):
        arrays = [np.asarray(stored[rows[index]]) for stored, rows in self.sources]
        return np.stack(arrays, axis=1) if self.stacked else arrays[0]


class Batches(keras.utils.PyDataset):
    """`MappedRows` and labels as a Keras data set that reads one batch at a time, in a new order each epoch."""

    def __init__(self, rows, labels, batch_size, shuffle):
        super().__init__()
        self.rows, self.labels, self.batch_size, self.shuffle = rows, labels, batch_size, shuffle
        self.order = np.arange(len(rows))
        self.on_epoch_end()

    def __len__(self):
        return math.ceil(len(self.rows) / self.batch_size)

    def __getitem__(self, i):
        index = np.sort(self.order[i * self.batch_size : (i + 1) * self.batch_size])
        return self.rows[index], self.labels[index]

    def on_epoch_end(self):
        if self.shuffle:
            np.random.shuffle(self.order)  # noqa: NPY002  seeded by keras.utils.set_random_seed
