"""The recipe as options of the command line: one for each of its fields, with its help, default and bounds."""

import dataclasses

import click

from cnnlab.errors import ArgumentError, expect_one_of
from cnnlab.models import MODELS
from cnnlab.recipe import Recipe, applies, bounds_text, default_text


def recipe_options(command):
    """Add an option for every field of the recipe but the model."""
    for f in reversed(dataclasses.fields(Recipe)):
        if f.name == "model":
            continue
        flag = f.type is bool
        bounds, default = bounds_text(f.metadata), "" if flag else default_text(f)
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
            is_flag=flag,
            default=None,  # told apart from a value that was given
            metavar="NAME_OR_FOLDER" if f.name == "dataset" else None,
            help="  ".join(part for part in parts if part),
        )(command)
    return command


def recipes_of(models, options) -> list[Recipe]:
    """A recipe for each model; options that were not given keep the recipe's defaults.

    Raises:
        ArgumentError: an unknown model, an option that applies to none of them, a value out of bounds.
    """
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


def _option_type(f):
    if f.metadata["choices"]:
        return click.STRING  # checked by the recipe, which names the nearest valid choice
    if f.name == "filters":
        return _Integers()
    return {int: click.INT, float: click.FLOAT, bool: click.BOOL}.get(_scalar(f.type), click.STRING)


def _scalar(annotation):
    for kind in (int, float, bool):
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
