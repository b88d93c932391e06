"""Test the spaces that a search draws from: pytest tests/tuning/test_spaces.py"""

import dataclasses

import numpy as np
import pytest

import cnnlab
from cnnlab.models.model_table import MODELS, Range
from cnnlab.tuning.oracles import hyperparameters, make_oracle
from cnnlab.tuning.search_settings import Search
from cnnlab.tuning.spaces import check_space, fixed, narrowed, narrowed_space
from cnnlab.tuning.trial_recipes import candidates, recipe_of, values_of

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
    with pytest.raises(cnnlab.ArgumentError, match=r"a value or --space for ema\. Received: both"):
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
        ("filters=8:16", "Expected choices for filters"),
        ("filters=8,big", "Expected --space as"),
        ("dense_units=8.5,16", "Expected --space as"),
    ],
)
def test_unreadable_spaces_are_one_sentence(option, message):
    with pytest.raises(cnnlab.ArgumentError, match=message):
        narrowed(SPACES["cnn"], [option])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("learning_rate=2:1", "a range from low to high for learning_rate. Received: 2:1"),
        ("learning_rate=nan:1", "a range from low to high"),
        ("learning_rate=0:1", "start above 0"),
        ("dropout=-inf:0.5", "a range from low to high"),
        ("learning_rate=1:20", "learning_rate to be above 0 and at most 10. Received: 20"),
        ("dropout=0:1", "dropout"),
        ("augment=none,flop", "Did you mean 'flip'"),
        ("blocks=0,2", "blocks"),
        ("filters=0,8", "filters"),
        ("dense_units=1.5:8", "dense_units to be a whole number. Received: 1.5"),
        ("dense_units=-1:8", "dense_units to be at least 0"),
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["epochs=1,2", "epochs=3"], "one --space for epochs. Received: several"),
        (["class-weight", "class_weights=none,balanced"], "one --space for class_weights"),
        (["label-smoothing", "label_smoothing"], "one --space for label_smoothing"),
        (["batch_size=16,32"], "a value or --space for batch_size. Received: both"),
        (["momentum=0.8,0.9"], "Received: momentum, which has no effect"),
        (["ema=0.9,0.99", "lookahead=0,0.5"], "Received: lookahead, which has no effect"),
        (["optimizer=adam,adamw", "momentum=0.8,7"], "momentum to be at least 0 and at most 0.999. Received: 7"),
        (["dense_units=8", "learning_rate=0.1"], "two recipes at least. Received: padding=same, dense_units=8"),
    ],
)
def test_spaces_that_do_not_vary_what_they_say_are_refused(options, message):
    given = ["filters", "kernel_size", "dropout", "augment", "batch_size"]
    with pytest.raises(cnnlab.ArgumentError, match=message):
        narrowed_space(cnnlab.Recipe(), given, options)


def test_ranges_may_start_at_0():
    space = narrowed_space(
        cnnlab.Recipe(model="vgg16"), [], ["train_blocks=0:3", "dense_units=0:1e2", "ema=0:0.9", "batch_size=8:64"]
    )
    assert space["train_blocks"] == Range(0, 3)
    assert space["dense_units"] == Range(0, 100)
    assert space["ema"] == Range(0, 0.9)
    assert space["batch_size"] == Range(8, 64, log=True)
    hp = hyperparameters(space, cnnlab.Recipe(model="vgg16"))
    [blocks] = [parameter for parameter in hp.space if parameter.name == "train_blocks"]
    assert {blocks.random_sample(seed) for seed in range(50)} == {0, 1, 2, 3}


def test_values_get_the_type_of_their_field(tmp_path):
    space = check_space({"dropout": (0, 0.5), "dense_units": (8.0, 16)}, cnnlab.Recipe())
    assert [repr(values) for values in space.values()] == ["(0.0, 0.5)", "(8, 16)"]
    make_oracle(Search(cnnlab.Recipe(), space), tmp_path / "search")


