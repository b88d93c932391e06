"""Test models that a function of the user builds: pytest tests/models/test_custom_model.py"""

import dataclasses
import json
from pathlib import Path

import mlflow
import pytest

import cnnlab
from cnnlab import reproduction
from cnnlab.compare import compare_runs
from cnnlab.models import safe_loading
from cnnlab.tracking import logged_models, model_registry, promotion
from cnnlab.train import train_model
from cnnlab.tuning import trials
from cnnlab.tuning.search import run_search
from cnnlab.tuning.search_settings import Search
from cnnlab.tuning.spaces import narrowed_space

MY_MODELS = """
import keras
from keras import layers

def build_net(input_shape, num_classes, width=4, wide=False, dropout=0.1):
    images = keras.Input(input_shape)
    x = layers.Conv2D(width * (2 if wide else 1), 3, strides=2, activation="relu")(layers.Rescaling(1 / 255)(images))
    x = layers.Dropout(dropout)(layers.Flatten()(x))
    return keras.Model(images, layers.Dense(num_classes, activation="softmax")(x))

def compiled(input_shape, num_classes):
    model = build_net(input_shape, num_classes)
    model.compile(keras.optimizers.SGD(0.1, name="sgd"), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model

def logits(input_shape, num_classes):
    images = keras.Input(input_shape)
    return keras.Model(images, layers.Dense(num_classes)(layers.Flatten()(images)))

def broken(input_shape, num_classes):
    return keras.Model(1)

def nothing(input_shape, num_classes):
    pass

def needs(input_shape, num_classes, *, depth):
    return build_net(input_shape, num_classes, width=depth)

def alone():
    pass

def one_hot(input_shape, num_classes):
    model = build_net(input_shape, num_classes)
    model.compile("adam", "categorical_crossentropy")
    return model

def secret(input_shape, num_classes):
    images = keras.Input(input_shape)
    x = layers.Lambda(lambda x: x / 255)(images)
    return keras.Model(images, layers.Dense(num_classes, activation="softmax")(layers.Flatten()(x)))

def leaves(input_shape, num_classes):
    raise SystemExit(3)

def nan(input_shape, num_classes):
    model = build_net(input_shape, num_classes)
    model.set_weights([w * float("nan") for w in model.get_weights()])
    return model

def mirrored(input_shape, num_classes):
    model = keras.Sequential([keras.Input(input_shape), layers.RandomFlip(), layers.BatchNormalization()])
    model.add(layers.Dropout(0.5, seed=1))
    model.add(layers.Flatten())
    model.add(layers.Dense(num_classes, activation="softmax"))
    return model

def sizes(input_shape, num_classes, *, sizes=(1, 2)):
    return build_net(input_shape, num_classes)

def names(input_shape, num_classes, learning_rate=0.05, augment="lots", seed=7, weights="mine", image_size=48):
    assert (learning_rate, augment, seed, weights, image_size) == (0.05, "lots", 7, "mine", 48)
    return build_net(input_shape, num_classes)
"""


@pytest.fixture
def recipe(workplace):
    (workplace / "my_models.py").write_text(MY_MODELS)
    return cnnlab.Recipe(model="my_models.py:build_net", dataset="digits", limit=150, epochs=2, arguments=("width=3",))


