import dataclasses
import itertools
import random

import keras
import numpy as np

from cnnlab.data.batching import Batches
from cnnlab.models.augmentation import mixing_layers
from cnnlab.recipe import Recipe
from cnnlab.resolve import build_model
from cnnlab.training.trainer import train


class Watched(keras.layers.Layer):
    """Keeps what a training puts in, as a list of rows' first numbers."""

    def build(self, shape):
        self.seen = []

    def call(self, x, training=False):
        if training:
            self.seen.extend(np.asarray(x)[:, 0, 0, 0].tolist())
        return x


def test_every_epoch_of_a_training_sees_all_pictures_in_a_new_order(digits):
    images = digits.train.images.copy()
    images[:, 0, 0, 0] = np.arange(len(images)) % 256
    numbered = dataclasses.replace(digits, train=dataclasses.replace(digits.train, images=images))
    watched = Watched()
    model = keras.Sequential([keras.Input((32, 32, 3)), watched, keras.layers.Flatten(), keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss=loss, metrics=["accuracy"], run_eagerly=True)
    train(model, numbered, Recipe(model="cnn", epochs=3), quiet=True, splits=())
    epochs = np.array(watched.seen).reshape(3, -1)
    assert (np.sort(epochs) == np.sort(images[:, 0, 0, 0])).all()
    for before, after in itertools.pairwise(epochs):
        assert (before == after).mean() < 0.1


def test_the_order_of_the_batches_depends_on_the_seed_and_the_epoch_alone():
    rows = np.arange(50)
    through = Batches(rows, rows, 8, seed=4)
    through.on_epoch_end()
    through.on_epoch_end()
    assert (Batches(rows, rows, 8, seed=4, epoch=2).order == through.order).all()
    assert (Batches(rows, rows, 8, seed=5, epoch=2).order != through.order).any()
    assert (Batches(rows, rows, 8).order == rows).all()


def test_the_state_of_pythons_random_module_changes_no_training(digits):
    """Keras shuffles the batches by it where it is let."""

    class Draw(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            random.random()

    recipe = Recipe(model="cnn", filters=(4,), dense_units=8, batch_size=16, epochs=2)
    losses = [
        train(build_model(recipe, digits), digits, recipe, quiet=True, splits=(), callbacks=callbacks).history["loss"]
        for callbacks in ((), [Draw()])
    ]
    assert losses[0] == losses[1]


def test_how_a_batch_is_mixed_depends_on_the_seed_the_epoch_and_its_number():
    images = np.random.default_rng(0).integers(256, size=(24, 8, 8, 3), dtype="uint8")
    labels = np.eye(24, dtype="float32")

    def mixed(epoch, numbers):
        batches = Batches(images, labels, 8, seed=4, epoch=epoch, mixing=mixing_layers("mixup+cutmix", 4))
        return [batches[i] for i in numbers][-1]

    for one, other in zip(mixed(1, [0, 0, 1, 2]), mixed(1, [2]), strict=True):
        assert (one == other).all()
    assert (mixed(1, [2])[0] != mixed(2, [2])[0]).any()
