"""Define what a search varies: narrow a model's space by the user's options, and turn trial values into a recipe.

A hyperparameter is a field of the recipe or an argument of a function of the user's. A field of several numbers, such
as the CNN's `filters`, is varied number by number (`filters_1`, ...); another hyperparameter (`blocks`) sets how many
numbers there are.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from cnnlab.errors import ArgumentError, expect_one_of
from cnnlab.models.model_table import TRAINING, Model, Range, find_model
from cnnlab.recipe import OLD_NAMES, Recipe, ResolvedRecipe, applies, custom_arguments
from cnnlab.recipe_checks import WITH_MOMENTUM

Space = dict[str, Any]  # hyperparameter to a tuple of choices or a `Range`

# Fields that say something only beside some values of others: `(values, base)` tells whether they do.
DEPENDENT: dict[str, Callable[[Mapping[str, Any], ResolvedRecipe], object]] = {
    **dict.fromkeys(
        ("fine_tune_from", "fine_tune_learning_rate", "layer_decay"),
        lambda values, base: values.get("fine_tune", base.fine_tune),
    ),
    **dict.fromkeys(("lookahead", "progressive_resizing"), lambda values, base: not values.get("ema", base.ema)),
    "momentum": lambda values, base: values.get("optimizer", base.optimizer) in WITH_MOMENTUM,
    "warmup": lambda values, base: values.get("schedule", base.schedule) != "plateau",
}
LENGTHS: dict[str, str] = {"blocks": "filters"}  # the hyperparameter that says how many numbers a field has


def narrowed_space(recipe: Recipe, given: Collection[str], options: Iterable[str]) -> Space:
    """Take the space of a recipe's model, without the fields that were given, and narrow it by `--space` options.

    Raises:
        ArgumentError: an unknown hyperparameter, or values that do not parse or are out of bounds.
    """
    model = find_model(recipe.model)
    further = {name: None for name in model.arguments if model.is_custom}
    further |= {
        f.name: f.metadata["space"]
        for f in dataclasses.fields(Recipe)
        if f.metadata["space"] and f.name not in given and applies(f, recipe.model)
    }
    given_arguments = {pair.partition("=")[0] for pair in recipe.arguments}
    further = {name: values for name, values in further.items() if name not in given_arguments}
    space = narrowed(fixed(_with_optimizer(model, recipe.with_defaults().optimizer), given), options, recipe, further)
    check_space(space, recipe)
    return space


def _with_optimizer(model: Model, optimizer: str | None) -> Space:
    """Move the ranges of the model's space to around the values that go with the optimizer."""
    space = dict(model.space)
    for name, value in model.of_optimizers.get(optimizer or "", {}).items():
        if isinstance(space.get(name), Range):
            # A function of the user's has no defaults of its own.
            factor = value / (model.defaults[name] or TRAINING[name])
            low, high = (float(f"{end * factor:.2g}") for end in (space[name].low, space[name].high))
            space[name] = dataclasses.replace(space[name], low=low, high=high)
    return space


def narrowed(
    space: Mapping[str, Any],
    options: Iterable[str],
    recipe: Recipe | None = None,
    further: Mapping[str, Any] = MappingProxyType({}),
) -> Space:
    """Replace hyperparameters of a space, as `--space` gives them.

    Args:
        space: name to a tuple of choices or a `Range`.
        options: texts such as "learning_rate=1e-4:1e-2" (a range, for numbers) or "filters=16,32,64" (choices).
        recipe: says which types the arguments of a function of the user's have.
        further: names that may be added, with their usual values, for those that are given without any.

    Raises:
        ArgumentError: an unknown hyperparameter, or values that do not parse.
    """
    space, further = dict(space), dict(further)
    for option in options:
        name, equals, text = option.partition("=")
        if equals and not text:
            raise _unreadable(option)
        if name not in {*space, *further}:
            name = OLD_NAMES.get(name, name)
        expect_one_of("the hyperparameter of --space", name, dict.fromkeys([*space, *further]))
        if not equals:
            if (space.get(name) or further.get(name)) is None:
                raise _unreadable(option)
            space[name] = space.get(name) or further[name]
            continue
        kind = kind_of(name, recipe)
        ranged = ":" in text and kind is not str  # an augmentation has a strength behind one
        space[name] = _range(name, space.get(name), text) if ranged else _choices(kind, text, option)
    return space


def fixed(space: Mapping[str, Any], recipe_fields: Collection[str]) -> Space:
    """Leave the hyperparameters out of a space that the user gave a value."""
    lengths = {length for length, field in LENGTHS.items() if field in recipe_fields}
    return {name: values for name, values in space.items() if name not in {*recipe_fields, *lengths}}


