"""Test the ResNet-9 and its ensembles: pytest tests/models/test_resnet9.py"""

import dataclasses

import keras
import mlflow
import numpy as np
import pytest

import cnnlab
from cnnlab import classify, reproduction
from cnnlab.evaluation.gradcam import grad_cam
from cnnlab.models.layers import member_networks
from cnnlab.models.resnet9 import adapt, resnet9
from cnnlab.train import train_model
from cnnlab.training import multi_device
from cnnlab.training.frozen_layers import separate_frozen_layers
from cnnlab.training.trainer import train

SMALL = {"dataset": "digits", "limit": 150, "epochs": 2, "filters": (8, 8, 8), "batch_size": 32, "precision": "float32"}


@pytest.fixture
def pictures():
    """Smooth noise, whose neighbouring pixels and channels go together."""
    rng = np.random.default_rng(0)
    coarse = np.repeat(np.repeat(rng.uniform(60, 200, (40, 8, 8, 1)), 4, axis=1), 4, axis=2)
    return np.clip(coarse + rng.normal(0, 10, (40, 32, 32, 3)), 0, 255).astype("uint8")


def test_the_first_convolution_whitens_the_training_images(pictures):
    model = resnet9((32, 32, 3), 10, augment="none", tta_views=1)
    adapt(model, pictures)
    whitened = keras.Model(model.input, model.get_layer("whiten").output).predict(pictures, verbose=0)
    values = whitened.reshape(-1, 24)
    assert (values[:, :12] == -values[:, 12:]).all()
    second_moments = values[:, :12].T @ values[:, :12] / len(values)
    assert second_moments - np.diag(np.diag(second_moments)) == pytest.approx(np.zeros((12, 12)), abs=1e-3)
    assert np.diag(second_moments) == pytest.approx(np.ones(12), abs=0.05)
    normalized = keras.Model(model.input, model.get_layer("normalize").output).predict(pictures, verbose=0)
    assert normalized.mean(axis=(0, 1, 2)) == pytest.approx(np.zeros(3), abs=1e-3)
    assert not model.get_layer("whiten").trainable


def test_an_answer_is_the_mean_of_a_picture_and_its_mirror_image(digits):
    model = cnnlab.build_model(cnnlab.Recipe(model="resnet9", **SMALL), digits)
    adapt(model, digits.train.images)
    images = digits.test.images[:6]
    [one] = member_networks(model)
    expected = (one.predict(images, verbose=0) + one.predict(images[:, :, ::-1], verbose=0)) / 2
    assert model.predict(images, verbose=0) == pytest.approx(expected, abs=1e-6)
    assert model.predict(images[:, :, ::-1], verbose=0) == pytest.approx(expected, abs=1e-6)
    assert np.abs(one.predict(images, verbose=0) - expected).max() > 1e-4
    assert member_networks(one) == [one]
    assert cnnlab.build_model(cnnlab.Recipe(model="resnet9", tta_views=1, **SMALL), digits).count_params() == (
        model.count_params()
    )


def test_six_views_weigh_those_in_place_as_much_as_those_moved(digits):
    model = cnnlab.build_model(cnnlab.Recipe(model="resnet9", tta_views=6, **SMALL), digits)
    adapt(model, digits.train.images)
    images = digits.test.images[:6]
    side = images.shape[1]
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    views = [padded[:, i : i + side, i : i + side] for i in (1, 0, 2)]
    [one] = member_networks(model)
    answers = [(one.predict(v, verbose=0) + one.predict(v[:, :, ::-1], verbose=0)) / 2 for v in views]
    expected = answers[0] / 2 + (answers[1] + answers[2]) / 4
    assert model.predict(images, verbose=0) == pytest.approx(expected, abs=1e-6)
    assert np.abs(answers[1] - answers[2]).max() > 1e-4
    with pytest.raises(cnnlab.ArgumentError, match="to be 1, 2 or 6"):
        resnet9((32, 32, 3), 10, tta_views=4)