def test_arguments_of_the_function_are_params_and_options(recipe):
    assert recipe.label == "build_net"
    used = recipe.with_defaults()
    assert used.dropout == 0.1  # an option of ours by name and type
    assert used.params()["width"] == "3"
    assert "filters" not in used.params()
    other = dataclasses.replace(recipe, dropout=0.5, arguments=("wide=true",))
    assert other.with_defaults().factory_arguments() == {"dropout": 0.5, "wide": True}
    assert cnnlab.Recipe.from_json(other.to_json()) == other


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("my_models.py:build_ne", (), "Did you mean 'build_net'"),
        ("other.py:build_net", (), "file to exist. Received: 'other.py'"),
        ("my_models.py:alone", (), r"\(input_shape, num_classes, \*\*arguments\)"),
        ("my_models.py:build_net", ("widht=3",), "Did you mean 'width'"),
        ("my_models.py:build_net", ("width=many",), "width to be of type int. Received: 'many'"),
        ("my_models.py:build_net", ("width",), "--arg as name=value"),
        ("my_models.py:needs", (), "Received none for: depth"),
        ("my_models.py:logits", (), "End it with a softmax"),
        ("my_models.py:broken", (), "Expected broken to build a model"),
        ("my_models.py:nothing", (), "to return a keras.Model. Received: NoneType"),
        ("my_models.py:one_hot", (), "take labels that are integers"),
        ("my_models.py:secret", (), "to be saved and loaded again"),
        ("my_models.py:leaves", (), "Received SystemExit: 3"),
        ("my_models.py:nan", (), "to start with finite weights"),
        ("my_models.py:sizes", ("sizes=many",), "several values, such as sizes=1,2"),
        ("my_models.py:build_net", ("width=1", "width=2"), "one value for width"),
        ("binary.py:build_net", (), "to be a Python file"),
        ("empty.py:build_net", (), "a file without functions"),
        ("syntax.py:build_net", (), "Python file that can be imported. Received SyntaxError"),
    ],
)
def test_an_unusable_function_gives_one_sentence(recipe, store, workplace, model, arguments, message):
    (workplace / "syntax.py").write_text("def build_net(:")
    (workplace / "binary.py").write_bytes(b"\xff\x00")
    (workplace / "empty.py").write_text("")
    with pytest.raises(cnnlab.LabError, match=message) as caught:
        train_model(cnnlab.Recipe(model=model, arguments=arguments, dataset="digits", limit=150, epochs=1))
    assert "\n" not in str(caught.value)
    assert len(store.search_experiments()) == 1


def test_checking_a_custom_model_changes_no_weights(recipe, digits):
    """Layers that are at work in training only, of which one would make the whole model train when it is called."""
    model = cnnlab.build_model(dataclasses.replace(recipe, model="my_models.py:mirrored", arguments=()), digits)
    mean, variance = (value.numpy() for value in model.layers[1].non_trainable_variables[:2])
    assert (mean == 0).all()
    assert (variance == 1).all()


def test_defaults_of_the_function_win_where_its_arguments_are_named_like_options(recipe, store):
    result = train_model(dataclasses.replace(recipe, model="my_models.py:names", arguments=()))
    params = store.get_run(result.run_id).data.params
    assert (params["learning_rate"], params["seed"], params["arg.seed"]) == ("0.05", "0", "7")
    assert (params["augment"], params["arg.augment"], params["arg.weights"]) == ("none", "lots", "mine")
    with pytest.raises(cnnlab.ArgumentError, match="Received one twice"):
        cnnlab.compare_models([recipe, recipe])


def test_a_registered_layer_is_no_reason_to_warn_of_and_one_that_is_refused_is(
    recipe, digits, workplace, capsys, monkeypatch
):
    Path("layered.py").write_text("""
import keras
@keras.saving.register_keras_serializable("mine")
class Twice(keras.layers.Layer):
    def call(self, x):
        return 2 * x
def build_net(input_shape, num_classes):
    return keras.Sequential([keras.Input(input_shape), Twice(), keras.layers.Flatten(),
        keras.layers.Dense(num_classes, activation="softmax")])
""")
    layered = dataclasses.replace(recipe, model="layered.py:build_net", arguments=())
    safe_loading.save_model(cnnlab.build_model(layered, digits), "layered.keras")
    assert safe_loading.load_model("layered.keras").layers[0].name == "twice"
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(safe_loading, "REFUSED", ["Flatten"])
    cnnlab.build_model(layered, digits)
    assert "the model of build_net will not load in 'cnnlab predict'" in capsys.readouterr().err


def test_a_compiled_model_keeps_its_optimizer(recipe, store):
    compiled = dataclasses.replace(recipe, model="my_models.py:compiled", arguments=())
    result = train_model(compiled)
    params = store.get_run(result.run_id).data.params
    assert (params["optimizer_name"], float(params["learning_rate"])) == ("sgd", pytest.approx(0.1))
    assert reproduction.reproduce(result.run_id).figures[0].difference < 1e-3
    with pytest.raises(cnnlab.ArgumentError, match="Expected no learning_rate with a model that its function compiles"):
        train_model(dataclasses.replace(compiled, learning_rate=0.01))


