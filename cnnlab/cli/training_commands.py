"""The commands that train: train, compare, tune; and features, which prepares a training."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import click

from cnnlab.cli.recipe_options import (
    OptionDecorator,
    checkpoint_option,
    cluster_options,
    devices_option,
    experiment_option,
    option_name,
    recheck_option,
    recipe_options,
    recipes_of,
    take_run_options,
)
from cnnlab.data.dataset import LAYOUT_OPTIONS
from cnnlab.errors import ArgumentError, LabError
from cnnlab.tuning.search_settings import OBJECTIVES
from cnnlab.utils.startup import job

# Of the recipe, what says which pictures there are and what frozen layers make of them.
FEATURE_OPTIONS = (
    *("image_size", "resize_mode", *LAYOUT_OPTIONS, "drop_duplicates", "stored_size", "val_fraction", "test_fraction"),
    *("hold_out_every_class", "limit", "split_seed", "augment", "backbone", "weights", "preprocessing", "train_blocks"),
    *("precision", "frozen_precision", "feature_dtype"),
)


restart_option: OptionDecorator = click.option(
    "--restart", is_flag=True, help="Train from the beginning, also where an equal training was interrupted."
)


def _training_options(command: Any) -> Any:
    """Add the options of every command that trains."""
    for option in (recipe_options, recheck_option, experiment_option, checkpoint_option, devices_option):
        command = option(command)
    return command


def _given(options: dict[str, Any]) -> list[str]:
    """Return the spellings of the options that were given."""
    return [option_name(name) for name, value in options.items() if value not in (None, ())]


@click.command()
@click.argument("model", metavar="MODEL", required=False)
@click.option("--resume", metavar="RUN_ID", help="Go on with an interrupted run, or with --epochs a finished one.")
@restart_option
@cluster_options
@_training_options
def train(model: str | None, resume: str | None, restart: bool, **options: Any) -> None:
    """Train MODEL as one tracked run.

    The same command again goes on with a run that was interrupted, from its last checkpoint. --resume RUN_ID does so
    too; with --epochs it trains a finished run until it has so many, as a new run.

    MODEL is cnn, resnet9, vgg16, another backbone ('cnnlab models --available' lists them), transfer with any
    --backbone, or a function of your own, FILE.py:FUNCTION, that takes (input_shape, num_classes, **arguments) and
    returns a model. With --on, a cluster makes the pass through its frozen layers; the rest is trained here.
    """
    run, epochs = take_run_options(options), options["epochs"]
    if resume:
        options.pop("epochs")
        if given := ["MODEL"] * bool(model) + ["--restart"] * restart + _given(options):
            raise ArgumentError(
                f"Expected no more than --resume {resume} and --epochs: the run goes on as it was. Received: "
                f"{given[0]}. Leave it out."
            )
    elif not model:
        raise click.UsageError("Missing argument 'MODEL'.")
    recipe = recipes_of([model], options)[0] if model else None
    with job():
        from cnnlab.cli.tables import print_next_step, print_results
        from cnnlab.train import resume_run, train_model

        if recipe:
            result = train_model(recipe, restart, options=run)
        else:
            result = resume_run(resume or "", epochs=epochs, options=run)
        print_results([result], [result.recipe.label], f"on {result.dataset_name}")
        print_next_step(result.run_id)


@click.command()
@click.argument("models", nargs=-1, metavar="[MODEL|RUN_ID]...")
@click.option("--seeds", type=click.IntRange(1, 100), help="Train each model this often, from --seed upwards.")
@restart_option
@_training_options
def compare(models: tuple[str, ...], seeds: int | None, restart: bool, **options: Any) -> None:
    """Train models (by default cnn and vgg16) side by side, or compare runs of the store by their ids.

    Where a model fails, the others are trained, and the exit status is 1. The same command again goes on with a
    comparison that was interrupted or in which a model failed: what it has trained stays.

    A comparison is a run with the table, verdicts, and figures: curves, confusion matrices, calibration, and where the
    two best disagree. Models that are trained are tracked runs below it.
    """
    run = take_run_options(options)
    trains = not models or not all(re.fullmatch("[0-9a-f]{4,32}", model) for model in models)
    given = ["--seeds"] * (seeds is not None) + ["--restart"] * restart + _given(options)
    if not trains and given:
        raise ArgumentError(
            f"Expected no options with runs that are trained already. Received: {given[0]}. "
            "Leave it out, or name models."
        )
    recipes = recipes_of(models or ("cnn", "vgg16"), options) if trains else []
    with job():
        from cnnlab.cli.tables import print_next_step, print_results
        from cnnlab.compare import compare_models, compare_runs
        from cnnlab.evaluation.comparison_report import labels_of

        if trains:
            seeded = (dataclasses.replace(one, seed=one.seed + i) for one in recipes for i in range(seeds or 1))
            comparison = compare_models(list(seeded), restart, options=run)
        else:
            comparison = compare_runs(models, options=run)
        results = comparison.results
        print_results(results, labels_of(results), f"on {results[0].dataset_name}", comparison.failed)
        print("\n".join(comparison.verdicts))
        print_next_step(comparison.run_id)
        if failed := comparison.failed:
            raise LabError(
                f"Expected all trainings to finish. Received: {len(failed)} that failed, as the table says. The same "
                "command trains them again, and no others."
            )


@click.command()
@click.argument("model", metavar="MODEL")
@click.option("--tuner", default="bayesian", show_default=True, help="One of: bayesian, random, hyperband.")
@click.option("--trials", type=click.IntRange(1), default=20, show_default=True, help="Recipes to try.")
@click.option("--objective", default="val_accuracy", show_default=True, help=f"One of: {', '.join(OBJECTIVES)}.")
@click.option(
    "--space",
    multiple=True,
    metavar="NAME=VALUES",
    help="Narrow a hyperparameter to a range (learning_rate=1e-4:1e-2) or choices (filters=16,32,64), or add one "
    "(label_smoothing); may be repeated.",
)
@click.option("--finalists", type=click.IntRange(1), default=3, show_default=True, help="Best recipes trained again.")
@click.option("--final-seeds", type=click.IntRange(1), default=2, show_default=True, help="Seeds for each finalist.")
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Trainings at the same time.  [default: 1; with --on as many as there is room for]",
)
@cluster_options
@click.option("--name", help="Of the search; the same name and settings go on.  [default: the model's]")
@click.option("--restart", is_flag=True, help="Forget an unfinished search of that name.")
@_training_options
def tune(
    model: str,
    tuner: str,
    trials: int,
    objective: str,
    space: tuple[str, ...],
    finalists: int,
    final_seeds: int,
    workers: int | None,
    name: str | None,
    restart: bool,
    **options: Any,
) -> None:
    """Search the hyperparameters of MODEL, which is as in 'cnnlab train'.

    Every trial is a tracked run. The best recipes are trained again, and the best of those is scored on the test set.
    Options of the recipe that are given are kept fixed. The same command goes on where an earlier one was interrupted.
    """
    from cnnlab.tuning.search_settings import Search, expect_runnable
    from cnnlab.tuning.spaces import narrowed_space

    run = take_run_options(options)
    [recipe] = recipes_of([model], options, whole=False)
    given = [option for option, value in options.items() if value not in (None, ())]
    varied = narrowed_space(recipe, given, space)
    expect_runnable(name, workers, run)
    search = Search(recipe, varied, tuner, objective, finalists, final_seeds, trials)
    with job():
        from cnnlab.cli.tables import print_next_step
        from cnnlab.tuning.search import run_search
        from cnnlab.tuning.search_report import values_text

        result = run_search(search, name=name, workers=workers, restart=restart, options=run)
        print(f"Winner: run {result.winner_run_id}, with {values_text(result.winner_values)}.")
        print_next_step(result.parent_run_id)


@click.command()
@click.argument("dataset", metavar="DATASET")
@click.argument("model", metavar="MODEL")
@click.option("--for-search", is_flag=True, help="As trials of a search need them: without the test pictures.")
@cluster_options
@recheck_option
@functools.partial(recipe_options, names=FEATURE_OPTIONS)
def features(model: str, for_search: bool, **options: Any) -> None:
    """Store the features that MODEL's frozen layers give for the pictures of DATASET.

    A training with the same options then starts at once; 'cnnlab cache' shows what is stored. With --on, the pass is
    spread over a cluster.
    """
    run = take_run_options(options)
    [recipe] = recipes_of([model], options)
    with job():
        from cnnlab.features import store_features

        stored = store_features(recipe, ("train", "val") if for_search else ("train", "val", "test"), options=run)
        if not stored.new:
            print(f"The features of {stored.pictures:,} pictures were stored already.")
            return
        for entry in stored.new:
            print(f"{entry['key'][:12]}  {entry['bytes'] / 1e6:,.1f} MB  {entry['shape']} {entry['what']}")
        print(
            f"Stored in {stored.seconds:.1f} s, {stored.pictures * len(stored.new) / stored.seconds:,.0f} pictures a "
            "second."
        )


COMMANDS = (train, compare, tune, features)
