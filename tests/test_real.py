"""Test trainings on real CIFAR-10: CNNLAB_REAL_DATA=/path/to/cifar10 pytest -m real"""

import os

import mlflow
import numpy as np
import pytest

import cnnlab
from cnnlab.data.builtin_sets import CIFAR10_CLASSES

FOLDER = os.environ.get("CNNLAB_REAL_DATA")
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not FOLDER, reason="CNNLAB_REAL_DATA does not name the unpacked CIFAR-10 folder"),
]


def test_all_of_cifar10_loads():
    dataset = cnnlab.load_dataset(FOLDER, val_fraction=0)
    assert dataset.train.images.shape == (50_000, 32, 32, 3)
    assert np.bincount(dataset.train.labels).tolist() == [5000] * 10
    assert np.bincount(dataset.test.labels).tolist() == [1000] * 10
    assert dataset.class_names == CIFAR10_CLASSES


def test_both_models_train_and_reload(store):
    """2,000 training images: chance is 10 %, with a standard deviation of 1.5 points on 400 test images."""
    recipes = [
        cnnlab.Recipe(model="cnn", dataset=FOLDER, limit=2000, epochs=5),
        cnnlab.Recipe(model="vgg16", dataset=FOLDER, limit=2000, epochs=2, weights="random"),
    ]
    results = cnnlab.compare_models(recipes).results
    assert results[0].test_accuracy > 0.3
    dataset = cnnlab.load_dataset(FOLDER, limit=2000)
    for result in results:
        predicted = mlflow.pyfunc.load_model(result.model_uri).predict(dataset.test.images).argmax(axis=1)
        assert np.mean(predicted == dataset.test.labels) == pytest.approx(result.test_accuracy, abs=0.003)
