"""Test recipes: their fields, their defaults and their stored form: pytest tests/test_recipe.py"""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

import cnnlab
from cnnlab import ArgumentError, Recipe, RunOptions
from cnnlab.cli.main import cli
from cnnlab.cli.recipe_options import option_name
from cnnlab.recipe import OLD_NAMES, ResolvedRecipe, applies, first_names
from cnnlab.utils.environment import VARIABLES


def test_defaults_are_the_seeds_protocol_and_the_factories_own():
    cnn, vgg16 = Recipe(model="cnn").with_defaults(), Recipe(model="vgg16").with_defaults()
    assert (cnn.epochs, cnn.batch_size, cnn.filters, cnn.kernel_size) == (5, 32, (32, 64, 128), 3)
    assert (cnn.learning_rate, vgg16.learning_rate) == (1e-3, 1e-4)
    assert (cnn.weights, vgg16.weights) == (None, None)  # "imagenet, or random where it cannot be had"
    assert vgg16.preprocessing == "vgg16"


def test_params_hold_only_what_applies_to_the_model():
    cnn, vgg16 = Recipe(model="cnn").with_defaults(), Recipe(model="vgg16").with_defaults()
    assert cnn.params()["filters"] == "32,64,128"
    assert "preprocessing" not in cnn.params()
    assert "filters" not in vgg16.params()
    assert not applies(next(f for f in dataclasses.fields(Recipe) if f.name == "weights"), "cnn")


def test_a_recipe_is_equal_after_a_round_trip_through_json():
    recipe = Recipe(model="cnn", filters=(4, 8), learning_rate=3e-4, limit=100, patience=2)
    assert Recipe.from_json(recipe.to_json()) == recipe
    resolved = recipe.with_defaults()
    assert ResolvedRecipe.from_json(resolved.to_json()) == resolved


def test_a_recipe_holds_what_was_asked_for_alone():
    recipe = Recipe(model="resnet9", epochs=3)
    asked = {"model", "epochs"}
    defaults = Recipe()
    assert all(
        getattr(recipe, f.name) == getattr(defaults, f.name) for f in dataclasses.fields(recipe) if f.name not in asked
    )
    assert recipe.batch_size is None
    assert recipe.with_defaults().batch_size == 512


# Recorded with the code of commit 2dac9c2, which kept what was asked for and the defaults in one object.
RECORDED = json.loads((Path(__file__).parent / "fixtures" / "resolved_recipes.json").read_text())


@pytest.mark.parametrize("number", range(0, len(RECORDED["cases"]), 50))
def test_defaults_are_those_that_were_recorded(number):
    newer = dict.fromkeys({f.name for f in dataclasses.fields(Recipe)} - set(RECORDED["defaults"]["cnn"]))
    for case in RECORDED["cases"][number : number + 50]:
        received = resolved_or_error(case["options"], case.get("replaced", {}))
        if "error" in case:
            assert received == case["error"], case
        else:
            assert received == {**newer, **RECORDED["defaults"][received["model"]], **case["recipe"]}, case
            assert json.loads(ResolvedRecipe.from_json(json.dumps(received)).to_json()) == received, case


def resolved_or_error(options, replaced):
    """The fields of the recipe that is used, or what its error says."""
    try:
        recipe = dataclasses.replace(Recipe(**options), **replaced)
    except ArgumentError as error:
        return str(error)
    return json.loads(recipe.with_defaults().to_json())


def test_a_resnet9_from_before_lookahead_loads_without_it():
    new = Recipe(model="resnet9").with_defaults()
    assert (new.lookahead, new.bias_lr_scale) == (0.77, 64)
    stored = json.loads(new.to_json())
    del stored["lookahead"], stored["bias_lr_scale"]
    old = Recipe.from_json(json.dumps(stored))
    assert (old.lookahead, old.bias_lr_scale) == (0, 1)


def test_a_stored_recipe_loads_by_the_old_names_of_fields():
    values = {"resize_mode": "pad", "stored_size": 32, "progressive_resizing": 0.5}
    values |= {"bias_lr_scale": 8.0, "tta_views": 6, "ensemble_size": 2}
    recipe = Recipe(model="resnet9", **values)
    assert sorted(OLD_NAMES.values()) == sorted(values)
    stored = first_names(json.loads(recipe.to_json()))
    assert {name: stored[old] for old, name in OLD_NAMES.items()} == values
    assert Recipe.from_json(json.dumps(stored)) == recipe
    assert not set(OLD_NAMES) & set(recipe.with_defaults().params())