def test_what_the_model_varies_is_left_out_where_it_has_no_effect():
    assert "lookahead" in narrowed_space(cnnlab.Recipe(model="resnet9"), [], [])
    assert "lookahead" not in narrowed_space(cnnlab.Recipe(model="resnet9", ema=0.99), ["ema"], [])


def test_names_may_be_spelled_as_the_options_are():
    space = narrowed_space(cnnlab.Recipe(), [], ["class-weight", "label-smoothing=0,0.1"])
    assert space["class_weights"] == ("none", "balanced")
    assert space["label_smoothing"] == (0.0, 0.1)


FUNCTION = """
def net(input_shape, num_classes, width, deep, dropout, act=None, blocks=2, wide=False, momentum=0.5):
    ...
"""


def test_arguments_without_a_default_can_be_searched(tmp_path):
    (tmp_path / "nets.py").write_text(FUNCTION)
    recipe = cnnlab.Recipe(model=f"{tmp_path / 'nets.py'}:net")
    options = ["width=8,16", "deep=0:2", "dropout=0.1,0.2", "act=relu,elu", "blocks=1:3", "wide=false,true"]
    options += ["momentum=0.1,0.9"]
    space = narrowed_space(recipe, ["learning_rate"], options)
    search = Search(recipe, space, "random", trials=3)
    hp = hyperparameters(space, search.recipe)
    assert {parameter.name for parameter in hp.space} == {
        "width",
        "deep",
        "dropout",
        "act",
        "blocks",
        "wide",
        "momentum",
    }
    values = {"width": "16", "deep": 2, "dropout": 0.2, "act": "elu", "blocks": 3, "wide": 1, "momentum": 0.9}
    used = recipe_of(values, search.recipe)
    assert used.dropout == 0.2
    given = {"width": 16, "deep": 2, "act": "elu", "blocks": 3, "wide": True, "momentum": 0.9}
    assert {name: value for name, value in used.factory_arguments().items() if name in given} == given
    assert values_of(used, space) == {**given, "dropout": 0.2}
    with pytest.raises(cnnlab.ArgumentError, match=r"every argument of net\. Received none for: width"):
        narrowed_space(recipe, [], options[1:])
    with pytest.raises(cnnlab.ArgumentError, match="choices for wide"):
        narrowed_space(recipe, [], [*options[:5], "wide=0:1"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tuner": "grid"}, "Expected tuner to be one of: bayesian"),
        ({"objective": "accuracy"}, "Did you mean 'val_accuracy'"),
        ({"trials": 0}, r"trials to be at least 1\. Received: 0"),
        ({"finalists": 0}, "finalists to be at least 1"),
        ({"tuner": "hyperband", "space": {"epochs": (1, 2)}}, "no epochs in the space of hyperband"),
    ],
)
def test_settings_of_a_search_are_checked(changes, message):
    with pytest.raises(cnnlab.ArgumentError, match=message):
        Search(**{"recipe": cnnlab.Recipe(), "space": {"dense_units": (8, 16)}, **changes})


@pytest.mark.parametrize("numbers", ["filters", "filters=(4, 8)"])
def test_a_function_may_take_several_numbers(tmp_path, numbers):
    (tmp_path / "nets.py").write_text(f"def net(input_shape, num_classes, {numbers}):\n    ...\n")
    recipe = cnnlab.Recipe(model=f"{tmp_path / 'nets.py'}:net")
    space = narrowed_space(recipe, ["learning_rate"], ["filters=8,16"])
    base = Search(recipe, space).recipe
    drawn = [recipe_of(values, base).filters for values in candidates(space, base)]
    assert sorted(drawn) == ([(8,), (16,)] if numbers == "filters" else [(8, 8), (8, 16), (16, 8), (16, 16)])


@pytest.mark.parametrize(
    "space", [{}, {"dense_units": (8,)}, {"dense_units": Range(8, 8)}, {"dense_units": Range(9, 8)}, {"blocks": (1, 2)}]
)
def test_a_space_with_nothing_to_choose_from_is_refused(space):
    with pytest.raises(cnnlab.ArgumentError, match="Expected"):
        check_space(space, cnnlab.Recipe())


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