def test_images_for_a_custom_model_are_augmented_too(recipe, digits):
    model = cnnlab.build_model(dataclasses.replace(recipe, augment="flip,cutout"), digits)
    assert [type(layer).__name__ for layer in model.layers[1:3]] == ["RandomFlip", "RandomErasing"]
    images = digits.test.images[:4]
    assert model.layers[-1].predict(images, verbose=0) == pytest.approx(model.predict(images, verbose=0), abs=1e-6)
    compiled = dataclasses.replace(recipe, model="my_models.py:compiled", arguments=(), augment="flip")
    with pytest.raises(cnnlab.ArgumentError, match="Expected no augment with a model that its function compiles"):
        cnnlab.build_model(compiled, digits)


def test_a_custom_model_is_tracked_registered_and_repeated_from_its_stored_source(
    recipe, store, workplace, monkeypatch
):
    before = train_model(dataclasses.replace(recipe, deterministic=True))
    run = store.get_run(before.run_id)
    assert (run.data.params["width"], run.data.params["wide"]) == ("3", "False")
    assert mlflow.artifacts.load_text(f"{run.info.artifact_uri}/model_source.py") == MY_MODELS
    version, _ = model_registry.register_run()
    assert json.loads(version.tags["recipe"])["model"] == str(workplace / "my_models.py:build_net")
    model, about = logged_models.load("models:/cnnlab-digits/1")
    assert model.predict(cnnlab.load_dataset("digits", limit=150).test.images, verbose=0) == pytest.approx(
        before.test.probabilities, abs=1e-6
    )
    assert len(about["class_names"]) == 10
    (workplace / "my_models.py").write_text(MY_MODELS.replace("strides=2", "strides=4"))
    with pytest.raises(cnnlab.LabError, match=r"my_models.py' to hold the code that the store has of it"):
        reproduction.reproduce(before.run_id)
    monkeypatch.setenv("CNNLAB_STORED_CODE", "run")
    again = reproduction.reproduce(before.run_id)
    assert again.verdict == f"All {len(again.figures)} figures are equal bit for bit."
    assert again.changes == []
    (workplace / "my_models.py").unlink()
    assert reproduction.reproduce(again.run_id).verdict == again.verdict
    # Without the file, or with another in its place, the runs are still compared, registered and used.
    assert len(compare_runs([before.run_id, again.run_id]).results) == 2
    promotion.promote(model_registry.register_run(again.run_id)[0])


def test_a_search_varies_no_learning_rate_of_a_function_that_compiles(workplace, capsys):
    source = MY_MODELS.replace(
        "def compiled(input_shape, num_classes)", "def compiled(input_shape, num_classes, width=4)"
    )
    (workplace / "nets.py").write_text(source)
    base = cnnlab.Recipe(model="nets.py:compiled", dataset="digits", limit=60)
    search, _, _ = trials.load(Search(base, narrowed_space(base, [], ["width=4,8"])), cnnlab.RunOptions())
    assert search.space == {"width": (4, 8)}
    assert "learning_rate is not varied, as compiled compiles its model." in capsys.readouterr().out
    with pytest.raises(cnnlab.ArgumentError, match="two recipes at least"):
        trials.load(Search(base, narrowed_space(base, [], [])), cnnlab.RunOptions())


@pytest.mark.long
def test_arguments_of_the_function_can_be_searched(recipe, store):
    base = dataclasses.replace(recipe, arguments=())
    space = narrowed_space(base, ["epochs"], ["width=2:4", "wide=true,false", "learning_rate=1e-3,1e-2"])
    result = run_search(Search(base, space, "random", trials=3, finalists=1, final_seeds=1))
    assert [row["status"] for row in result.rows] == ["COMPLETED"] * 3
    params = store.get_run(result.winner_run_id).data.params
    assert 2 <= int(params["width"]) <= 4
    assert params["wide"] in ("True", "False")
    assert float(params["learning_rate"]) in (1e-3, 1e-2)
    with pytest.raises(cnnlab.ArgumentError, match="Did you mean 'width'"):
        narrowed_space(base, [], ["widths=2:4"])
