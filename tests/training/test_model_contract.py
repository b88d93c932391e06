"""Test which models are trained, and as what they are recorded: pytest tests/training/test_model_contract.py"""

import dataclasses

import keras
import mlflow
import numpy as np
import pytest
from keras import layers

import cnnlab
from cnnlab import Recipe
from cnnlab.models.model_table import TRAINING
from cnnlab.training.model_contract import recipe_of
from cnnlab.training.optimizers import compile_params, learning_rate_of

SPARSE = "sparse_categorical_crossentropy"
optimizers = keras.optimizers


def net(activation="softmax", classes=10, side=32, optimizer="adam", loss=SPARSE, metrics=("accuracy",)):
    model = keras.Sequential(name="mine")
    model.add(keras.Input((side, side, 3)))
    model.add(layers.Rescaling(1 / 255))
    model.add(layers.Flatten())
    model.add(layers.Dense(classes, activation=activation))
    if optimizer:
        model.compile(optimizer, loss, metrics=list(metrics))
    return model


def by_layer():
    return optimizers.MultiOptimizer(optimizers.OptimizerMap(optimizers.Adam(0.01), {".*bias": optimizers.SGD(0.1)}))


def two_outputs():
    images = keras.Input((32, 32, 3))
    x = layers.Flatten()(images)
    model = keras.Model(images, [layers.Dense(10, activation="softmax")(x) for _ in range(2)], name="mine")
    model.compile("adam", [SPARSE] * 2)
    return model


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: "mine", r"compiled keras\.Model\. Received: str"),
        (lambda: net(optimizer=None), r"'mine' to be compiled\. .*model\.compile\('adam'"),
        (lambda: net(activation=None), "sum to 1. Received: others. End it with a softmax"),
        (lambda: net(classes=5), r"shape \(N, 10\)\. Received: shape \(2, 5\)\. End it with Dense\(10"),
        (lambda: net(side=16), r"take images \(N, 32, 32, 3\) uint8\. Received ValueError: Input 0 .*value 768"),
        (two_outputs, "Received: 2 outputs"),
        (lambda: net(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)), "Received: from_logits=True"),
        (lambda: net(loss="categorical_crossentropy"), r"Arguments `target` and `output` must have the same rank"),
        (lambda: net(metrics=["acuracy"]), "Could not interpret metric identifier: acuracy"),
        (lambda: net(metrics=[keras.metrics.F1Score()]), "FBetaScore expects 2D inputs"),
    ],
)
def test_a_model_that_keeps_no_contract_is_refused_before_anything_is_recorded(build, message, store, digits):
    with pytest.raises(cnnlab.LabError, match=message) as caught:
        cnnlab.fit_and_evaluate(build(), digits, Recipe(epochs=1))
    assert "\n" not in str(caught.value)
    assert len(store.search_experiments()) == 1


def test_a_model_is_recorded_by_what_it_was_built_from(digits, capsys):
    recipe = Recipe(filters=8, dense_units=16, epochs=1)
    model = cnnlab.build_model(recipe, digits)
    assert recipe_of(model, recipe, digits) == recipe.with_defaults()
    longer = dataclasses.replace(recipe, epochs=3, seed=5, patience=2)
    assert recipe_of(model, longer, digits) == longer.with_defaults()
    assert capsys.readouterr().err == ""
    other = recipe_of(model, Recipe(epochs=2, learning_rate=0.1, filters=4, dense_units=16), digits)
    assert other == dataclasses.replace(recipe, epochs=2).with_defaults()
    assert "'cnn' was not built with learning_rate 0.1, filters (4,)" in capsys.readouterr().err


@pytest.mark.parametrize("recompiled", [False, True])
def test_a_model_of_the_users_own_is_never_recorded_as_the_recipes(recompiled, digits, capsys):
    recipe = Recipe(filters=8, dense_units=16, epochs=2, batch_size=16, class_weights="balanced")
    model = net()
    if recompiled:
        model = cnnlab.build_model(recipe, digits)
        model.compile("sgd", SPARSE, metrics=["accuracy"])
    used = recipe_of(model, recipe, digits)
    assert (used.label, used.epochs, used.batch_size, used.class_weights) == (model.name, 2, 16, "balanced")
    params = used.params()
    assert (params["model"], params["image_size"]) == (f"keras:{model.name}", 32)
    assert not {"filters", "dense_units", "kernel_size", "padding", *TRAINING} & set(params)
    assert "was not built with dense_units 16, filters (8,)" in capsys.readouterr().err
    assert recipe_of(model, used, digits) == used


