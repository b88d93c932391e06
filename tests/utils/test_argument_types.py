"""Test which values arguments may be given as: pytest tests/utils/test_argument_types.py"""

from pathlib import Path

import numpy as np
import pytest

import cnnlab
from cnnlab import ArgumentError, Recipe, RunOptions, Search
from cnnlab.data.class_weights import class_weights
from cnnlab.data.image_dataset import Split
from cnnlab.tuning.search_settings import expect_runnable
from cnnlab.utils.argument_types import convert_arguments

pandas = pytest.importorskip("pandas")  # MLflow brings it


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("epochs", 2.0, 2),
        ("epochs", "2", 2),
        ("epochs", np.int64(2), 2),
        ("epochs", np.array(2), 2),
        ("learning_rate", "1e-3", 1e-3),
        ("learning_rate", np.float64(0.5), 0.5),
        ("val_fraction", 0, 0.0),
        ("seed", None, 0),
        ("filters", 8, (8,)),
        ("filters", [8, np.int32(16)], (8, 16)),
        ("filters", np.array([8, 16]), (8, 16)),
        ("filters", "8,16", (8, 16)),
        ("filters", pandas.Series([8, 16]), (8, 16)),
        ("dataset", Path("pictures"), "pictures"),
        ("augment", ["flip", "crop"], "flip,crop"),
        ("skip_bad", np.True_, True),
        ("skip_bad", "true", True),
        ("class_weights", {"cat": np.float32(2), 1: 3}, '{"cat": 2.0, "1": 3}'),
        ("class_weights", pandas.Series({"cat": 2.0}), '{"cat": 2.0}'),
    ],
)
def test_fields_take_what_python_programs_have(name, given, expected):
    received = getattr(Recipe(**{name: given}), name)
    assert (received, type(received)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("epochs", 2.5, r"epochs to be a whole number. Received: 2\.5\."),
        ("epochs", True, "epochs to be a whole number. Received: True"),
        ("epochs", float("inf"), "epochs to be a whole number. Received: inf"),
        ("epochs", [2], r"epochs to be a whole number. Received: \[2\]"),
        ("learning_rate", "fast", "learning_rate to be a number. Received: 'fast'"),
        ("filters", 8.5, "filters to be whole numbers"),
        ("filters", {8: 1}, "filters to be whole numbers"),
        ("skip_bad", "perhaps", "skip_bad to be true or false"),
        ("optimizer", b"adam", "optimizer to be a text"),
    ],
)
def test_what_means_nothing_is_refused_in_one_sentence(name, given, message):
    with pytest.raises(ArgumentError, match=f"Expected {message}"):
        Recipe(**{name: given})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": 0, "b": 0}, "Received: 0 for all"),
        ({"a": -1}, "the weight of a to be a number from 0 upwards"),
        ({"a": float("nan")}, "the weight of a to be"),
        ({"a": 1e39}, "the weight of a to be"),  # infinite in float32
        ({"a": True}, "the weight of a to be"),
        ({"c": 1}, "one of: a, b. Received: 'c'"),
        ('{"a": 1, "a": 2}', "two for 'a'"),
        ([1, 2], "existing JSON file"),
        ({}, "class names and numbers"),
    ],
)
def test_class_weights_that_are_none_are_refused(given, message):
    with pytest.raises(ArgumentError, match=message):
        class_weights(Recipe(class_weights=given).class_weights, np.array([0, 1]), ("a", "b"))


def test_a_class_whose_weight_is_given_as_a_number_and_as_a_text_is_refused():
    given = Recipe(class_weights={1: 1, "1": 2}).class_weights
    with pytest.raises(ArgumentError, match="two for '1'"):
        class_weights(given, np.array([0, 1]), ("0", "1"))


def test_other_settings_are_converted_and_refused_as_on_the_command_line():
    assert RunOptions(devices=np.int64(2), checkpoint="0").devices == 2
    recipe = Recipe()
    assert Search(recipe, {}, trials=2.0).trials == 2
    for given, message in (({"tuner": "bayes"}, "Did you mean 'bayesian'"), ({"trials": 0}, "trials to be at least 1")):
        with pytest.raises(ArgumentError, match=message):
            Search(recipe, {}, **given)
    for name, workers in (("a/b", 1), ("a", 0), ("a", 65)):
        with pytest.raises(ArgumentError, match="Expected"):
            expect_runnable(name, workers, RunOptions())
    with pytest.raises(ArgumentError, match="Expected recipes to compare"):
        cnnlab.compare_models([])
    for by in ("f1", None):
        with pytest.raises(ArgumentError, match="Expected by to be one of"):
            cnnlab.register_run(by=by)


def test_arguments_of_functions_are_converted():
    @convert_arguments
    def received(folder: "str | None", size: "int" = 3, other: "Path | str" = "."):
        return folder, size, other

    assert received(Path("a"), np.float32(2)) == ("a", 2, ".")
    assert received(None, None, Path("b")) == (None, 3, Path("b"))
    with pytest.raises(ArgumentError, match="Expected size to be a whole number"):
        received("a", "b")
    data = cnnlab.load_dataset("digits", image_size=np.int64(8), limit="100", val_fraction="0.1", seed=0.0)
    assert (data.image_shape, len(data.train)) == ((8, 8, 3), 90)


def test_labels_of_a_split_may_be_a_series():
    images = np.zeros((2, 8, 8, 3), np.uint8)
    assert Split(images, pandas.Series([1.0, 0.0], index=[5, 6]), "").labels.tolist() == [1, 0]
    for labels in (["a", "b"], [0.5, 1], [[0], [1]], [None, 1]):
        with pytest.raises(ArgumentError, match=r"Expected labels \(N,\) to be whole numbers"):
            Split(images, labels, "")
