"""Test what ends a training whose numbers are not finite, and what one leaves: pytest tests/training/test_trainer.py"""

import gc
from unittest import mock

import keras
import numpy as np
import pytest

import cnnlab
from cnnlab.training import trainer


class SetWeights(keras.callbacks.Callback):
    """Fills the weights with a number at each of these moments: `on_train_end=nan`."""

    def __init__(self, **numbers):
        super().__init__()
        for moment, number in numbers.items():
            setattr(self, moment, lambda *_, number=number, **__: self.fill(number))

    def fill(self, number):
        self.model.set_weights([np.full_like(w, number) for w in self.model.get_weights()])


def linear_model(dataset):
    """A compiled model that trains in half a second: a softmax of the pixels."""
    images = keras.Input(dataset.image_shape, dtype="uint8")
    flat = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(images))
    model = keras.Model(images, keras.layers.Dense(10, activation="softmax")(flat))
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


@pytest.mark.parametrize(
    ("numbers", "received"),
    [
        ({"on_epoch_begin": np.nan}, "a finite loss. Received: NaN or infinity after epoch 1"),
        ({"on_train_batch_end": np.nan}, "a finite validation loss. Received: NaN or infinity after epoch 1"),
        (
            {"on_test_begin": np.nan, "on_test_end": 0},
            "a finite validation loss. Received: NaN or infinity after epoch 1",
        ),
        ({"on_train_end": np.inf}, "finite weights. Received: NaN or infinity after epoch 3"),
        ({"on_train_end": 1e38}, "finite probabilities of the test images. Received: NaN or infinity after epoch 3"),
    ],
    ids=["loss", "last step", "validation", "weights", "predictions"],
)
def test_a_training_fails_wherever_numbers_stop_being_finite(digits, numbers, received):
    recipe = cnnlab.Recipe(dataset="digits", limit=150, epochs=3, batch_size=150)
    checkpoint = mock.Mock(stored=None)
    with pytest.raises(cnnlab.LabError, match=f"Expected {received}. Lower the learning rate"):
        trainer.train(
            linear_model(digits), digits, recipe, callbacks=[SetWeights(**numbers)], quiet=True, checkpoint=checkpoint
        )
    checkpoint.remove.assert_called_once_with()


def test_a_training_leaves_no_graphs_behind(digits):
    def graphs():
        gc.collect()
        return sum(type(o).__name__ == "FuncGraph" for o in gc.get_objects())

    before, model = graphs(), linear_model(digits)
    trainer.train(model, digits, cnnlab.Recipe(dataset="digits", limit=150, epochs=1), quiet=True)
    assert graphs() > before
    del model
    assert graphs() == before
