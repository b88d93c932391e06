"""Test which recipes a search asks for, without training any: pytest tests/tuning/test_oracles.py"""

import random

import pytest

import cnnlab
from cnnlab.models.model_table import Range
from cnnlab.tuning.oracles import make_oracle
from cnnlab.tuning.search_report import shown_values
from cnnlab.tuning.search_settings import TUNERS, Search
from cnnlab.tuning.spaces import check_space
from cnnlab.tuning.trial_recipes import at_full_length, recipe_of

BASE = cnnlab.Recipe(filters=(8, 8), dense_units=16, epochs=5)
# Space and how many recipes it has; none for a continuous one.
SPACES = {
    "choices": ({"dense_units": (8, 16, 24), "optimizer": ("adam", "adamw")}, 6),
    "integers": ({"dense_units": Range(0, 3), "batch_size": Range(32, 33, log=True)}, 8),
    "filters of each block": ({"blocks": (1, 2), "filters": (4, 8)}, 2 + 4),
    "filters of as many blocks": ({"filters": (4, 8)}, 4),
    "only with sgd": ({"optimizer": ("adam", "sgd"), "momentum": (0.8, 0.9, 0.95)}, 1 + 3),
    "only without averages": ({"ema": (0.0, 0.9), "lookahead": (0.0, 0.5), "progressive_resizing": (0.0, 0.4)}, 1 + 4),
    "range only with sgd": ({"optimizer": ("adam", "sgd"), "momentum": Range(0.8, 0.95)}, None),
    "mixed": ({"dropout": Range(0, 0.5), "augment": ("none", "flip")}, None),
}


def asked(oracle, most=100):
    """Run trials with random scores; return the recipe of each at its full length, in the order of the trials."""
    recipes, draw = [], random.Random(1)
    while len(recipes) < most and (trial := oracle.ask()) is not None:
        recipes.append(recipe_of(at_full_length(trial.hyperparameters.values), BASE))
        oracle.tell(trial, draw.random())
    return recipes


@pytest.mark.parametrize("tuner", TUNERS)
@pytest.mark.parametrize("name", SPACES)
def test_no_recipe_is_tried_twice_while_there_are_others_also_after_a_resume(tmp_path, name, tuner):
    space, size = SPACES[name]
    check_space(space, BASE)
    search = Search(BASE, space, tuner, trials=20 if size else 9)
    recipes = asked(make_oracle(search, tmp_path / "search"), most=3)
    oracle = make_oracle(search, tmp_path / "search")
    recipes += asked(oracle)
    different = {recipe.key_text() for recipe in recipes}
    if tuner == "hyperband":  # trains the best ones again, for longer
        lengths = [trial.hyperparameters.values["tuner/epochs"] for _, trial in sorted(oracle.trials.items())]
        assert len({*zip(map(cnnlab.Recipe.key_text, recipes), lengths, strict=True)}) == len(recipes)
        assert max(lengths) == 5
    else:
        assert len(different) == len(recipes)
    assert oracle.used_up == bool(size)
    assert len(different) == oracle.recipes_tried()
    assert len(different) == size if size else len(recipes) == 9


def test_a_state_without_its_last_trial_repeats_nothing(tmp_path):
    """Kill a search between the two files that a new trial is written to."""
    search = Search(BASE, SPACES["only with sgd"][0], "random", trials=9)
    oracle = make_oracle(search, tmp_path / "search")
    recipes = asked(oracle, most=2)
    state = (tmp_path / "search" / "oracle.json").read_bytes()
    trial = oracle.ask()
    (tmp_path / "search" / "oracle.json").write_bytes(state)
    again = make_oracle(search, tmp_path / "search")
    assert again.ask().trial_id == trial.trial_id
    recipes += [recipe_of(trial.hyperparameters.values, BASE), *asked(again)]
    assert len(recipes) == len({recipe.key_text() for recipe in recipes}) == 4


@pytest.mark.parametrize("tuner", TUNERS)
def test_several_workers_are_never_given_the_same_recipe(tmp_path, tuner):
    oracle = make_oracle(Search(BASE, SPACES["choices"][0], tuner, trials=30), tmp_path / "search")
    values = [trial.hyperparameters.values for trial in iter(oracle.ask, None)]
    assert len(values) == len({recipe_of(at_full_length(each), BASE).key_text() for each in values}) == 6


@pytest.mark.parametrize(
    ("units", "failing"),
    [((8, 16, 24), ()), ((8, 16), ()), (range(8, 20), (9, 11, 13)), (range(8, 20), range(9, 18)), ((8, 16, 24), (24,))],
)
def test_hyperband_trains_the_best_for_longer_however_few_there_are(tmp_path, units, failing):
    base = cnnlab.Recipe(filters=(8,), dense_units=8, epochs=9)
    oracle = make_oracle(Search(base, {"dense_units": tuple(units)}, "hyperband", trials=50), tmp_path / "search")
    tried = {1: [], 3: [], 9: []}
    while not tried[9]:
        trial = oracle.ask()
        width, epochs = (trial.hyperparameters.values[name] for name in ("dense_units", "tuner/epochs"))
        tried[epochs].append(width)
        oracle.tell(trial, width, "it failed" if width in failing else None)
        oracle.failures = ()
    best = sorted(set(tried[1]) - set(failing), reverse=True)
    assert len(tried[1]) == min(9, len(units))
    assert tried[3] == best[: -(-len(tried[1]) // 3)]
    assert tried[9] == best[:1]
    if len(units) < 9:
        assert oracle.ask() is None
        assert oracle.used_up


def test_a_trial_shows_only_what_it_was_trained_with(tmp_path):
    oracle = make_oracle(Search(BASE, SPACES["only with sgd"][0], "random"), tmp_path / "search")
    asked(oracle)
    shown = [shown_values(oracle, trial) for trial in oracle.trials.values()]
    assert {"optimizer": "adam"} in shown
    assert sum("momentum" in values for values in shown) == 3


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_not_finite_fails_the_trial(tmp_path, score):
    oracle = make_oracle(Search(BASE, SPACES["choices"][0], "random", "val_loss"), tmp_path / "search")
    oracle.tell(trial := oracle.ask(), score)
    assert oracle.trials[trial.trial_id].status == "FAILED"
    assert "Expected a finite val_loss" in oracle.trials[trial.trial_id].message
