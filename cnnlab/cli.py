"""The `cnnlab` command: parses, calls one function, prints. Heavy imports wait until a job starts."""

import dataclasses
import gc
import re
import sys

import click

from cnnlab import model_commands
from cnnlab.errors import ArgumentError, LabError, expect_one_of
from cnnlab.job import job
from cnnlab.models import MODELS
from cnnlab.options import recipe_options, recipes_of


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="cnnlab")
def cli():
    """Train, compare and use image classifiers, with every run tracked by MLflow."""


for _command in model_commands.COMMANDS:
    cli.add_command(_command)


@cli.command()
@click.argument("model", metavar="MODEL")
@recipe_options
def train(model, **options):
    """Train MODEL (cnn or vgg16) as one tracked run."""
    [recipe] = recipes_of([model], options)
    with job():
        from cnnlab.compare import train_model
        from cnnlab.screen import print_next_step, print_results

        result = train_model(recipe)
        print_results([result], [result.recipe.model], f"on {result.dataset_name}")
        print_next_step(result.run_id)


@cli.command()
@click.argument("models", nargs=-1, metavar="[MODEL|RUN_ID]...")
@click.option("--seeds", type=click.IntRange(1, 100), help="Train each model this often, from --seed upwards.")
@recipe_options
def compare(models, seeds, **options):
    """Train models (cnn and vgg16) side by side, or compare runs of the store by their ids.

    A comparison is a run with the table, verdicts, and figures: curves, confusion matrices, calibration, and where the
    two best disagree. Models that are trained are tracked runs below it.
    """
    trains = not models or any(model in MODELS for model in models)
    if not trains and not any(re.fullmatch("[0-9a-f]{4,32}", model) for model in models):
        expect_one_of("what to compare", models[0], [*MODELS, "ids of runs"])
    given = ["--seeds"] * (seeds is not None) + [f"--{name}" for name, value in options.items() if value is not None]
    if not trains and given:
        raise ArgumentError(
            f"Expected no options with runs that are trained already. Received: {given[0].replace('_', '-')}. "
            "Leave it out, or name models."
        )
    recipes = recipes_of(models or tuple(MODELS), options) if trains else []
    with job():
        from cnnlab.compare import compare_models, compare_runs
        from cnnlab.report import labels_of
        from cnnlab.screen import print_next_step, print_results

        if trains:
            seeded = [
                dataclasses.replace(recipe, seed=recipe.seed + i) for recipe in recipes for i in range(seeds or 1)
            ]
            comparison = compare_models(seeded)
        else:
            comparison = compare_runs(models)
        results = comparison.results
        print_results(results, labels_of(results), f"on {results[0].dataset_name}")
        print("\n".join(comparison.verdicts))
        print_next_step(comparison.run_id)


@cli.command()
@click.argument("model", metavar="MODEL")
@click.option("--tuner", default="bayesian", show_default=True, help="One of: bayesian, random, hyperband.")
@click.option("--trials", type=click.IntRange(1), default=20, show_default=True, help="Recipes to try.")
@click.option("--objective", default="val_accuracy", show_default=True, help="One of: val_accuracy, val_loss.")
@click.option(
    "--space",
    multiple=True,
    metavar="NAME=VALUES",
    help="Narrow a hyperparameter to a range (learning_rate=1e-4:1e-2) or choices (filters=16,32,64); may be repeated.",
)
@click.option("--finalists", type=click.IntRange(1), default=3, show_default=True, help="Best recipes trained afresh.")
@click.option("--final-seeds", type=click.IntRange(1), default=2, show_default=True, help="Seeds for each finalist.")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes that run trials.")
@click.option("--name", help="Of the search; the same name and settings go on.  [default: the model's]")
@click.option("--restart", is_flag=True, help="Forget an unfinished search of that name.")
@recipe_options
def tune(model, tuner, trials, objective, space, finalists, final_seeds, workers, name, restart, **options):
    """Search the hyperparameters of MODEL (cnn or vgg16).

    Every trial is a tracked run. The best recipes are trained afresh, and the best of those is scored on the test set.
    Options of the recipe that are given are kept fixed. The same command goes on where an earlier one was interrupted.
    """
    from tuning.hypermodels import SPACES, check_space, fixed, narrowed
    from tuning.workers import ID, role

    [recipe] = recipes_of([model], options)
    given = [option for option, value in options.items() if value is not None]
    space = narrowed(fixed(SPACES[model], given), space)
    check_space(space, recipe)
    expect_one_of("tuner", tuner, ("bayesian", "random", "hyperband"))
    expect_one_of("objective", objective, ("val_accuracy", "val_loss"))
    if name and not re.fullmatch(r"[\w-]+", name):
        raise ArgumentError(f"Expected the name to be letters, digits, '-' and '_'. Received: '{name}'.")
    role_here = role()
    if role_here and workers > 1:
        raise ArgumentError(
            f"Expected --workers or KerasTuner's variables. Received both ({ID} is set). Leave one out."
        )
    with job():
        from cnnlab.screen import print_next_step
        from tuning.search import run_search, work_for_chief
        from tuning.trials import Search

        search = Search(recipe, space, tuner, objective, finalists, final_seeds, trials)
        if role_here == "worker":
            work_for_chief(search, name)
            print("The chief has no more trials.")
            return
        result = run_search(search, name=name, workers=workers, restart=restart)
        print(f"Winner: run {result.winner_run_id}.")
        print_next_step(result.parent_run_id)


@cli.command()
@click.option("--port", type=click.IntRange(1, 65535), help="Port to listen on.  [default: 5000, or a free one]")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
def ui(port, host):
    """Open the MLflow UI on the store.

    Prints a link that lands on the newest comparison, with the metric columns shown. Ctrl-C ends it.
    """
    with job(trains=False):
        from cnnlab.ui import serve_ui

        serve_ui(host, port)


@cli.command()
@click.option("--clear", is_flag=True, help="Remove everything that is stored.")
def cache(clear):
    """Show or clear the stored features of frozen layers."""
    from datetime import datetime

    from cnnlab import features

    if clear:
        print(f"Freed {features.clear_cache() / 1e6:,.0f} MB in {features.cache_folder()}")
        return
    entries = features.cache_entries()
    print(f"{len(entries)} stored, {sum(e['bytes'] for e in entries) / 1e6:,.0f} MB, in {features.cache_folder()}")
    for e in entries:
        used = datetime.fromtimestamp(e["used"]).strftime("%Y-%m-%d %H:%M")
        print(f"{e['key'][:12]}  {e['bytes'] / 1e6:9,.1f} MB  used {used}  {e['shape']} up to layer {e['front']}")


def main():
    """Run the command; a `LabError` is one sentence on stderr and its exit status."""
    try:
        cli(prog_name="cnnlab", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        status = error.exit_code
    except click.ClickException as error:
        print(f"error: {error.format_message()} See 'cnnlab --help'.", file=sys.stderr)
        status = error.exit_code
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        status = error.exit_code
    except (click.exceptions.Abort, KeyboardInterrupt):  # click makes an Abort of it inside a command
        print("interrupted", file=sys.stderr)
        status = 130
    else:
        status = 0
    # The interpreter's last collection goes through all of TensorFlow's objects for two seconds, to no end.
    gc.freeze()
    sys.exit(status)
