"""Test that presets of KerasHub are inspected before they are opened: pytest tests/models/test_keras_hub_presets.py

Most of it with a stand-in that opens a folder as KerasHub does; the last test with KerasHub, where it is installed.
"""

import json
import sys
from pathlib import Path
from types import ModuleType

import h5py
import keras
import numpy as np
import pytest

import cnnlab
from cnnlab.models import keras_hub_presets, pretrained
from tests.models.test_safe_loading import HDF5, LAMBDA, external

OPENED = []


def opened(folder, load_weights=True):
    OPENED.append((str(folder), load_weights))
    model = keras.saving.deserialize_keras_object(json.loads(Path(folder, "config.json").read_text()))
    if load_weights:
        large = Path(folder, "model.weights.json")
        model.load_weights(large if large.exists() else Path(folder, "model.weights.h5"))
    return model


def converter(folder):
    return keras.saving.deserialize_keras_object(json.loads(Path(folder, "image_converter.json").read_text()))


@pytest.fixture
def keras_hub(monkeypatch):
    """The few functions of KerasHub that are called."""
    OPENED.clear()
    pretrained._load_hub.cache_clear()
    module, utils = ModuleType("keras_hub"), ModuleType("keras_hub.src.utils.preset_utils")
    module.models, module.layers = ModuleType("models"), ModuleType("layers")
    module.models.Backbone, module.layers.ImageConverter = ModuleType("Backbone"), ModuleType("ImageConverter")
    module.models.Backbone.from_preset, module.layers.ImageConverter.from_preset = opened, converter
    for name in ("keras_hub", "keras_hub.src", "keras_hub.src.utils"):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, utils.__name__, utils)
    return utils


@pytest.fixture
def preset(workplace, keras_hub):
    """A folder of a preset, and its network."""
    images = keras.Input((8, 8, 3))
    x = keras.layers.BatchNormalization()(images)
    network = keras.Model(images, keras.layers.Conv2D(4, 3, activation="relu")(x))
    folder = workplace / "preset"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(keras.saving.serialize_keras_object(network)))
    scaled = keras.saving.serialize_keras_object(keras.layers.Rescaling(1 / 255, offset=-1.0))
    (folder / "image_converter.json").write_text(json.dumps(scaled))
    network.save_weights(folder / "model.weights.h5")
    return folder, network


