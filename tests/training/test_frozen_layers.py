"""Test training on features of frozen layers, computed once: pytest tests/training/test_frozen_layers.py"""

import os

import keras
import numpy as np
import pytest

import cnnlab
from cnnlab.data.batching import Batches
from cnnlab.data.disk_rows import MappedRows
from cnnlab.training import frozen_features, frozen_layers, runtime, trained_part, trainer
from cnnlab.training.frozen_layers import compute_features, separate_frozen_layers
from cnnlab.utils import user_cache


@pytest.fixture
def vgg16(digits):
    def build(**fields):
        recipe = cnnlab.Recipe(model="vgg16", weights="random", epochs=2, learning_rate=1e-3, **fields)
        return cnnlab.build_model(recipe, digits), recipe

    return build


def half_frozen(augment=False, scale=1 / 255, seed=3, dropout=0.2):
    """Return a model of frozen convolutions under trained ones, as VGG16 with its top block trained."""
    keras.utils.set_random_seed(seed)
    x = images = keras.Input((32, 32, 3), dtype="uint8")
    if augment:
        x = keras.layers.RandomFlip("horizontal")(x)
    x = keras.layers.Rescaling(scale)(x)
    x = keras.layers.Conv2D(8, 3, strides=4, activation="relu", trainable=False)(x)  # (N, 8, 8, 8)
    x = keras.layers.Conv2D(8, 3, activation="relu")(x)
    x = keras.layers.Dropout(dropout)(keras.layers.Flatten()(x))
    # Probabilities stay float32 under a mixed precision policy, as in the models of the table.
    model = keras.Model(images, keras.layers.Dense(10, activation="softmax", dtype="float32")(x))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


RECIPE = cnnlab.Recipe(epochs=3)


@pytest.fixture
def passes(monkeypatch):
    """A list of how many images each pass through frozen layers computed."""
    computed, original = [], frozen_features._compute

    def counting(fill, shape, *rest):
        computed.append(shape[0])
        return original(fill, shape, *rest)

    monkeypatch.setattr(frozen_features, "_compute", counting)
    return computed


def images_of(dataset):
    return dataset.train.images, dataset.val.images, dataset.test.images


def train(model, recipe, digits):
    trained = trainer.train(model, digits, recipe)
    return trained.history, trained.predictions["test"].probabilities, [w.numpy() for w in model.trainable_weights]


@pytest.mark.parametrize("kind", ["vgg16", "cut in the middle"])
def test_training_on_features_equals_training_the_whole_model(kind, vgg16, digits, store, monkeypatch):
    def build():
        return (
            (half_frozen(), RECIPE) if kind == "cut in the middle" else vgg16(dropout=0.3 if "dropout" in kind else 0.0)
        )

    on_features = train(*build(), digits)
    assert len(user_cache.entries()) == 1
    monkeypatch.setattr(trained_part, "separate_frozen_layers", lambda model: None)
    whole = train(*build(), digits)
    for a, b in zip(on_features[2], whole[2], strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=2e-5)
    assert on_features[0]["val_loss"] == pytest.approx(whole[0]["val_loss"], rel=1e-4)
    assert on_features[1] == pytest.approx(whole[1], abs=1e-4)


def test_where_the_frozen_layers_end(vgg16, digits):
    assert separate_frozen_layers(vgg16()[0]).frozen.output.shape == (None, 512)
    assert separate_frozen_layers(vgg16(train_blocks=1)[0]).frozen.output.shape == (None, 2, 2, 512)
    assert separate_frozen_layers(vgg16(train_blocks=5)[0]) is None
    assert separate_frozen_layers(vgg16(augment="full")[0]) is None
    assert separate_frozen_layers(vgg16(augment="flip")[0]).flips
    assert separate_frozen_layers(cnnlab.build_model(cnnlab.Recipe(), digits)) is None


def test_a_graph_that_cannot_be_cut_is_left_whole():
    """The input of a frozen layer is used again by a later layer."""
    x = keras.Input((4,))
    frozen = keras.layers.Dense(4, trainable=False)(x)
    trained = keras.layers.Dense(4)(frozen)
    model = keras.Model(x, keras.layers.Add()([trained, x]))
    model.compile("sgd", "mse")
    assert separate_frozen_layers(model) is None


def test_one_pass_for_every_split_seed_and_model(digits, passes):
    images = len(np.unique(np.concatenate(images_of(digits)).reshape(187, -1), axis=0))
    compute_features(separate_frozen_layers(half_frozen()).frozen, *images_of(digits))
    compute_features(separate_frozen_layers(half_frozen(dropout=0.5)).frozen, *images_of(digits))
    other = cnnlab.load_dataset("digits", limit=150, val_fraction=0.3)
    a = compute_features(separate_frozen_layers(half_frozen()).frozen, *images_of(other))
    assert passes == [images]
    direct = separate_frozen_layers(half_frozen()).frozen.predict(other.val.images, verbose=0)
    assert a[1] == pytest.approx(direct, rel=1e-4, abs=1e-5)


def test_key_follows_images_weights_and_configuration(digits, passes):
    train_images, val_images, test_images = images_of(digits)
    changed = train_images.copy()
    changed[0, 0, 0, 0] ^= 1
    compute_features(separate_frozen_layers(half_frozen()).frozen, train_images, val_images, test_images)
    compute_features(separate_frozen_layers(half_frozen()).frozen, changed, val_images, test_images)
    compute_features(separate_frozen_layers(half_frozen(scale=1 / 127)).frozen, train_images, val_images, test_images)
    compute_features(separate_frozen_layers(half_frozen(seed=1)).frozen, train_images, val_images, test_images)
    with runtime.dtype_policy("mixed_bfloat16"):
        compute_features(separate_frozen_layers(half_frozen()).frozen, train_images, val_images, test_images)
    assert len(passes) == 5
    compute_features(separate_frozen_layers(half_frozen()).frozen, train_images, val_images, test_images)
    assert len(passes) == 5