def test_arithmetic_that_recipes_do_not_know_is_not_recorded_as_another(digits):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = net()
    finally:
        keras.config.set_dtype_policy(before)
    assert "precision" not in recipe_of(model, Recipe(epochs=1), digits).params()


def test_a_model_of_the_users_own_is_recorded_with_the_data_that_the_recipe_says(digits, capsys):
    asked = {"labels": "l.csv", "label_column": "dx", "image_column": "id", "split_column": "set", "fold": "0"}
    asked |= {"test_fraction": 0.3, "hold_out_every_class": True, "val_fraction": 0.2, "epochs": 1}
    real = recipe_of(net(), Recipe(dataset="digits", **asked), digits)
    assert {name: getattr(real, name) for name in asked} == asked
    assert "was not built with" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("optimizer", "rate"),
    [
        (optimizers.Adam(0.25), 0.25),
        (optimizers.SGD(optimizers.schedules.CosineDecay(0.5, 10)), 0.5),
        (optimizers.LossScaleOptimizer(optimizers.Adam(0.25)), 0.25),
        (by_layer(), 0.01),
        (optimizers.LossScaleOptimizer(by_layer()), 0.01),
        (optimizers.MultiOptimizer(lambda weight: optimizers.Adam()), None),
    ],
)
def test_any_optimizer_of_keras_has_a_rate_and_a_loss(optimizer, rate):
    assert learning_rate_of(optimizer) == pytest.approx(rate)
    assert compile_params(net(optimizer=optimizer)) == {"loss": SPARSE}  # autologging logs the optimizer


OWN = """
import keras
from keras import layers, optimizers as o

def by_layer(input_shape, num_classes):
    model = keras.Sequential([keras.Input(input_shape), layers.Rescaling(1 / 255), layers.Flatten()])
    model.add(layers.Dense(num_classes, activation="softmax"))
    optimizer = o.MultiOptimizer(o.OptimizerMap(o.Adam(0.01), {".*bias": o.SGD(0.1)}))
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model
"""


def test_a_function_may_compile_with_several_optimizers(workplace, digits):
    (workplace / "own.py").write_text(OWN)
    recipe = Recipe(model="own.py:by_layer", epochs=1)
    model = cnnlab.build_model(recipe, digits)
    assert recipe_of(model, recipe, digits).learning_rate is None
    with pytest.raises(cnnlab.ArgumentError, match="Expected no learning_rate with a model that its function compiles"):
        cnnlab.build_model(dataclasses.replace(recipe, learning_rate=0.5), digits)


def test_a_trained_model_of_the_users_own_says_what_it_is_and_what_can_be_repeated(store, digits):
    model = keras.Sequential([keras.Input((32, 32, 3)), layers.Rescaling(1 / 255)], name="mine")
    for _ in range(3):
        model.add(layers.Conv2D(16, 3, padding="same", trainable=False))  # is trained on stored features
    model.add(layers.GlobalAveragePooling2D())
    model.add(layers.Dense(10, activation="softmax"))
    model.compile(by_layer(), SPARSE, metrics=["accuracy"])
    kernel = model.layers[-1].get_weights()[0]
    result = cnnlab.fit_and_evaluate(model, digits, Recipe(epochs=1))
    assert (model.layers[-1].get_weights()[0] != kernel).any()
    run = store.get_run(result.run_id)
    assert run.info.run_name == "mine on digits"
    assert (run.data.params["model"], run.data.params["loss"]) == ("keras:mine", SPARSE)
    assert run.data.params["optimizer_name"]
    assert float(run.data.params["learning_rate"]) == pytest.approx(0.01)
    assert result.history["learning_rate"] == pytest.approx([0.01])
    assert "conv2d" in mlflow.artifacts.load_text(f"{run.info.artifact_uri}/model_summary.txt")
    with pytest.raises(cnnlab.ArgumentError, match="neither its code nor its first weights"):
        cnnlab.reproduce(result.run_id)
    with pytest.raises(cnnlab.ArgumentError, match="neither its code nor its first weights"):
        cnnlab.build_model(result.recipe, digits)
    version, _ = cnnlab.register_run(result.run_id)
    images = digits.test.images[:4]
    classifier = cnnlab.load_classifier(f"models:/{version.name}/{version.number}")
    assert classifier.model.predict(images, verbose=0) == pytest.approx(result.test.probabilities[:4], abs=1e-5)
    assert np.isfinite(result.test_loss)