def change(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_preset_in_a_folder_is_read(preset):
    folder, network = preset
    read = pretrained.load_backbone(f"hub:{folder}", None, None)
    images = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    assert (read.model.predict_on_batch(images) == network.predict_on_batch(images)).all()
    np.testing.assert_allclose(read.preprocess(images), images / 255 - 1, rtol=1e-6)
    assert [load_weights for _, load_weights in OPENED] == [False, True]
    # What was built to see its size leaves no variables behind for others to make.
    with keras.StatelessScope():
        pass


def test_a_named_preset_is_downloaded_and_then_opened_from_its_folder(preset, keras_hub):
    folder, fetched = preset[0], []

    def get_file(preset, path):
        fetched.append(path)
        if not (folder / path).exists():
            raise FileNotFoundError(path)
        return str(folder / path)

    keras_hub.get_file = get_file
    keras_hub_presets.load_preset("a_name")
    assert {name for name, _ in OPENED} == {str(folder)}
    assert fetched == ["config.json", "image_converter.json", "preprocessor_config.json", "model.weights.h5"]
    fetched.clear()
    (folder / "model.weights.h5").rename(folder / "model_0.weights.h5")
    (folder / "model.weights.json").write_text(
        '{"weight_map": {"/a": "model_0.weights.h5", "/b": ["../b.weights.h5"]}}'
    )
    with pytest.raises(
        cnnlab.LabError, match=r"its weights are in '../b\.weights\.h5', which is no file of its folder"
    ):
        keras_hub_presets.load_preset("a_name")
    assert "../b.weights.h5" not in fetched


@pytest.mark.parametrize("name", ["config.json", "image_converter.json", "preprocessor_config.json"])
def test_code_in_a_configuration_is_refused(name, preset):
    folder = preset[0]
    if not (folder / name).exists():
        (folder / name).write_text("{}")
    change(folder / name, **LAMBDA)
    recipe = cnnlab.Recipe(model="transfer", backbone=f"hub:{folder}", dataset="digits", limit=100)
    with pytest.raises(cnnlab.LabError, match=r"Expected '.*preset' to be a KerasHub preset .*a layer 'Lambda', which"):
        cnnlab.build_model(recipe, cnnlab.load_dataset("digits", limit=100))
    change(folder / name, class_name="Dense", config={"units": 1, "activation": LAMBDA}, registered_name=None)
    with pytest.raises(cnnlab.LabError, match="'Lambda'"):
        keras_hub_presets.load_preset(folder)
    # Of timm and transformers it is another kind of file, whose values are given to Keras all the same.
    (folder / name).write_text(json.dumps({"architecture": "resnet18", "activation": LAMBDA}))
    with pytest.raises(cnnlab.LabError, match="'Lambda'"):
        keras_hub_presets.load_preset(folder)
    (folder / name).write_text(" " * 2**25)
    with pytest.raises(cnnlab.LabError, match=f"its '{name}' has 33,554,432 bytes"):
        keras_hub_presets.load_preset(folder)
    assert OPENED == []


@pytest.mark.parametrize("reason", HDF5)
def test_weights_that_lie_elsewhere_or_nowhere_are_refused(reason, preset):
    folder, network = preset
    for damage in HDF5[reason]:
        network.save_weights(folder / "model.weights.h5")
        with h5py.File(folder / "model.weights.h5", "a") as file:
            damage(file)
        with pytest.raises(cnnlab.LabError, match=reason):
            keras_hub_presets.load_preset(folder)
    assert OPENED == []


def test_large_weights_are_looked_through_in_all_their_parts(preset):
    folder, _ = preset
    (folder / "model.weights.h5").rename(folder / "model_0.weights.h5")
    (folder / "model.weights.json").write_text(
        '{"weight_map": {"/a": "model_0.weights.h5", "/b": "model_1.weights.h5"}}'
    )
    with h5py.File(folder / "model_1.weights.h5", "w") as file:
        external(file)
    with pytest.raises(cnnlab.LabError, match="is a link to elsewhere"):
        keras_hub_presets.load_preset(folder)
    for name in ("/etc/x.weights.h5", "../x.weights.h5", "x.pickle", 1):
        (folder / "model.weights.json").write_text(json.dumps({"weight_map": {"/a": name}}))
        with pytest.raises(cnnlab.LabError, match="no file of its folder"):
            keras_hub_presets.load_preset(folder)
    assert OPENED == []


def test_layers_without_weights_get_no_memory(preset):
    folder, _ = preset
    config = json.loads((folder / "config.json").read_text())
    config["config"]["layers"][-1]["config"]["filters"] = 10**10  # terabytes, were they made
    change(folder / "config.json", **config)
    with pytest.raises(cnnlab.LabError, match=r"its layers have \d{3},\d{3},\d{3},\d{3} weights, and \d+ are stored"):
        keras_hub_presets.load_preset(folder)
    assert [load_weights for _, load_weights in OPENED] == [False]


def test_presets_load_with_keras_hub_itself(workplace):
    keras_hub = pytest.importorskip("keras_hub")
    network = keras_hub.models.ViTBackbone(
        image_shape=(32, 32, 3), patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64
    )
    images = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    for name, size in (("one", 10), ("parts", 3e-5)):  # gigabytes of a file
        network.save_to_preset(name, max_shard_size=size)
        keras_hub.layers.ViTImageConverter(image_size=(32, 32), scale=0.5, offset=1.0).save_to_preset(name)
        model, *scaled = keras_hub_presets.load_preset(name)
        assert (model.predict_on_batch(images) == network.predict_on_batch(images)).all()
        assert scaled == [0.5, 1.0]
    assert len(list(Path("parts").glob("*.weights.h5"))) > 1
    kind = {"class_name": "WordPieceTokenizer", "registered_name": "keras_hub>WordPieceTokenizer"}
    change(Path("one/config.json"), **kind, config={"vocabulary": "/etc/passwd"})
    with pytest.raises(cnnlab.LabError, match="a layer 'Tokenizer', which may run code or read other files"):
        keras_hub_presets.load_preset("one")
