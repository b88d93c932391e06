"""Choose the winner of a search: train the best recipes afresh with new seeds, and test only the best of those."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Container, Iterable, Iterator
from typing import Any

import numpy as np

from cnnlab.recipe import ResolvedRecipe
from cnnlab.resolve import build_model
from cnnlab.tracking import run_logging
from cnnlab.tracking.session import Session
from cnnlab.train import fit_and_evaluate
from cnnlab.tuning import search_report
from cnnlab.tuning.search_settings import OBJECTIVES, Search
from cnnlab.tuning.trial_recipes import at_full_length, recipe_of, values_of
from cnnlab.tuning.trials import Address, Place, place_of, train_scored
from cnnlab.utils.log import log
from cnnlab.utils.text import markdown
from cnnlab.utils.worker_pool import Job, JobResult, last_line, run_jobs


def train_finalists(search: Search, oracle: Any, place: Place, workers: Any) -> ResolvedRecipe:
    """Train the best trials' recipes afresh; return the `ResolvedRecipe` with the best mean score.

    Raises:
        LabError: a training of each of them failed.
    """
    completed = search_report.best_first(oracle.trials.values(), search.objective)
    recipes = best_recipes(search, completed)
    means = _mean_scores(search, recipes, place, workers)
    pick = max if OBJECTIVES[search.objective] == "max" else min
    finalists = [number for number in recipes if number in means]
    winner = pick(finalists, key=lambda number: means[number])  # of equal ones the better trial
    run_logging.log_results(
        {f"best_{search.objective}": means[winner]},
        {},
        {"finalists.json": json.dumps({f"trial {number}": means[number] for number in finalists}, indent=2)},
    )
    best = f"trial {winner}: {search_report.values_text(values_of(recipes[winner], search.space))}"
    run_logging.tag_run(best=best)
    run_logging.describe_run(f"The best of {len(completed)}, {search.objective} {means[winner]:.4f}: {markdown(best)}")
    return recipes[winner]


def best_recipes(search: Search, best_first: Iterable[Any]) -> dict[int, ResolvedRecipe]:
    """Return the different recipes of the best trials, best first, by the trial's number."""
    recipes: dict[int, ResolvedRecipe] = {}
    for trial in best_first:
        recipe = recipe_of(at_full_length(trial.hyperparameters.values), search.recipe)
        if recipe not in recipes.values():  # hyperband trains a recipe several times
            recipes[int(trial.trial_id)] = recipe
        if len(recipes) == search.finalists:
            break
    return recipes


def _mean_scores(search: Search, recipes: dict[int, ResolvedRecipe], place: Place, workers: Any) -> dict[int, float]:
    """Train each recipe with several seeds; return the mean scores by the trial's number.

    A recipe of which a training fails, as some diverge with another seed, is left out with a warning.

    Raises:
        LabError: so does each of them.
    """
    scores: dict[str, float] = {}  # by number and seed, as "3.0"
    means: dict[int, float] = {}
    failed: dict[int, JobResult] = {}
    waiting = _trainings(search, recipes, place, failed)
    for ended in run_jobs(lambda: next(waiting, None), workers):
        label = ended.job.arguments[3]
        number = int(label.partition(".")[0])
        if ended.error:
            failed[number] = ended
            log.warning(f"trial {number} is out: trained again, it failed: {last_line(ended.error)}.")
            continue
        scores[label] = ended.value
        known = [scores[key] for i in range(search.final_seeds) if (key := f"{number}.{i}") in scores]
        if len(known) == search.final_seeds:
            means[number] = float(np.mean(known))
            listed, s = ", ".join(f"{score:.4f}" for score in known), "s" * (len(known) > 1)
            log.info(
                f"trial {number} trained again with {len(known)} new seed{s}: mean {search.objective} "
                f"{means[number]:.4f} ({listed})"
            )
    if not means:
        failed[min(failed)].result()
    return means


def _trainings(
    search: Search, recipes: dict[int, ResolvedRecipe], place: Place, failed: Container[int]
) -> Iterator[Job]:
    for number, recipe in recipes.items():
        for i in range(search.final_seeds):
            if number in failed:
                break
            name = f"trial {number} afresh, seed {i + 1}"
            seeded = dataclasses.replace(recipe, seed=search.seed(2**20, i))
            yield Job(name, train_scored, (place.address(search), seeded, "final", f"{number}.{i}", name))


def train_winner(address: Address, recipe: ResolvedRecipe) -> tuple[str, float]:
    """Train the winning recipe once more, with the search's own seed, as an ordinary run with a test score.

    Returns:
        The id under which the run is recorded, and its test accuracy; those of the finished run where this was done
        before.
    """
    with Session([recipe.model], options=address.options) as session:
        session.recorder(direct=True)
        place = place_of(address)
        label = "winner " + hashlib.sha256(recipe.key_text().encode()).hexdigest()[:12]
        for run in place.children(kind="train", label=label):
            if run["status"] == "FINISHED":
                return run["run_id"], run["metrics"]["test_accuracy"]
        resumed = place.interrupted_run(recipe, "train", label)
        result = fit_and_evaluate(
            build_model(recipe, place.dataset, place.options),
            place.dataset,
            recipe,
            run_name=f"winner {recipe.label} on {place.dataset.name}",
            parent_run_id=place.parent_run_id,
            tags={"label": label, **place.tags},
            resume_run_id=resumed,
            options=place.options,
        )
    return result.recorded_id, result.test_accuracy
