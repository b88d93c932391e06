"""Test the file formats of exported models: pytest tests/models/test_export_formats.py"""

import zipfile

import keras
import numpy as np
import pytest

from cnnlab.errors import LabError
from cnnlab.models import export_formats
from cnnlab.models.inference_graph import MatrixResizing, inference_model, is_rounded
from cnnlab.models.layers import member_networks
from cnnlab.models.resnet9 import adapt, resnet9
from cnnlab.training.runtime import dtype_policy
from tests.helpers.exports import read_about

ABOUT = {"class_names": ["a", "b", "ç"], "fit": "crop", "grey_range": [0.0, 65535.0]}
NEEDS = {"onnx": "onnxruntime", "litert": "ai_edge_litert.interpreter"}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model():
    """Normalization, augmentation, a bicubic resize, BatchNormalization that was trained, SiLU, a second view
    and a second member.
    """
    keras.utils.set_random_seed(0)
    model = resnet9((32, 32, 3), 3, image_size=40, filters=(6,), augment="flip+crop+color", ensemble_size=2)
    random = np.random.default_rng(0)
    adapt(model, np.random.default_rng(1).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8))
    for layer in (layer for network in member_networks(model) for layer in network.layers):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([w + random.uniform(0, 0.5, w.shape) for w in layer.get_weights()])
    return model


@pytest.mark.parametrize("file_format", export_formats.ENDINGS)
def test_a_file_answers_as_keras_does_and_says_what_it_is(model, images, tmp_path, file_format):
    if file_format in NEEDS:
        pytest.importorskip(NEEDS[file_format], reason=f"pip install 'cnnlab[{file_format}]'")
    expected = model.predict_on_batch(images)
    assert np.ptp(expected, axis=0).max() > 1e-3
    path = tmp_path / f"model{export_formats.ENDINGS[file_format]}"
    export_formats.write_model(model, path, file_format, ABOUT)
    run = export_formats.open_model(path, file_format)
    assert np.abs(run(images) - expected).max() < 1e-5
    assert np.abs(run(images[:2]) - expected[:2]).max() < 1e-5  # of any number
    assert read_about(path, file_format) == ABOUT
    if path.suffix in (".tflite", ".keras"):
        assert zipfile.ZipFile(path).read("labels.txt").decode() == "a\nb\nç\n"


def test_an_exported_model_no_longer_learns_when_it_is_called(model, images):
    """Why an export needs a model of its own."""
    expected, kept, made = model.predict_on_batch(images), model.get_weights(), inference_model(model)
    assert np.abs(np.asarray(model(images)) - expected).max() > 1e-3
    model.set_weights(kept)  # BatchNormalization has learned from it
    assert np.abs(np.asarray(made(images)) - expected).max() < 1e-6


def test_constants_of_a_preprocessing_go_into_the_graph(images, tmp_path):
    pytest.importorskip(NEEDS["onnx"], reason="pip install 'cnnlab[onnx]'")
    given = keras.Input((32, 32, 3), dtype="uint8")
    x = keras.applications.vgg16.preprocess_input(keras.ops.cast(given, "float32"))
    x = keras.layers.Dense(3, activation="softmax")(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(given, x)
    export_formats.write_model(model, tmp_path / "model.onnx", "onnx", ABOUT)
    answers = export_formats.open_model(tmp_path / "model.onnx", "onnx")(images)
    assert np.abs(answers - model.predict_on_batch(images)).max() < 1e-5


def test_whole_numbers_take_pixels_as_they_are(model, images, tmp_path):
    litert = pytest.importorskip(NEEDS["litert"], reason="pip install 'cnnlab[litert]'")
    export_formats.write_model(model, tmp_path / "float.tflite", "litert", ABOUT)
    export_formats.write_model(model, tmp_path / "int8.tflite", "litert", ABOUT, calibration=images)
    given = litert.Interpreter(str(tmp_path / "int8.tflite")).get_input_details()[0]
    assert (given["dtype"], given["quantization"]) == (np.uint8, (1.0, 0))
    run = export_formats.open_model(tmp_path / "int8.tflite", "litert")
    assert 0 < np.abs(run(images) - model.predict_on_batch(images)).max() < 0.1
    assert (tmp_path / "int8.tflite").stat().st_size < (tmp_path / "float.tflite").stat().st_size


@pytest.mark.parametrize("how", [{"interpolation": "bicubic"}, {"interpolation": "bilinear", "antialias": True}])
@pytest.mark.parametrize("size", [(20, 50), (47, 33)])
def test_resizing_by_matrices_is_resizing(images, how, size):
    layer = keras.layers.Resizing(*size, dtype="float32", **how)
    pixels = images.astype("float32")
    made = MatrixResizing(layer.get_config())(pixels)
    assert made.shape == (5, *size, 3)
    assert np.abs(np.asarray(made) - np.asarray(layer(pixels))).max() < 1e-3  # of 255


def test_half_precision_becomes_float32(images):
    with dtype_policy("mixed_bfloat16"):
        model = keras.Sequential(
            [
                keras.Input((32, 32, 3)),  # float32, as of somebody's own
                keras.layers.Rescaling(1 / 255),
                keras.layers.Conv2D(4, 3),
                keras.layers.Flatten(),
                keras.layers.Dense(3, activation="softmax", dtype="float32"),
            ]
        )
    made = inference_model(model)
    assert (is_rounded(model), is_rounded(made)) == (True, False)
    assert made.inputs[0].dtype == "uint8"
    assert 0 < np.abs(made.predict_on_batch(images) - model.predict_on_batch(images)).max() < 0.02


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LabError, match=r"Received: no ai-edge-litert. Install them: pip install 'cnnlab\[litert\]'"):
        export_formats.expect_packages("litert")
