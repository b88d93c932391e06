"""The `cnnlab` command: parses, calls one function, prints. Heavy imports wait until a job starts."""

import dataclasses
import gc
import os
import re
import signal
import sys
from contextlib import contextmanager

import click

from cnnlab.errors import ArgumentError, LabError, expect_one_of
from cnnlab.models import MODELS
from cnnlab.recipe import Recipe, applies, bounds_text, default_text


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="cnnlab")
def cli():
    """Train, compare and use image classifiers, with every run tracked by MLflow."""


def _option_type(f):
    if f.metadata["choices"]:
        return click.STRING  # checked by the recipe, which names the nearest valid choice
    if f.name == "filters":
        return _Integers()
    return {int: click.INT, float: click.FLOAT}.get(_scalar(f.type), click.STRING)


def _scalar(annotation):
    for kind in (int, float):
        if annotation in (kind, kind | None):
            return kind
    return str


class _Integers(click.ParamType):
    name = "integers"

    def convert(self, value, param, ctx):
        try:
            return tuple(int(part) for part in value.split(","))
        except ValueError:
            self.fail(f"Expected integers separated by commas, such as 32,64,128. Received: '{value}'.", param, ctx)


def recipe_options(command):
    """Add an option for every field of the recipe but the model."""
    for f in reversed(dataclasses.fields(Recipe)):
        if f.name == "model":
            continue
        bounds, default = bounds_text(f.metadata), default_text(f)
        models = f.metadata["models"]
        parts = [
            f.metadata["help"],
            f"({bounds})" if bounds else "",
            f"[{' and '.join(models)} only]" if models else "",
            f"[default: {default}]" if default else "",
        ]
        command = click.option(
            "--" + f.name.replace("_", "-"),
            f.name,
            type=_option_type(f),
            metavar="NAME_OR_FOLDER" if f.name == "dataset" else None,
            help="  ".join(part for part in parts if part),
        )(command)
    return command


@cli.command()
@click.argument("model", metavar="MODEL")
@recipe_options
def train(model, **options):
    """Train MODEL (cnn or vgg16) as one tracked run."""
    [recipe] = _recipes([model], options)
    with job():
        from cnnlab.compare import train_model

        result = train_model(recipe)
        _print_table([result], f"on {result.dataset_name}")
        _print_next_step(result.run_id)


@cli.command()
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@recipe_options
def compare(models, **options):
    """Train models (cnn and vgg16) side by side.

    Each is a tracked run on the same data; their parent run carries the table and the overlaid figures.
    """
    recipes = _recipes(models or tuple(MODELS), options)
    with job():
        from cnnlab.compare import compare_models

        parent_run_id, results = compare_models(recipes)
        _print_table(results, f"on {results[0].dataset_name}")
        _print_next_step(parent_run_id)


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

    [recipe] = _recipes([model], options)
    given = [option for option, value in options.items() if value is not None]
    space = narrowed(fixed(SPACES[model], given), space)
    check_space(space, recipe)
    expect_one_of("tuner", tuner, ("bayesian", "random", "hyperband"))
    expect_one_of("objective", objective, ("val_accuracy", "val_loss"))
    if name and not re.fullmatch(r"[\w-]+", name):
        raise ArgumentError(f"Expected the name to be letters, digits, '-' and '_'. Received: '{name}'.")
    with job():
        from tuning.search import run_search, work_for_chief
        from tuning.trials import Search

        search = Search(recipe, space, tuner, objective, finalists, final_seeds, trials)
        if os.environ.get("KERASTUNER_ORACLE_IP") and "chief" not in os.environ.get("KERASTUNER_TUNER_ID", ""):
            work_for_chief(search, name)
            return
        result = run_search(search, name=name, workers=workers, restart=restart)
        print(f"Winner: run {result.winner_run_id}.")
        _print_next_step(result.parent_run_id)


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


@contextmanager
def job(trains=True):
    """Around the work of a command: SIGTERM ends it like Ctrl-C, TensorFlow's start-up chatter stays off the screen."""

    def stop(signum, frame):
        raise SystemExit(128 + signum)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        if trains:
            _load_tensorflow()
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _load_tensorflow():
    """Import it with file descriptor 2 sent nowhere: it prints `I0000 ...` lines, whatever its log level."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        import keras  # noqa: F401
        import tensorflow as tf

        tf.config.list_physical_devices()
        tf.get_logger().setLevel("ERROR")  # retracing, say, is of no use to somebody who wrote no tf.function
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _recipes(models, options):
    """A recipe for each model; options that were not given keep the recipe's defaults."""
    given = {name: value for name, value in options.items() if value is not None}
    for model in models:
        expect_one_of("model", model, MODELS)
    for f in dataclasses.fields(Recipe):
        if f.name in given and not any(applies(f, model) for model in models):
            option = "--" + f.name.replace("_", "-")
            raise ArgumentError(
                f"Expected options that apply to {' and '.join(models)}. "
                f"Received: {option}, which is for {' and '.join(f.metadata['models'])}. Leave it out."
            )
    if "dataset" in given:
        from cnnlab.data import is_folder

        is_folder(given["dataset"])  # a wrong name answers at once, not after TensorFlow has loaded
    fields = dataclasses.fields(Recipe)
    return [
        Recipe(model=model, **{f.name: given[f.name] for f in fields if f.name in given and applies(f, model)})
        for model in models
    ]


def _print_table(results, title):
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    table.add_column("model", no_wrap=True)
    for column in ("test\naccuracy", "test\nloss", "parameters", "trainable", "train\nseconds"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("run id", overflow="fold")  # on a narrow terminal in two lines, but whole
    for r in results:
        table.add_row(
            r.recipe.model,
            f"{r.test_accuracy:.2%}",
            f"{r.test_loss:.4f}",
            f"{r.params:,}",
            f"{r.trainable_params:,}",
            f"{r.train_seconds:.1f}",
            r.run_id,
        )
    # In a file the table is as wide as it needs to be; only a terminal has a width to respect.
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _print_next_step(run_id):
    print(f"Recorded as run {run_id}. Look at it with: cnnlab ui")


def main():
    """Run the command; a `LabError` is one sentence on stderr and its exit status."""
    try:
        cli(prog_name="cnnlab", standalone_mode=False)
    except click.exceptions.Abort:
        status = 130
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        status = error.exit_code
    except click.ClickException as error:
        print(f"error: {error.format_message()} See 'cnnlab --help'.", file=sys.stderr)
        status = error.exit_code
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        status = error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    else:
        status = 0
    # The interpreter's last collection goes through all of TensorFlow's objects for two seconds, to no end.
    gc.freeze()
    sys.exit(status)
