"""Test the spaces that a search draws from: pytest tests/tuning/test_spaces.py"""

import dataclasses

import numpy as np
import pytest

import cnnlab
from cnnlab.models.model_table import MODELS, Range
from cnnlab.tuning.oracles import hyperparameters, make_oracle
from cnnlab.tuning.search_settings import Search
from cnnlab.tuning.spaces import check_space, fixed, narrowed, narrowed_space, recipe_of

SPACES = {name: model.space for name, model in MODELS.items()}


def test_narrowed_takes_ranges_and_choices():
    space = narrowed(SPACES["cnn"], ["learning_rate=1e-3:1e-2", "filters=8,16,8", "dropout=0.1,0.2", "augment=none"])
    assert space["learning_rate"] == Range(1e-3, 1e-2, log=True)
    assert space["filters"] == (8, 16)
    assert space["dropout"] == (0.1, 0.2)
    assert space["augment"] == ("none",)
    assert space["batch_size"] == SPACES["cnn"]["batch_size"]


def test_a_name_alone_adds_a_field_with_its_usual_values():
    recipe = cnnlab.Recipe(model="cnn")
    space = narrowed_space(recipe, [], ["label_smoothing", "ema=0,0.9", "augment=flip+crop:0.06,none"])
    assert space["label_smoothing"] == Range(0, 0.2)
    assert space["ema"] == (0.0, 0.9)
    assert space["augment"] == ("flip+crop:0.06", "none")
    assert recipe_of({"augment": "flip+crop:0.06", "ema": 0.9}, recipe).augment == "flip+crop:0.06"
    for option, message in (("fine_tune", "one of: blocks"), ("augment=none,flipp", "Did you mean 'flip'")):
        with pytest.raises(cnnlab.ArgumentError, match=message):
            narrowed_space(recipe, [], [option])
    with pytest.raises(cnnlab.ArgumentError, match="one of: "):
        narrowed_space(recipe, ["ema"], ["ema"])


def test_a_hyperparameter_may_be_given_by_its_old_name():
    space = narrowed_space(cnnlab.Recipe(model="resnet9"), [], ["offset_rate=1,64", "small_first"])
    assert space["bias_lr_scale"] == (1.0, 64.0)
    assert space["progressive_resizing"] == (0.0, 0.4, 0.6)


def test_ranges_go_with_the_optimizer():
    own, muon = (narrowed_space(cnnlab.Recipe(model="resnet9", optimizer=name), [], []) for name in ("sgd", "muon"))
    assert own["learning_rate"] == Range(0.2, 2.0, log=True)
    assert muon["learning_rate"] == Range(0.0053, 0.053, log=True)
    assert muon["weight_decay"] == Range(0.033, 0.5, log=True)
    assert narrowed_space(cnnlab.Recipe(optimizer="sgd"), [], [])["learning_rate"] == Range(3e-3, 3e-2, log=True)


def test_a_function_of_the_users_has_ranges_with_any_optimizer(tmp_path):
    (tmp_path / "nets.py").write_text("def net(input_shape, num_classes, units=8):\n    ...\n")
    recipe = cnnlab.Recipe(model=f"{tmp_path / 'nets.py'}:net", optimizer="sgd")
    assert narrowed_space(recipe, [], [])["learning_rate"] == Range(1e-3, 1e-1, log=True)


def test_what_depends_on_another_value_is_left_out_without_it():
    base = cnnlab.Recipe(model="vgg16", fine_tune=1)
    assert recipe_of({"fine_tune": 0, "fine_tune_from": "all", "layer_decay": 0.5}, base).fine_tune_from is None
    assert recipe_of({"fine_tune": 3, "fine_tune_from": "all"}, base).fine_tune_from == "all"
    assert recipe_of({"optimizer": "adam", "momentum": 0.8}, base).momentum is None
    assert recipe_of({"optimizer": "sgd", "momentum": 0.8}, base).momentum == 0.8
    base = cnnlab.Recipe(model="resnet9")
    averaged = recipe_of({"ema": 0.99, "lookahead": 0.9, "progressive_resizing": 0.6}, base)
    assert (averaged.lookahead, averaged.progressive_resizing) == (0.0, 0.0)
    ahead = recipe_of({"ema": 0.0, "lookahead": 0.9, "progressive_resizing": 0.6}, base)
    assert (ahead.lookahead, ahead.progressive_resizing) == (0.9, 0.6)
    first = dataclasses.replace(base, progressive_resizing=0.6)
    assert recipe_of({"tuner/epochs": 1}, first).progressive_resizing == 0.0
    assert recipe_of({"tuner/epochs": 2}, first).progressive_resizing == 0.6


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("learning_rate=", "Expected --space as name=low:high"),
        ("learning_rat=1:2", "Did you mean 'learning_rate'"),
        ("learning_rate=2:1", "a range from low to high"),
        ("learning_rate=nan:1", "a range from low to high"),
        ("learning_rate=0:1", "start above 0"),
        ("filters=8:16", "Expected choices for filters"),
        ("filters=8,big", "Expected --space as"),
    ],
)
def test_unreadable_spaces_are_one_sentence(option, message):
    with pytest.raises(cnnlab.ArgumentError, match=message):
        narrowed(SPACES["cnn"], [option])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("learning_rate=1:20", "learning_rate to be above 0 and at most 10. Received: 20"),
        ("dropout=0:1", "dropout"),
        ("augment=none,flop", "Did you mean 'flip'"),
        ("blocks=0,2", "blocks"),
        ("filters=0,8", "filters"),
    ],
)
def test_values_out_of_bounds_are_found_before_the_search(option, message):
    with pytest.raises(cnnlab.ArgumentError, match=message):
        check_space(narrowed(SPACES["cnn"], [option]), cnnlab.Recipe())


