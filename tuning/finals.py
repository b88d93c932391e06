"""An honest winner: the best recipes trained afresh with new seeds, the best of those scored on the test set."""

import dataclasses
import hashlib
import json

import numpy as np

from cnnlab.prepare import build_model
from cnnlab.runner import fit_and_evaluate
from cnnlab.tracking import run as tracking
from tuning import report
from tuning.settings import OBJECTIVES
from tuning.spaces import recipe_of


def train_finalists(search, oracle, place):
    """Train the best trials' recipes afresh; returns the `Recipe` with the best mean score."""
    completed = [trial for trial in oracle.trials.values() if trial.status == "COMPLETED"]
    best_first = sorted(completed, key=lambda trial: trial.score, reverse=OBJECTIVES[search.objective] == "max")
    means = {}
    recipes = {}
    for trial in best_first:
        recipe = dataclasses.replace(
            recipe_of(trial.hyperparameters.values, search.recipe), epochs=search.recipe.epochs
        )
        if recipe in recipes.values():  # hyperband trains a recipe several times
            continue
        number = int(trial.trial_id)
        scores = []
        for i in range(search.final_seeds):
            seeded = dataclasses.replace(recipe, seed=search.seed(2**20, i))
            scores.append(
                place.scored_run(search, seeded, "final", f"{number}.{i}", f"trial {number} afresh, seed {i + 1}")
            )
        recipes[number], means[number] = recipe, float(np.mean(scores))
        listed = ", ".join(f"{score:.4f}" for score in scores)
        print(f"trial {number} afresh  {search.objective} {means[number]:.4f} (of {listed})", flush=True)
        if len(recipes) == search.finalists:
            break
    pick = max if OBJECTIVES[search.objective] == "max" else min
    winner = pick(means, key=means.get)
    tracking.log_results(
        {f"best_{search.objective}": means[winner]},
        {},
        {"finalists.json": json.dumps({f"trial {number}": mean for number, mean in means.items()}, indent=2)},
    )
    [trial] = [trial for trial in completed if int(trial.trial_id) == winner]
    tracking.tag_run(best=f"trial {winner}: {report.values_text(oracle, trial)}")
    return recipes[winner]


def train_winner(search, recipe, place) -> str:
    """Train the winning recipe once more, with the search's own seed, as an ordinary run with a test score.

    Returns:
        The run's id; that of the run that is there already where this was done before.
    """
    label = "winner " + hashlib.sha256(recipe.to_json().encode()).hexdigest()[:12]
    for run in place.children(kind="train", label=label):
        if run["status"] == "FINISHED":
            return run["run_id"]
    resumed = place.interrupted_run(recipe, "train", label)
    result = fit_and_evaluate(
        build_model(recipe, place.dataset),
        place.dataset,
        recipe,
        run_name=f"winner {recipe.label} on {place.dataset.name}",
        parent_run_id=place.parent_run_id,
        tags={"label": label, **place.tags},
        resume_run_id=resumed,
    )
    tracking.log_results({"test_accuracy": result.test_accuracy}, {}, {"winner.json": recipe.to_json()})
    return result.run_id