def test_flip_takes_two_passes_and_picks_one_of_them(digits, passes):
    parts = separate_frozen_layers(half_frozen(augment=True))
    train_x, val_x, _ = compute_features(parts.frozen, *images_of(digits), flips=parts.flips)
    assert len(passes) == 2
    assert train_x.shape == (135, 2, 8, 8, 8)
    assert val_x.shape == (15, 1, 8, 8, 8)
    mirrored = parts.frozen.predict(digits.train.images[:3, :, ::-1].astype("float32"), verbose=0)
    assert train_x[:3, 1] == pytest.approx(mirrored, rel=1e-4, abs=1e-5)
    pick = parts.head.get_layer("pick_one_of_two")
    drawn = keras.ops.convert_to_numpy(pick(train_x, training=True))
    is_mirrored = (drawn == train_x[:, 1]).all(axis=(1, 2, 3))
    assert 40 <= is_mirrored.sum() <= 95  # of 135 with probability one half: more than 4 sigma
    assert (drawn[~is_mirrored] == train_x[~is_mirrored, 0]).all()
    assert (keras.ops.convert_to_numpy(pick(train_x)) == train_x[:, 0]).all()


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b""])
def test_damaged_file_is_computed_again_with_a_warning(damage, vgg16, digits, passes, capsys):
    parts = separate_frozen_layers(half_frozen())
    before = compute_features(parts.frozen, *images_of(digits))
    [path] = user_cache.cache_folder("features").glob("*.npy")
    path.write_bytes(damage(path.read_bytes()))
    after = compute_features(parts.frozen, *images_of(digits))
    assert len(passes) == 2
    assert "are damaged" in capsys.readouterr().err
    assert (before[0] == after[0]).all()


def test_oldest_out_first_and_clear(digits, monkeypatch):
    train_images = digits.train.images
    parts = separate_frozen_layers(half_frozen())
    monkeypatch.setenv("CNNLAB_CACHE_GB", str(45 * 512 * 4 / 1e9))  # room for two of 20 images, not for three
    for i in range(3):
        compute_features(parts.frozen, train_images[20 * i : 20 * i + 20], train_images[:0], train_images[:0])
        for age, entry in enumerate(reversed(user_cache.entries())):
            os.utime(user_cache.cache_folder("features") / f"{entry['key']}.npy", (1000 * i + age, 1000 * i + age))
    assert len(user_cache.entries()) == 2
    assert {tuple(e["shape"]) for e in user_cache.entries()} == {(20, 8, 8, 8)}
    assert user_cache.clear() > 2 * 20 * 512 * 4
    assert user_cache.entries() == []


def test_large_features_are_read_batch_by_batch(digits, store, monkeypatch):
    in_memory = train(half_frozen(), RECIPE, digits)
    monkeypatch.setattr(frozen_layers, "IN_MEMORY", 0)
    mapped = compute_features(separate_frozen_layers(half_frozen()).frozen, *images_of(digits))
    assert isinstance(mapped[0], MappedRows)
    history, probabilities, _ = train(half_frozen(), RECIPE, digits)
    assert history["loss"] == pytest.approx(in_memory[0]["loss"], rel=1e-5)  # the order is the seed's and epoch's
    assert probabilities.shape == (37, 10)
    data = Batches(mapped[0], digits.train.labels, 32, seed=0)
    order = np.concatenate([data[i][1] for i in range(len(data))])
    assert np.bincount(order).tolist() == np.bincount(digits.train.labels).tolist()


def test_half_precision_is_stored_and_values_beyond_it_give_a_warning(digits, capsys):
    parts = separate_frozen_layers(half_frozen())
    [whole] = compute_features(parts.frozen, digits.test.images)
    [half] = compute_features(parts.frozen, digits.test.images, dtype="float16")
    assert half.dtype == np.float16
    assert half == pytest.approx(whole, rel=1e-3, abs=1e-5)
    assert len(user_cache.entries()) == 2
    assert capsys.readouterr().err == ""
    large = separate_frozen_layers(half_frozen(scale=1e4))
    [kept] = compute_features(large.frozen, digits.test.images, dtype="float16")
    assert kept.dtype == np.float32
    assert np.abs(kept).max() > 65504
    assert "too large for float16" in capsys.readouterr().err
    assert (compute_features(large.frozen, digits.test.images, dtype="float16")[0] == kept).all()


def test_frozen_layers_in_bfloat16_feed_a_trained_stage_in_float32(digits, store):
    recipe = cnnlab.Recipe(
        model="vgg16", weights="random", train_blocks=1, frozen_precision="mixed_bfloat16", epochs=1, dataset="digits"
    )
    model = cnnlab.build_model(recipe, digits)
    assert model.get_layer("block4_conv3").compute_dtype == "bfloat16"
    assert model.get_layer("block5_conv1").compute_dtype == "float32"
    trained = trainer.train(model, digits, recipe)
    assert np.isfinite(trained.history["loss"]).all()
    [entry] = user_cache.entries()
    assert entry["shape"][1:] == [2, 2, 512]