def test_equal_trainings_of_an_earlier_version_are_found_by_their_key():
    fields = {"fit": "pad", "small_first": 0.5, "offset_rate": 8.0}
    key = json.loads(Recipe(model="resnet9", **{OLD_NAMES[name]: value for name, value in fields.items()}).key_text())
    assert {name: key[name] for name in fields} == fields
    assert not set(OLD_NAMES.values()) & set(key)


def test_newer_fields_are_in_the_key_only_where_they_are_set():
    assert set(json.loads(Recipe().key_text())) == set(first_names(RECORDED["defaults"]["cnn"]))
    assert json.loads(Recipe(test_fraction=0.3).key_text())["test_fraction"] == 0.3
    stored = json.loads(Recipe().to_json())
    del stored["hold_out_every_class"], stored["test_fraction"]  # of a run from before them
    assert Recipe.from_json(json.dumps(stored)) == Recipe(hold_out_every_class=True)
    assert Recipe.from_json(json.dumps(stored)).key_text() == Recipe().key_text()


@pytest.mark.parametrize(("old", "name"), OLD_NAMES.items())
def test_an_option_keeps_its_old_spelling_and_hides_it(old, name):
    screen = CliRunner().invoke(cli, ["train", "--help"]).output
    assert f"{option_name(name)} " in screen
    assert f"{option_name(old)} " not in screen
    value = {"fit": "squash", "picture_size": "7", "members": "11", "test_views": "9"}.get(old, "-1")
    result = CliRunner().invoke(cli, ["train", "resnet9", option_name(old), value])
    assert isinstance(result.exception, ArgumentError)
    assert f"Expected {name} to be " in str(result.exception)


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
def test_values_out_of_bounds_are_refused(field, value, expected):
    with pytest.raises(ArgumentError, match=f"Expected {field} to .*{expected}.* Received: "):
        Recipe(model="cnn", **{field: value})


def test_choices_offer_the_nearest():
    with pytest.raises(ArgumentError, match=r"Received: 'flipp'\. Did you mean 'flip'"):
        Recipe(augment="flipp")


def test_early_stopping_on_the_test_set_is_refused():
    with pytest.raises(ArgumentError, match="val_fraction above 0"):
        Recipe(patience=1, val_fraction=0)


def test_how_a_job_is_carried_out_is_asked_for_or_in_a_variable(monkeypatch):
    options = RunOptions()
    assert (options.devices, options.checkpoint_seconds, options.experiment, options.recheck) == (1, 60, None, False)
    monkeypatch.setenv("CNNLAB_DEVICES", "auto")
    monkeypatch.setenv("CNNLAB_CHECKPOINT", "none")
    monkeypatch.setenv("CNNLAB_RECHECK", "1")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    options = RunOptions()
    assert (options.devices, options.checkpoint_seconds) == ("auto", None)
    assert (options.experiment, options.recheck) == ("mine", True)
    options = RunOptions(devices=2, checkpoint=0, experiment="other")
    assert (options.devices, options.checkpoint_seconds, options.experiment) == (2, 0, "other")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": 0}, "devices to be auto or a number from 1 upwards. Received: '0'"),
        ({"devices": "all"}, "devices to be auto or a number from 1 upwards. Received: 'all'"),
        ({"checkpoint": -1}, "to be seconds, 0 for every epoch, or 'none'. Received: '-1.0'"),
        ({"checkpoint": "often"}, "to be seconds, 0 for every epoch, or 'none'. Received: 'often'"),
        ({"cpus": 2}, "Expected cpus .* with a cluster"),
        ({"cpus": 0, "cluster": "ray"}, "Expected cpus above 0, .* Received: cpus 0.0"),
        ({"gpus": float("nan"), "cluster": "ray"}, "gpus from 0 upwards"),
    ],
)
def test_run_options_that_are_none_are_one_sentence(options, message):
    with pytest.raises(ArgumentError, match=message):
        RunOptions(**options)


def test_variables_are_read_in_one_module_and_listed_in_the_docs():
    root = Path(cnnlab.__file__).parent
    modules = [path for folder in (root, root.parent / "tuning") for path in folder.rglob("*.py")]
    reads = re.compile(r"os\.getenv|environ\.get\(|(?<!del )os\.environ\[[^]]*\](?! =)|in os\.environ\b(?!\.)")
    found = {path.name for path in modules if reads.search(path.read_text())}
    assert found == {"environment.py", "mlflow_internals.py"}  # MLflow's variables are put back as they were
    listed = re.findall(r"`([A-Z_]{4,})`", (root.parent / "docs" / "environment.md").read_text())
    assert {name for name in VARIABLES if not name.startswith("_")} <= set(listed)
