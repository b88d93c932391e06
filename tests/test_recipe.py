"""pytest tests/test_recipe.py"""

import dataclasses
import json

import pytest

from cnnlab import ArgumentError, Recipe
from cnnlab.recipe import applies


def test_defaults_are_the_seeds_protocol_and_the_factories_own():
    cnn, vgg16 = Recipe(model="cnn"), Recipe(model="vgg16")
    assert (cnn.epochs, cnn.batch_size, cnn.filters, cnn.kernel_size) == (5, 32, (32, 64, 128), 3)
    assert (cnn.learning_rate, vgg16.learning_rate) == (1e-3, 1e-4)
    assert (cnn.weights, vgg16.weights) == (None, None)  # "imagenet, or random where it cannot be had"
    assert vgg16.preprocessing == "vgg16"


def test_params_hold_only_what_applies_to_the_model():
    assert Recipe(model="cnn").params()["filters"] == "32,64,128"
    assert "preprocessing" not in Recipe(model="cnn").params()
    assert "filters" not in Recipe(model="vgg16").params()
    assert not applies(next(f for f in dataclasses.fields(Recipe) if f.name == "weights"), "cnn")


def test_json_round_trip():
    recipe = Recipe(model="cnn", filters=(4, 8), learning_rate=3e-4, limit=100, patience=2)
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_a_resnet9_from_before_lookahead_loads_without_it():
    new = Recipe(model="resnet9")
    assert (new.lookahead, new.offset_rate) == (0.77, 64)
    stored = json.loads(new.to_json())
    del stored["lookahead"], stored["offset_rate"]
    old = Recipe.from_json(json.dumps(stored))
    assert (old.lookahead, old.offset_rate) == (0, 1)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("epochs", 0, "at least 1"),
        ("learning_rate", -1.0, "above 0"),
        ("learning_rate", float("nan"), "above 0"),
        ("learning_rate", 0.0, "above 0"),
        ("batch_size", 0, "at least 1"),
        ("val_fraction", 1.5, "at least 0 and at most 0.9"),
        ("dropout", 1.0, "at most 0.95"),
        ("image_size", 4, "at least 8"),
        ("filters", (32, 0), "at least 1"),
        ("filters", (), "at least one number"),
        ("seed", -1, "at least 0"),
    ],
)
def test_bounds(field, value, expected):
    with pytest.raises(ArgumentError, match=f"Expected {field} to .*{expected}.* Received: "):
        Recipe(model="cnn", **{field: value})


def test_choices_offer_the_nearest():
    with pytest.raises(ArgumentError, match=r"Received: 'flipp'\. Did you mean 'flip'"):
        Recipe(augment="flipp")


def test_early_stopping_on_the_test_set_is_refused():
    with pytest.raises(ArgumentError, match="val_fraction above 0"):
        Recipe(patience=1, val_fraction=0)
