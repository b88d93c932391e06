"""Test transfer learning from built-in and saved backbones: pytest tests/models/test_transfer.py"""

import dataclasses
import inspect

import keras
import mlflow
import numpy as np
import pytest

import cnnlab
from cnnlab.models import model_surgery, pretrained
from cnnlab.models.model_table import BACKBONES, MODELS
from cnnlab.resolve import prepare
from cnnlab.tracking import model_registry, promotion
from cnnlab.train import train_model
from cnnlab.training import build
from cnnlab.training.frozen_layers import separate_frozen_layers
from cnnlab.utils import user_cache

SMALL = {"dataset": "digits", "limit": 150, "epochs": 1}


def features_model(model):
    """From pixels to the features below the head."""
    pool = next(layer for layer in model.layers if layer.name in ("average_pool", "flatten"))
    return keras.Model(model.input, pool.input)


def test_every_network_of_keras_has_a_row():
    networks = {
        name
        for name, function in vars(keras.applications).items()
        if inspect.isfunction(function) and "include_top" in inspect.signature(function).parameters
    }
    assert {row.build for row in BACKBONES.values()} == networks
    assert set(BACKBONES) <= set(MODELS)
    assert len(networks) >= 38


@pytest.mark.long
@pytest.mark.parametrize("name", ["mobilenetv2", "efficientnetv2b0", "resnet50"])
def test_families_train_on_stored_features_and_reload_equally(name, store):
    result = train_model(cnnlab.Recipe(model=name, weights="random", **SMALL))
    [entry] = user_cache.entries()
    assert entry["shape"][1:] == [keras.models.load_model(_file(result)).get_layer("average_pool").output.shape[1]]
    reloaded = mlflow.pyfunc.load_model(result.model_uri)
    dataset = cnnlab.load_dataset("digits", limit=150)
    assert reloaded.predict(dataset.test.images) == pytest.approx(result.test.probabilities, abs=2e-3)
    assert result.trainable_params < result.params / 2


def _file(result):
    return mlflow.artifacts.download_artifacts(result.model_uri) + "/data/model.keras"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("resnet50", marks=pytest.mark.long),
        pytest.param("efficientnetb0", marks=pytest.mark.long),
        pytest.param("densenet121", marks=pytest.mark.long),
    ],
)
def test_features_are_the_networks_own_on_its_own_preprocessing(name, digits, workplace):
    row = BACKBONES[name]
    keras.utils.set_random_seed(1)
    network = getattr(keras.applications, row.build)(include_top=False, weights=None, input_shape=(32, 32, 3))
    assert network.count_params() == row.parameters
    # BatchNormalization as after training, or its statistics could be left out unseen.
    rng = np.random.default_rng(0)
    network.set_weights([w if w.ndim > 1 else w + rng.uniform(0.1, 0.5, w.shape) for w in network.get_weights()])
    network.save_weights("own.weights.h5")
    model = cnnlab.build_model(
        cnnlab.Recipe(model=name, weights="own.weights.h5", image_size=32, frozen_precision="float32"), digits
    )
    preprocess = inspect.getmodule(getattr(keras.applications, row.build)).preprocess_input
    images = digits.test.images[:4]
    expected = network.predict(preprocess(images.astype("float32")), verbose=0)
    received = features_model(model).predict(images, verbose=0)
    assert received == pytest.approx(expected, rel=1e-3, abs=1e-3 * float(np.abs(expected).max()))


def test_frozen_layers_stay_in_inference_mode(digits):
    """EfficientNet has BatchNormalization and dropout."""
    recipe = cnnlab.Recipe(model="efficientnetb0", weights="random", image_size=32, frozen_precision="float32")
    features = features_model(cnnlab.build_model(recipe, digits))
    images = digits.test.images[:4]
    trained = keras.ops.convert_to_numpy(features(images, training=True))
    assert (trained == keras.ops.convert_to_numpy(features(images, training=False))).all()


@pytest.mark.parametrize("name", ["vgg16", "mobilenetv2", "efficientnetv2b0"])
def test_the_topmost_stage_is_trained_on_stored_features_of_the_rest(name, digits):
    recipe = cnnlab.Recipe(model=name, weights="random", image_size=32, train_blocks=1)
    model = cnnlab.build_model(recipe, digits)
    parts = separate_frozen_layers(model)
    layers = [layer.name for layer in model.layers]
    border = layers.index(BACKBONES[name].stages[0])
    assert layers.index(parts.frozen.layers[-1].name) >= border
    assert not any(layer.trainable_weights for layer in model.layers[: border + 1])
    assert any(layer.trainable_weights for layer in model.layers[border + 1 : -4])
    beyond = len(BACKBONES[name].stages) + 1
    with pytest.raises(cnnlab.ArgumentError, match=f"at most {beyond - 1}, the stages of {name}"):
        cnnlab.build_model(dataclasses.replace(recipe, train_blocks=beyond), digits)


