"""Test what finalists are trained with, without training any: pytest tests/tuning/test_finalists.py"""

import dataclasses
import itertools
from types import SimpleNamespace

import pytest

import cnnlab
from cnnlab.models.model_table import MODELS
from cnnlab.recipe import applies
from cnnlab.tuning import finalists
from cnnlab.tuning.search_report import best_first
from cnnlab.tuning.search_settings import Search
from cnnlab.tuning.trial_recipes import LENGTHS, candidates, recipe_of, value_of
from cnnlab.tuning.trials import Place
from cnnlab.utils.worker_pool import ThisProcess

BASES = {
    "cnn": cnnlab.Recipe(epochs=7, optimizer="sgd"),
    "resnet9": cnnlab.Recipe(model="resnet9", epochs=7),
    "vgg16": cnnlab.Recipe(model="vgg16", epochs=7, optimizer="sgd", fine_tune=3),
}


def searchable(model):
    """Every hyperparameter of a model, with its usual values."""
    added = {f.name: f.metadata["space"] for f in dataclasses.fields(cnnlab.Recipe) if applies(f, model)}
    space = {name: values for name, values in {**added, **MODELS[model].space}.items() if values}
    return {**space, "padding": ("valid", "same")} if "padding" in space else space


ALL = [
    (model, name, tuner)
    for model in BASES
    for name in searchable(model)
    for tuner in ("random", "hyperband")
    if name not in LENGTHS and (name, tuner) != ("epochs", "hyperband")
]


def trial(number, values, score):
    hyperparameters = SimpleNamespace(values=values)
    return SimpleNamespace(trial_id=f"0{number}", hyperparameters=hyperparameters, status="COMPLETED", score=score)


@pytest.mark.parametrize(("model", "name", "tuner"), ALL)
def test_finalists_and_winner_are_trained_with_what_was_searched(model, name, tuner):
    space = {"blocks": (1, 2), name: searchable(model)[name]} if name == "filters" else {name: searchable(model)[name]}
    values = list(itertools.islice(candidates(space, BASES[model]), 2))
    search = Search(BASES[model], space, tuner, final_seeds=1)
    short = {"tuner/epochs": 1} if tuner == "hyperband" else {}
    trials = [trial(i, {**one, **short}, score) for i, (one, score) in enumerate(zip(values, (0.1, 0.9), strict=True))]
    recipes = finalists.best_recipes(search, best_first(trials, "val_accuracy"))
    assert list(recipes) == [1, 0]
    jobs = list(finalists._trainings(search, recipes, Place("", "", SimpleNamespace(digest=""), {}), ()))
    for number, job in zip(recipes, jobs, strict=True):
        searched = values[number]
        if name == "filters":
            searched = {"filters": tuple(searched[f"filters_{i + 1}"] for i in range(searched["blocks"]))}
        assert value_of(name, recipes[number]) == value_of(name, job.arguments[1]) == searched[name]
        assert name == "epochs" or recipes[number].epochs == 7


@pytest.mark.parametrize("model", BASES)
def test_all_values_of_everything_at_once_go_together(model):
    space = searchable(model)
    for values in itertools.islice(candidates(space, BASES[model]), 500):
        recipe_of(values, BASES[model])


def test_a_finalist_whose_training_fails_is_out(monkeypatch, caplog):
    def train(address, recipe, kind, label, name):
        if recipe.dense_units in failing:
            raise cnnlab.LabError("Expected a finite loss. Received: nan.")
        return recipe.dense_units / 100

    monkeypatch.setattr(finalists, "train_scored", train)
    recipes = {i: recipe_of({"dense_units": units}, BASES["cnn"]) for i, units in enumerate((8, 16, 24))}
    search = Search(BASES["cnn"], {"dense_units": (8, 16, 24)}, final_seeds=2)
    place = Place("", "", SimpleNamespace(digest=""), {})
    failing = {24}
    assert finalists._mean_scores(search, recipes, place, ThisProcess()) == pytest.approx({0: 0.08, 1: 0.16})
    assert "trial 2 is out: trained again, it failed: Expected a finite loss. Received: nan." in caplog.text
    failing = {8, 16, 24}
    with pytest.raises(cnnlab.LabError, match="finite loss"):
        finalists._mean_scores(search, recipes, place, ThisProcess())
