"""Add command-line options to a command, one for each field of `Recipe` and `RunOptions`, with help and bounds."""

import dataclasses
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import click

from cnnlab.errors import ArgumentError
from cnnlab.models.model_table import MODELS, find_model
from cnnlab.recipe import OLD_NAMES, Recipe, RunOptions, applies
from cnnlab.recipe_checks import bounds_text
from cnnlab.utils.argument_types import convert

Command: TypeAlias = Callable[..., Any]
OptionDecorator: TypeAlias = Callable[[Command], Command]  # adds an option to a command

SHOWN: tuple[str, ...] = ("cnn", "resnet9", "vgg16", "transfer")  # models whose defaults `--help` shows
# Runs of earlier versions have a param class_weight of MLflow's autologging, which says nothing of ours.
OPTION_NAMES: dict[str, str] = {"arguments": "--arg", "class_weights": "--class-weight"}
METAVARS: dict[str, str] = {
    **{"dataset": "NAME_OR_FOLDER", "arguments": "NAME=VALUE", "backbone": "NAME_OR_FILE"},
    **{"augment": "NAME,...", "class_weights": "none|balanced|FILE", "fine_tune_from": "STAGE"},
}


def recipe_options(
    command: Command, names: Collection[str] | None = None, defaults: Mapping[str, str] | None = None
) -> Command:
    """Add an option for every field of the recipe but the model, or for those of some names, with other defaults."""
    for f in reversed(dataclasses.fields(Recipe)):
        if f.name == "model" or (names and f.name not in names):
            continue
        flag = f.type in (bool, bool | None)
        bounds, default = bounds_text(f.metadata), "" if flag else _default_text(f)
        default = (defaults or {}).get(f.name, default)
        models = "" if names else _models_text(f)
        parts = [
            f.metadata["help"],
            f"({bounds})" if bounds else "",
            f"[{models} only]" if models else "",
            f"[default: {default}]" if default else "",
        ]
        command = click.option(
            option_name(f.name),
            f.name,
            type=click.BOOL if flag else click.STRING if f.name == "arguments" else _Value(f),
            is_flag=flag,
            multiple=f.name == "arguments",
            default=None,  # told apart from a value that was given
            metavar=METAVARS.get(f.name),
            help="  ".join(part for part in parts if part),
            cls=_RecipeOption,
        )(command)
    return command


class _RecipeOption(click.Option):
    """An option of a recipe's field that also takes the field's old name, which no help text shows."""

    def add_to_parser(self, parser, ctx):
        super().add_to_parser(parser, ctx)
        for old, name in OLD_NAMES.items():
            if name == self.name:
                parser.add_option(self, ["--" + old.replace("_", "-")], self.name)


experiment_option: OptionDecorator = click.option(
    "--experiment",
    help="MLflow's experiment for the runs.  [default: $MLFLOW_EXPERIMENT_NAME, or one for each data set]",
)
recheck_option: OptionDecorator = click.option(
    "--recheck",
    is_flag=True,
    help="Compare the files of a folder with its stored pictures byte by byte; else names, sizes and times tell.",
)
checkpoint_option: OptionDecorator = click.option(
    "--checkpoint",
    metavar="SECONDS|none",
    help="Save a checkpoint of a training at the end of an epoch, when so many seconds have passed since the last one; "
    "0 saves one after every epoch.  [default: $CNNLAB_CHECKPOINT, or 60]",
)
devices_option: OptionDecorator = click.option(
    "--devices",
    metavar="auto|N",
    help="Share every batch between so many GPUs of this machine; auto for all that can share it equally.  "
    "[default: $CNNLAB_DEVICES, or 1]",
)


def take_run_options(options: dict[str, Any]) -> RunOptions:
    """Take the options of a command that are no fields of the recipe out of `options`.

    Raises:
        ArgumentError: one is out of bounds.
    """
    names = {"on": "cluster", **{f.name: f.name for f in dataclasses.fields(RunOptions)}}
    given = {field: options.pop(name) for name, field in names.items() if name in options}
    _expect_on(given.get("cluster"), given.get("cpus"), given.get("gpus"))
    return RunOptions(**{name: value for name, value in given.items() if value is not None})