@pytest.mark.parametrize("name", ["vgg16", "resnet50", "mobilenetv2"])
def test_stages_of_an_unknown_network_are_found_where_it_halves_the_features(name):
    network = getattr(keras.applications, BACKBONES[name].build)(
        include_top=False, weights=None, input_shape=(64, 64, 3)
    )
    found = model_surgery.find_stages(network, 64)
    assert found[-1] == ""
    assert len(found) == len(BACKBONES[name].stages)
    names = [layer.name for layer in network.layers]
    for stage, row in zip(found[:-1], BACKBONES[name].stages[:-1], strict=True):
        assert abs(names.index(stage) - names.index(row)) <= 4, (stage, row)


def test_a_network_has_the_same_layers_whenever_it_is_read():
    """Keras numbers layers without a name within the process; fine-tuning looks for them by their names."""
    first, second = (pretrained.load_backbone("mobilenetv3small", "random", 32).model for _ in range(2))
    names = [layer.name for layer in first.layers[1:]]
    assert [layer.name for layer in second.layers[1:]] == names
    assert {"rescaling", "activation", "activation_1", "re_lu", "re_lu_1"} <= set(names)
    assert len(set(names)) == len(names)


def test_small_pictures_stay_small_and_are_enlarged_inside(store, digits):
    recipe = cnnlab.Recipe(model="mobilenetv2", weights="random", image_size=64, **SMALL)
    [(dataset, prepared)] = prepare([recipe])
    assert dataset.image_shape == (32, 32, 3)
    assert prepared.recipe.stored_size == 32
    model = cnnlab.build_model(prepared.recipe, dataset)
    assert model.input_shape == (None, 32, 32, 3)
    resized = model.get_layer("resize").output
    assert resized.shape == (None, 64, 64, 3)
    # In and outside a graph alike; Keras's layer is not, for uint8.
    images = dataset.test.images[:4]
    assert model.predict(images, verbose=0) == pytest.approx(np.asarray(model(images)), abs=1e-3)
    [(_, open_size)] = prepare([cnnlab.Recipe(model="mobilenetv2", weights="random", dataset="digits")])
    assert open_size.recipe.image_size == 32  # 3 times 8 pixels, but at least what the network takes


def test_each_model_of_a_comparison_has_pictures_of_its_own_size(picture_folder):
    recipes = [
        cnnlab.Recipe(model="cnn", dataset=str(picture_folder), image_size=24),
        cnnlab.Recipe(model="mobilenetv2", dataset=str(picture_folder), image_size=48, weights="random"),
    ]
    loaded = prepare(recipes)
    assert [one for _, one in loaded] == [prepare([recipe])[0][1] for recipe in recipes]
    assert [dataset.image_shape for dataset, _ in loaded] == [(24, 24, 3), (32, 32, 3)]
    assert [(one.recipe.image_size, one.recipe.stored_size) for _, one in loaded] == [(24, None), (48, 32)]


def test_a_saved_model_is_a_backbone_without_its_head(store, digits, workplace):
    network = cnnlab.build_cnn((32, 32, 3), 5, filters=(8, 16), augment="full")
    network.save("mine.keras")
    recipe = cnnlab.Recipe(model="transfer", backbone="mine.keras", frozen_precision="float32", **SMALL)
    [(dataset, prepared)] = prepare([recipe])
    assert prepared.recipe.backbone == str(workplace / "mine.keras")
    model = cnnlab.build_model(prepared.recipe, dataset)
    assert model.output_shape == (None, 10)
    assert separate_frozen_layers(model) is not None
    images = dataset.test.images[:4]
    expected = keras.Model(network.input, network.get_layer("pool2").output).predict(images, verbose=0)
    assert features_model(model).predict(images, verbose=0) == pytest.approx(expected, abs=1e-4)
    result = train_model(recipe)
    assert result.name == "mine on digits"
    assert len(store.get_run(result.run_id).data.tags["cnnlab.backbone_sha256"]) == 64
    again = mlflow.pyfunc.load_model(result.model_uri).predict(dataset.test.images)
    assert again == pytest.approx(result.test.probabilities, abs=2e-3)


@pytest.mark.long
def test_a_registered_model_is_a_backbone_by_its_version(store, small_cnn):
    champion, _ = model_registry.register_run(train_model(small_cnn).run_id, name="shapes")
    promotion.promote(champion)
    result = train_model(cnnlab.Recipe(model="transfer", backbone="models:/shapes@champion", **SMALL))
    assert result.recipe.backbone == "models:/shapes/1"
    assert store.get_run(result.run_id).data.params["backbone"] == "models:/shapes/1"
    model = keras.models.load_model(_file(result))
    trained = keras.models.load_model(mlflow.artifacts.download_artifacts("models:/shapes/1") + "/data/model.keras")
    assert (model.get_layer("conv1").get_weights()[0] == trained.get_layer("conv1").get_weights()[0]).all()
    with pytest.raises(cnnlab.LabError, match="to be a model of this store"):
        train_model(cnnlab.Recipe(model="transfer", backbone="models:/nobody@champion", **SMALL))


