"""Test the CNN and VGG16: pytest tests/models/test_cnn.py"""

import keras
import numpy as np
import pytest

import cnnlab
from cnnlab import build_cnn, build_vgg16
from cnnlab.training import runtime

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)


def test_the_cnn_has_the_documented_architecture():
    model = build_cnn((32, 32, 3), 10)
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert [(c.filters, c.kernel_size) for c in convolutions] == [(32, (3, 3)), (64, (3, 3)), (128, (3, 3))]
    assert sum(isinstance(layer, keras.layers.MaxPooling2D) for layer in model.layers) == 3
    # Convolutions, then Dense(128) on the 2x2x128 that is left, then the softmax.
    convolution_params = 32 * (27 + 1) + 64 * (9 * 32 + 1) + 128 * (9 * 64 + 1)
    assert model.count_params() == convolution_params + 128 * (512 + 1) + 10 * (128 + 1)
    assert isinstance(model.optimizer, keras.optimizers.Adam)
    assert float(model.optimizer.learning_rate) == pytest.approx(1e-3)


def test_vgg16_base_is_frozen_and_the_head_is_not():
    model = build_vgg16((32, 32, 3), 10, weights="random", dense_units=256)
    head = 256 * (512 + 1) + 10 * (256 + 1)
    assert sum(int(np.prod(w.shape)) for w in model.trainable_weights) == head
    assert model.count_params() == 14_714_688 + head  # the count that keras.applications documents
    assert float(model.optimizer.learning_rate) == pytest.approx(1e-4)


@pytest.mark.parametrize(("train_blocks", "first"), [(1, "block5_conv1"), (2, "block4_conv1")])
def test_vgg16_top_blocks_can_be_trained(train_blocks, first):
    model = build_vgg16((32, 32, 3), 10, weights="random", train_blocks=train_blocks)
    assert next(layer.name for layer in model.layers if layer.trainable_weights) == first


@pytest.mark.parametrize("build", [build_cnn, lambda *a: build_vgg16(*a, weights="random")])
def test_a_model_maps_raw_images_to_probabilities(build):
    model = build((32, 32, 3), 7)
    probabilities = model.predict(IMAGES, verbose=0)
    assert probabilities.shape == (4, 7)
    assert probabilities.dtype == np.float32
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(4), abs=1e-5)
    assert model.input.dtype == "uint8"


def test_vgg16_preprocessing_is_inside():
    """The model equals the plain base fed with Keras's own preprocess_input, and differs with 0..1 scaling."""
    keras.utils.set_random_seed(0)
    model = build_vgg16((32, 32, 3), 10, weights="random")
    base = keras.applications.VGG16(include_top=False, weights=None, input_shape=(32, 32, 3))
    base.set_weights([w for layer in model.layers if layer.name.startswith("block") for w in layer.get_weights()])
    expected = base.predict(keras.applications.vgg16.preprocess_input(IMAGES.astype("float32")), verbose=0)
    received = keras.Model(model.input, model.get_layer("block5_pool").output).predict(IMAGES, verbose=0)
    assert received == pytest.approx(expected, rel=1e-4, abs=1e-5)
    scaled = build_vgg16((32, 32, 3), 10, weights="random", preprocessing="scale")
    assert scaled.get_layer("scale").scale == pytest.approx(1 / 255)


@pytest.mark.parametrize("augment", ["flip", "full"])
def test_augmentation_only_in_training(augment):
    model = build_cnn((32, 32, 3), 10, augment=augment)
    assert (model.predict(IMAGES, verbose=0) == model.predict(IMAGES, verbose=0)).all()
    draws = [model(IMAGES, training=True).numpy() for _ in range(8)]
    assert max(np.abs(draw - draws[0]).max() for draw in draws) > 0


@pytest.mark.parametrize("augment", ["none", "full"])
@pytest.mark.parametrize("build", [build_cnn, lambda *a, **k: build_vgg16(*a, weights="random", **k)])
def test_saved_models_reload_exactly(build, augment, workplace):
    model = build((32, 32, 3), 3, augment=augment)
    model.save(workplace / "m.keras")
    reloaded = keras.models.load_model(workplace / "m.keras")
    assert (reloaded.predict(IMAGES, verbose=0) == model.predict(IMAGES, verbose=0)).all()


def test_same_seed_same_weights(digits):
    recipe = cnnlab.Recipe(model="cnn", seed=3)
    a, b = cnnlab.build_model(recipe, digits), cnnlab.build_model(recipe, digits)
    assert all((x == y).all() for x, y in zip(a.get_weights(), b.get_weights(), strict=True))


def test_images_that_are_too_small_are_refused():
    with pytest.raises(cnnlab.ArgumentError, match="used up before block 3"):
        build_cnn((12, 12, 3), 10)
    with pytest.raises(cnnlab.ArgumentError, match="at least 32x32"):
        build_vgg16((16, 16, 3), 10, weights="random")


def test_weights_are_loaded_from_files(workplace):
    base = keras.applications.VGG16(include_top=False, weights=None, input_shape=(32, 32, 3))
    base.save_weights(workplace / "good.weights.h5")
    model = build_vgg16((32, 32, 3), 10, weights=str(workplace / "good.weights.h5"))
    assert (model.get_layer("block3_conv2").get_weights()[0] == base.get_layer("block3_conv2").get_weights()[0]).all()

    (workplace / "corrupt.weights.h5").write_bytes(b"not a weights file")
    build_cnn((32, 32, 3), 10).save_weights(workplace / "other.weights.h5")
    for name in ("corrupt", "other"):
        with pytest.raises(cnnlab.LabError, match=f"Expected '.*{name}.weights.h5' to hold") as caught:
            build_vgg16((32, 32, 3), 10, weights=str(workplace / f"{name}.weights.h5"))
        assert "\n" not in str(caught.value)
    with pytest.raises(cnnlab.ArgumentError, match=r"Received: 'missing\.h5'"):
        build_vgg16((32, 32, 3), 10, weights="missing.h5")


def test_imagenet_weights_unreachable():
    with pytest.raises(cnnlab.LabError, match="Expected to download VGG16's ImageNet weights"):
        build_vgg16((32, 32, 3), 10)


def test_unknown_model_is_named_with_the_nearest(digits):
    with pytest.raises(cnnlab.ArgumentError, match="Did you mean 'vgg16'"):
        cnnlab.build_model(cnnlab.Recipe(model="vgg"), digits)


def test_precision_is_resolved_by_the_hardware(monkeypatch, capsys, digits):
    for supported, resolved in ((True, "mixed_bfloat16"), (False, "float32")):
        monkeypatch.setattr(runtime, "has_bfloat16", lambda supported=supported: supported)
        assert runtime.resolve_precision("auto") == resolved
    assert runtime.resolve_precision("mixed_bfloat16") == "mixed_bfloat16"
    assert "emulated" in capsys.readouterr().err
    model = cnnlab.build_model(cnnlab.Recipe(model="cnn", precision="mixed_bfloat16"), digits)
    assert model.get_layer("conv1").compute_dtype == "bfloat16"
    assert model.get_layer("probabilities").compute_dtype == "float32"
    assert keras.config.dtype_policy().name == "float32"