def cluster_options(command: Command) -> Command:
    """Add `--on`, a Ray cluster, and what each job asks it for."""

    def expect(context, option, value):
        if value is not None:
            from cnnlab.utils.ray_workers import expect_address

            expect_address(value)  # answers at once, not after TensorFlow has loaded
        return value

    for option in (
        click.option("--gpus", type=click.FloatRange(0), help="GPUs for each job on --on.  [default: 1 if it has any]"),
        click.option(
            "--cpus",
            type=click.FloatRange(0, min_open=True),
            help="CPUs for each job on --on.  [default: a GPU's share of its node, else 1]",
        ),
        click.option(
            "--on",
            metavar="CLUSTER",
            callback=expect,
            help="Work on a Ray cluster: ray (of this machine, for this command), HOST:PORT (that this machine is a "
            "node of) or ray://HOST:PORT.",
        ),
    ):
        command = option(command)
    return command


def _expect_on(on: str | None, cpus: float | None, gpus: float | None) -> None:
    """Raise `ArgumentError` where something is asked of a cluster and there is none."""
    given = [name for name, value in (("--cpus", cpus), ("--gpus", gpus)) if value is not None]
    if given and on is None:
        raise ArgumentError(f"Expected {given[0]} with --on, a cluster. Received: no --on. Give it, or leave it out.")


def recipes_of(models: Sequence[str], options: Mapping[str, Any], whole: bool = True) -> list[Recipe]:
    """Make a recipe for each model; options that were not given keep the recipe's defaults.

    Args:
        models: their names.
        options: name to value.
        whole: whether a function in a file must have all its arguments, which a search may vary.

    Raises:
        ArgumentError: an unknown model, an option that applies to none of them, a value out of bounds.
    """
    given = {name: value for name, value in options.items() if value not in (None, ())}
    for model in models:
        find_model(model)
    for f in dataclasses.fields(Recipe):
        if f.name in given and not any(applies(f, model) for model in models):
            raise ArgumentError(
                f"Expected options that apply to {' and '.join(models)}. "
                f"Received: {option_name(f.name)}, {_for_whom(f)}. Leave it out."
            )
    if "dataset" in given:
        from cnnlab.data.builtin_sets import is_folder

        is_folder(given["dataset"])  # a wrong name answers at once, not after TensorFlow has loaded
    fields = dataclasses.fields(Recipe)
    recipes = [
        Recipe(model=model, **{f.name: given[f.name] for f in fields if f.name in given and applies(f, model)})
        for model in models
    ]
    for recipe in recipes if whole else ():
        recipe.with_defaults()  # a wrong argument of a function in a file is found before the job starts
    return recipes


def option_name(field_name: str) -> str:
    """Name the option of a field of the recipe."""
    return OPTION_NAMES.get(field_name, "--" + field_name.replace("_", "-"))


class _Value(click.ParamType):
    """The value of a field of the recipe, which also Python programs may give as a text."""

    def __init__(self, recipe_field: dataclasses.Field[Any]) -> None:
        self.field: dataclasses.Field[Any] = recipe_field
        kind = inspect.formatannotation(recipe_field.type).partition(" ")[0]
        self.name = {"int": "integer", "float": "float", "tuple[int,": "integers"}.get(kind, "text")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return convert(self.field.name, value, self.field.type)


def _default_text(recipe_field: dataclasses.Field) -> str:
    """Put a field's default into words, for `--help`: its own, or those of the models that take it."""
    if text := recipe_field.metadata["default_text"]:
        return text
    if recipe_field.default not in (None, ()):
        return str(recipe_field.default)
    texts: dict[str, list[str]] = {}  # default to the models that have it
    for name in SHOWN:
        default = MODELS[name].recipe_defaults.get(recipe_field.name)
        if default not in (None, inspect.Parameter.empty):
            text = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
            texts.setdefault(text, []).append("other backbones" if name == "transfer" else name)
    if len(texts) == 1:
        return next(iter(texts))
    return "; ".join(f"{text} for {_listed(models)}" for text, models in texts.items())


def _listed(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _models_text(recipe_field: dataclasses.Field) -> str:
    """List the models that a field says something about, in words; nothing where it is all of them."""
    taking = [name for name in SHOWN if applies(recipe_field, name)]
    if recipe_field.name == "arguments":
        return "FILE.py:FUNCTION"
    if len(taking) == len(SHOWN):
        return ""
    return _listed({"vgg16": "backbones"}.get(name, name) for name in taking if name != "transfer" or len(taking) == 1)


def _for_whom(recipe_field: dataclasses.Field) -> str:
    models = _models_text(recipe_field)
    return f"which is for {models}" if models else "which the function has no argument for"