def test_an_answer_is_the_mean_of_all_members(digits, monkeypatch):
    model = cnnlab.build_model(cnnlab.Recipe(model="resnet9", ensemble_size=3, tta_views=2, **SMALL), digits)
    networks, images = member_networks(model), digits.test.images[:6]
    views = [network.predict(view, verbose=0) for network in networks for view in (images, images[:, :, ::-1])]
    assert model.predict(images, verbose=0) == pytest.approx(np.mean(views, axis=0), abs=1e-6)
    assert np.abs(views[0] - views[2]).max() > 1e-4
    one = cnnlab.build_model(cnnlab.Recipe(model="resnet9", **SMALL), digits)
    assert model.count_params() == 3 * one.count_params()
    whitening = [network.get_layer("whiten").get_weights()[0] for network in networks]
    assert np.abs(whitening).max() > 1e-3
    assert (whitening[0] == whitening[1]).all()
    heat = grad_cam(model, images, digits.test.labels[:6])
    alone = [grad_cam(network, images, digits.test.labels[:6]) for network in networks]
    assert heat == pytest.approx(np.mean(alone, axis=0))
    monkeypatch.setattr(multi_device, "device_count", lambda model: 2)
    with pytest.raises(cnnlab.ArgumentError, match="3 members side by side"):
        multi_device.expect_replicable(model)
    assert multi_device.expect_replicable(one) is None


@pytest.mark.long
def test_a_member_learns_as_it_would_alone(digits):
    fields = {**SMALL, "filters": (4,), "learning_rate": 0.1, "augment": "altflip", "tta_views": 1}
    recipe = cnnlab.Recipe(model="resnet9", ensemble_size=2, **fields)
    model = cnnlab.build_model(recipe, digits)
    networks = member_networks(model)
    first = [network.get_weights() for network in networks]
    trained = train(model, digits, recipe, quiet=True)
    recipe, scores = cnnlab.Recipe(model="resnet9", **fields), []
    for network, weights in zip(networks, first, strict=True):
        alone = cnnlab.build_model(recipe, digits)
        alone.set_weights(weights)
        scores.append(train(alone, digits, recipe, quiet=True).history)
        for mine, its in zip(network.get_weights(), alone.get_weights(), strict=True):
            assert mine == pytest.approx(its, abs=2e-3, rel=1e-3)
        assert np.abs(weights[-1] - network.get_weights()[-1]).max() > 0.01  # half of that would show
    # What the rounding leaves of a difference may move a picture that is on the edge into another class.
    a_few = {"accuracy": 3 / len(digits.train.labels), "val_accuracy": 3 / len(digits.val.labels)}
    for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
        mean = np.mean([score[name] for score in scores], axis=0)
        assert trained.history[name] == pytest.approx(mean, abs=a_few.get(name, 2e-2)), name


@pytest.mark.long
@pytest.mark.parametrize("members", [1, 2])
def test_it_trains_reloads_in_plain_keras_and_is_reproduced(store, workplace, members):
    recipe = cnnlab.Recipe(model="resnet9", ensemble_size=members, **SMALL)
    result = train_model(recipe)
    dataset = cnnlab.load_dataset("digits", limit=150)
    assert mlflow.pyfunc.load_model(result.model_uri).predict(dataset.test.images) == pytest.approx(
        result.test.probabilities, abs=1e-5
    )
    classifier = classify.load_classifier(result.run_id)
    assert not classifier.model.compiled
    assert classifier.probabilities(dataset.test.images) == pytest.approx(result.test.probabilities, abs=1e-5)
    names = {file.path for file in store.list_artifacts(result.run_id)}
    assert {"augmented.png", "gradcam.png", "curves.png"} <= names
    assert result.history["loss"][-1] < result.history["loss"][0]
    again = reproduction.reproduce(result.run_id)
    assert all(figure.difference < 1e-3 for figure in again.figures), again.figures


def test_features_of_cheap_frozen_layers_are_not_stored(digits):
    recipe = cnnlab.Recipe(model="resnet9", augment="none", tta_views=1, dataset="digits", limit=150)
    assert separate_frozen_layers(cnnlab.build_model(recipe, digits)) is None


def test_pictures_that_are_too_small_are_refused():
    with pytest.raises(cnnlab.ArgumentError, match="at least 9 pixels a side for 3 blocks"):
        resnet9((8, 8, 3), 10)
    model = dataclasses.replace(cnnlab.Recipe(model="resnet9"), filters=(8, 8))
    assert resnet9((8, 8, 3), 10, filters=model.filters).output_shape == (None, 10)