@pytest.mark.parametrize("model", ["cnn", "vgg16"])
def test_default_spaces_are_in_bounds(model):
    check_space(SPACES[model], cnnlab.Recipe(model=model))


def test_given_options_leave_the_space():
    assert "batch_size" not in fixed(SPACES["cnn"], ["batch_size"])
    assert not {"filters", "blocks"} & set(fixed(SPACES["cnn"], ["filters"]))


def test_filters_of_a_block_are_active_only_where_there_are_as_many():
    hp = hyperparameters(narrowed(SPACES["cnn"], ["blocks=1,3"]), cnnlab.Recipe())
    hp.values["blocks"] = 1
    active = {parameter.name for parameter in hp.space if hp.is_active(parameter)}
    assert {name for name in active if name.startswith("filters")} == {"filters_1"}
    hp.values["blocks"] = 3
    active = {parameter.name for parameter in hp.space if hp.is_active(parameter)}
    assert {name for name in active if name.startswith("filters")} == {"filters_1", "filters_2", "filters_3"}


def test_recipe_of_a_trial():
    base = cnnlab.Recipe(epochs=9, batch_size=16)
    values = {"blocks": 2, "filters_1": 8, "filters_2": 16, "filters_3": 64, "learning_rate": 0.01, "tuner/epochs": 3}
    recipe = recipe_of(values, base)
    assert (recipe.filters, recipe.learning_rate, recipe.epochs, recipe.batch_size) == ((8, 16), 0.01, 3, 16)


def test_values_of_the_gaussian_process_are_numpys():
    recipe = recipe_of({"dropout": np.float64(0.25), "batch_size": np.int64(64)}, cnnlab.Recipe())
    assert (recipe.dropout, recipe.batch_size) == (0.25, 64)
    assert type(recipe.batch_size) is int


def test_integers_stay_integers_in_a_range():
    hp = hyperparameters(narrowed(SPACES["cnn"], ["dense_units=16:64"]), cnnlab.Recipe())
    [dense] = [parameter for parameter in hp.space if parameter.name == "dense_units"]
    values = {dense.random_sample(seed) for seed in range(50)}
    assert all(isinstance(value, int) and 16 <= value <= 64 for value in values)
    assert len(values) > 10


def test_the_first_trial_is_the_recipe_that_the_search_starts_from(tmp_path):
    base = cnnlab.Recipe(filters=(32, 32, 64), batch_size=64, seed=1)
    for tuner in ("bayesian", "random", "hyperband"):
        oracle = make_oracle(Search(base, SPACES["cnn"], tuner), tmp_path / tuner)
        first = oracle._random_values()
        assert dataclasses.replace(recipe_of(first, base), padding="valid") == base.with_defaults()
        oracle.trials["0"] = None
        assert oracle._random_values() != first


@pytest.mark.parametrize("error", [None, "it failed too"])
def test_a_trial_under_way_at_the_failure_limit_does_not_lift_it(tmp_path, error):
    space = {"learning_rate": Range(1e-4, 1e-2, log=True)}
    oracle = make_oracle(Search(cnnlab.Recipe(), space, "random"), tmp_path / "search")
    oracle.tell(oracle.ask(), error="once")
    oracle.tell(oracle.ask(), 0.5)
    under_way = oracle.ask()
    failed = [oracle.ask() for _ in range(3)]
    for trial in failed:
        assert not oracle.gave_up()
        oracle.tell(trial, error="again")
    oracle.tell(under_way, 0.5, error)
    assert oracle.gave_up()
    assert [trial.trial_id for trial in oracle.failures] == [trial.trial_id for trial in failed]
    assert oracle.ask() is None