@pytest.mark.long
def test_weights_are_read_once_a_process_and_no_model_is_built_twice(store, workplace, monkeypatch):
    keras.utils.set_random_seed(1)
    keras.applications.VGG16(include_top=False, weights=None, input_shape=(32, 32, 3)).save_weights("vgg16.weights.h5")
    reads, builds = [], []
    read, built = pretrained._load_weights, build.compile_for
    monkeypatch.setattr(pretrained, "_load_weights", lambda *a: reads.append(a) or read(*a))
    monkeypatch.setattr(build, "compile_for", lambda *a, **k: builds.append(a) or built(*a, **k))
    recipe = cnnlab.Recipe(model="vgg16", weights="vgg16.weights.h5", **SMALL)
    results = cnnlab.compare_models([recipe, dataclasses.replace(recipe, seed=1)]).results
    assert len(reads) == 1
    assert len(builds) == 2
    again = train_model(recipe)
    assert len(reads) == 1
    # Whether the weights were read in this process before does not change the head's seeds.
    assert again.history["loss"] == pytest.approx(results[0].history["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("top", "augmented", "ends_at"),
    [
        ([keras.layers.Dense(5, activation="softmax")], True, "conv"),
        ([keras.layers.Dense(5), keras.layers.Softmax()], False, "conv"),
        ([], True, "pool"),
    ],
)
def test_sequential_backbones_lose_their_head_and_name_their_last_layer(store, capsys, top, augmented, ends_at):
    augmentation = [keras.layers.RandomFlip(), keras.layers.RandomRotation(0.2)] if augmented else []
    body = [keras.layers.Conv2D(4, 3, name="conv"), keras.layers.GlobalAveragePooling2D(name="pool")]
    keras.Sequential([keras.Input((32, 32, 3)), *augmentation, *body, *top]).save("seq.keras")
    result = train_model(cnnlab.Recipe(model="transfer", backbone="seq.keras", **SMALL))
    assert f"seq: features are the output of its layer '{ends_at}'" in capsys.readouterr().out
    assert f"'{ends_at}'" in store.get_run(result.run_id).data.tags["cnnlab.features"]
    assert len(user_cache.entries()) == 1


def test_an_unusable_backbone_gives_a_sentence(store, workplace, digits):
    images = keras.Input((32, 32, 3))
    x = keras.layers.Lambda(lambda x: x / 255)(images)
    keras.Model(images, keras.layers.Conv2D(4, 3)(x)).save("code.keras")
    (workplace / "text.keras").write_text("no model")
    keras.Sequential([keras.Input((32, 32, 1)), keras.layers.Conv2D(4, 3)]).save("grey.keras")
    keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Reshape((-1, 3))]).save("rows.keras")
    dense = [keras.layers.Rescaling(1 / 255), keras.layers.Flatten(), keras.layers.Dense(5, activation="softmax")]
    keras.Sequential([keras.Input((32, 32, 3)), *dense]).save("dense.keras")
    (workplace / "old.h5").write_bytes(b"")
    for backbone, message in (
        ("code.keras", "Keras model of built-in layers"),
        ("text.keras", "Keras model of built-in layers"),
        ("grey.keras", r"images \(H, W, 3\)"),
        ("dense.keras", "convolutions below its head"),
        ("rows.keras", "to give features of images of 32x32 pixels"),
        ("old.h5", "saved as .keras"),
        ("missing.keras", "Received: 'missing.keras'"),
        ("mobilnetv2", "Did you mean 'mobilenetv2'"),
        ("hub:some_preset", r"pip install 'cnnlab\[hub\]'"),
    ):
        with pytest.raises(cnnlab.LabError, match=message) as caught:
            train_model(cnnlab.Recipe(model="transfer", backbone=backbone, **SMALL))
        assert "\n" not in str(caught.value)
    keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Conv2D(4, 3)]).save("plain.keras")
    with pytest.raises(cnnlab.ArgumentError, match="brings its own"):
        train_model(cnnlab.Recipe(model="transfer", backbone="plain.keras", weights="random", **SMALL))


def test_a_changed_model_has_its_own_defaults():
    cnn = cnnlab.Recipe(dataset="digits", epochs=3)
    vgg16 = dataclasses.replace(cnn, model="vgg16")
    assert vgg16 == cnnlab.Recipe(model="vgg16", dataset="digits", epochs=3)
    used = vgg16.with_defaults()
    assert (used.learning_rate, used.dense_units, used.pooling) == (1e-4, 256, "flatten")
    assert dataclasses.replace(vgg16, model="mobilenetv2").with_defaults().pooling == "average"
    # What was given stays, also where it is another model's default.
    assert dataclasses.replace(cnn, model="vgg16", dense_units=128).dense_units == 128
    assert dataclasses.replace(dataclasses.replace(cnn, learning_rate=0.01), model="vgg16").learning_rate == 0.01
    rate = cnn.with_defaults().learning_rate
    assert cnnlab.Recipe(model="vgg16", learning_rate=rate).with_defaults().learning_rate == rate == 1e-3