def check_space(space: Mapping[str, Any], recipe: Recipe) -> None:
    """Raise `ArgumentError` where a value of the space is out of its field's bounds."""
    for name, values in space.items():
        kind = kind_of(name, recipe)
        for value in (kind(values.low), kind(values.high)) if isinstance(values, Range) else values:
            if name in LENGTHS:
                if not 1 <= value <= 8:
                    raise ArgumentError(f"Expected {name} to be at least 1 and at most 8. Received: {value}.")
            else:
                recipe_of({name: (value,) if name in LENGTHS.values() else value}, recipe)


def space_text(values: Range | tuple[Any, ...]) -> str:
    """Write a hyperparameter's values as `--space` takes them."""
    return str(values) if isinstance(values, Range) else ",".join(map(str, values))


def recipe_of(values: Mapping[str, Any], base: Recipe) -> ResolvedRecipe:
    """Put a trial's values into the recipe that a search starts from; the defaults follow them.

    Args:
        values: the tuner's, name to value; its own (`tuner/epochs`) shorten the training.
        base: what was asked for.
    """
    # The Gaussian process's are NumPy's.
    values = {name: value.item() if hasattr(value, "item") else value for name, value in values.items()}
    used = base.with_defaults()
    for name, needed in DEPENDENT.items():  # what says nothing beside this trial's other values
        if name in values and not needed(values, used):
            del values[name]
    names = {f.name for f in dataclasses.fields(Recipe)} | set(custom_arguments(base.model))
    changes = {name: value for name, value in values.items() if name in names}
    for length, field in LENGTHS.items():
        if length in values:
            changes[field] = tuple(values[f"{field}_{i}"] for i in range(1, values[length] + 1))
    if "tuner/epochs" in values:  # hyperband; trained from the start, so that the recipe alone repeats the trial
        changes["epochs"] = values["tuner/epochs"]
    if changes.get("epochs", used.epochs) == 1 and changes.get("progressive_resizing", used.progressive_resizing):
        changes["progressive_resizing"] = 0.0  # a single epoch sees whole pictures
    return _changed(base, changes).with_defaults()


def kind_of(name: str, recipe: Recipe | None = None) -> type:
    """Find the type of a hyperparameter's values: `int`, `float` or `str`."""
    further = custom_arguments(recipe.model) if recipe else {}
    if name in further:
        return next((kind for kind in (bool, int, float) if isinstance(further[name], kind)), str)
    if name in LENGTHS or name in LENGTHS.values():
        return int
    annotations = {f.name: f.type for f in dataclasses.fields(Recipe)}
    return next((kind for kind in (int, float) if annotations[name] in (kind, kind | None)), str)


def value_of(name: str, recipe: ResolvedRecipe) -> Any:
    """Look up the value that a recipe has for a hyperparameter."""
    further = custom_arguments(recipe.model)
    if name in further:
        return recipe.factory_arguments().get(name, further[name])
    return TRAINING.get(name) if getattr(recipe, name) is None else getattr(recipe, name)


def _changed(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Change values of a recipe's fields, or of its function's arguments."""
    defaults = custom_arguments(recipe.model)
    # The tuner makes 0 and 1 of false and true.
    further = {
        name: bool(value) if isinstance(defaults[name], bool) else value
        for name, value in values.items()
        if name in defaults
    }
    kept = tuple(pair for pair in recipe.arguments if pair.partition("=")[0] not in further)
    fields = {name: value for name, value in values.items() if name not in further}
    return dataclasses.replace(
        recipe, **fields, arguments=(*kept, *(f"{name}={value}" for name, value in further.items()))
    )


def _range(name: str, before: object, text: str) -> Range:
    low, _, high = text.partition(":")
    try:
        low, high = float(low), float(high)
    except ValueError:
        raise _unreadable(f"{name}={text}") from None
    choices = name in LENGTHS or name in LENGTHS.values()
    if choices or not low < high < math.inf:  # NaN fails too
        raise ArgumentError(
            f"Expected {'choices' if choices else 'a range from low to high'} for {name}. Received: {text}."
        )
    log = before.log if isinstance(before, Range) else bool(before) or low > 0
    if log and low <= 0:
        raise ArgumentError(f"Expected the range of {name} to start above 0, as it is searched by its logarithm.")
    return Range(low, high, log)


def _choices(kind: type, text: str, option: str) -> tuple:
    try:
        if kind is bool:
            return tuple(dict.fromkeys({"true": True, "false": False}[part.lower()] for part in text.split(",")))
        return tuple(dict.fromkeys(kind(part) for part in text.split(",")))
    except (ValueError, KeyError):
        raise _unreadable(option) from None


def _unreadable(option: str) -> ArgumentError:
    return ArgumentError(
        f"Expected --space as name=low:high or name=value,value,... Received: '{option}'. "
        "For example: --space learning_rate=1e-4:1e-2 --space filters=16,32,64."
    )
