"""Define what a search varies: narrow a model's space by the user's options, and check a space."""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from cnnlab.errors import ArgumentError, expect_one_of
from cnnlab.models.model_table import TRAINING, Model, Range, find_model
from cnnlab.recipe import OLD_NAMES, Recipe, applies, custom_arguments
from cnnlab.recipe_checks import expect_in_bounds
from cnnlab.tuning.trial_recipes import (
    FIELDS,
    LENGTHS,
    LONGEST,
    UNTYPED,
    candidates,
    counts_in,
    kind_of,
    recipe_of,
    start_recipe,
    without_effect,
)
from cnnlab.utils.argument_types import convert
from cnnlab.utils.log import log

Space = dict[str, Any]  # hyperparameter to a tuple of choices or a `Range`


def narrowed_space(recipe: Recipe, given: Collection[str], options: Iterable[str]) -> Space:
    """Take the space of a recipe's model, without the fields that were given, and narrow it by `--space` options.

    Raises:
        ArgumentError: an unknown hyperparameter, values that do not parse or are out of bounds, or a space that does
            not vary what it says.
    """
    model = find_model(recipe.model)
    further = {name: None for name in model.arguments if model.is_custom}
    further |= {
        name: f.metadata["space"] for name, f in FIELDS.items() if f.metadata["space"] and applies(f, recipe.model)
    }
    optimizer = recipe.optimizer or model.defaults.get("optimizer")
    usual = fixed(_with_optimizer(model, optimizer), given)
    taken = {*given, *(pair.partition("=")[0] for pair in recipe.arguments)}
    space = narrowed(usual, options, recipe, further, taken)
    return check_space(space, start_recipe(recipe, space), usual)


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
    taken: Collection[str] = (),
) -> Space:
    """Replace hyperparameters of a space, as `--space` gives them.

    Args:
        space: name to a tuple of choices or a `Range`.
        options: texts such as "learning_rate=1e-4:1e-2" (a range, for numbers) or "filters=16,32,64" (choices).
        recipe: says which types the arguments of a function of the user's have.
        further: names that may be added, with their usual values, for those that are given without any.
        taken: names that have a value already.

    Raises:
        ArgumentError: an unknown hyperparameter, one that comes twice, or values that do not parse.
    """
    space, further, done = dict(space), dict(further), set()
    own = custom_arguments(recipe.model) if recipe else {}
    for option in options:
        name, equals, text = option.partition("=")
        if equals and not text:
            raise _unreadable(option)
        if name not in {*space, *further}:
            name = name.replace("-", "_")
            name = {**OLD_NAMES, "class_weight": "class_weights"}.get(name, name)  # as the options are spelled
        if name in taken or name in done:
            expected, received = ("a value or --space", "both") if name in taken else ("one --space", "several")
            raise ArgumentError(f"Expected {expected} for {name}. Received: {received}. Leave the others out.")
        expect_one_of("the hyperparameter of --space", name, [n for n in {**space, **further} if n not in taken])
        done.add(name)
        if not equals:
            if (space.get(name) or further.get(name)) is None:
                raise _unreadable(option)
            space[name] = space.get(name) or further[name]
            continue
        kind, ends = kind_of(name, recipe), text.split(":")
        # A text may have a colon too: an augmentation has its strength behind one.
        is_untyped = name in own and own[name] in UNTYPED and None not in map(_number, ends)
        if len(ends) != 2 or (kind is str and not is_untyped):
            space[name] = _choices(kind, text, option)
        elif kind is bool or (name in {*LENGTHS, *LENGTHS.values()} and name not in own):
            raise ArgumentError(f"Expected choices for {name}. Received: {text}.")
        else:
            space[name] = _range(name, space.get(name), text)
    return space


def fixed(space: Mapping[str, Any], recipe_fields: Collection[str]) -> Space:
    """Leave the hyperparameters out of a space that the user gave a value."""
    lengths = {length for length, field in LENGTHS.items() if field in recipe_fields}
    return {name: values for name, values in space.items() if name not in {*recipe_fields, *lengths}}


def check_space(space: Mapping[str, Any], recipe: Recipe, usual: Mapping[str, Any] = MappingProxyType({})) -> Space:
    """Check a space before anything is trained.

    Args:
        space: hyperparameter to a tuple of choices or a `Range`.
        recipe: what everything else comes from.
        usual: what the model varies by itself.

    Returns:
        The space with values of its fields' types, without what is usual and has no effect beside the recipe's values.

    Raises:
        ArgumentError: a value is out of its field's bounds, a hyperparameter has no effect, or there is one recipe
            only.
    """
    space = {name: _typed(name, values, recipe) for name, values in space.items()}
    for name, values in space.items():
        _check_values(name, values, space, recipe)
    for name in without_effect(space, recipe):
        if space[name] != usual.get(name):
            raise ArgumentError(
                f"Expected hyperparameters that change the recipe. Received: {name}, which has no effect with the "
                "other values of this search. Leave it out, or vary what it depends on too."
            )
        log.info(f"{name} is not varied, as it has no effect with the other values of this search.")
        del space[name]
    if len(list(itertools.islice(candidates(space, recipe), 2))) < 2:
        received = ", ".join(f"{name}={space_text(values)}" for name, values in space.items()) or "nothing to vary"
        raise ArgumentError(
            f"Expected a space with two recipes at least. Received: {received}. Add values with --space, such as "
            "--space learning_rate=1e-4:1e-2, or leave out the option that fixes them."
        )
    return space


def _typed(name: str, values: Range | tuple[Any, ...], recipe: Recipe) -> Range | tuple[Any, ...]:
    """Give a hyperparameter's values their type: KerasTuner takes no others, and no mixture such as `(0, 0.5)`."""
    kind = kind_of(name, recipe, values).__name__
    if isinstance(values, Range):
        return dataclasses.replace(values, low=convert(name, values.low, kind), high=convert(name, values.high, kind))
    return tuple(str(value) if kind == "str" else convert(name, value, kind) for value in values)


def _check_values(name: str, values: Range | tuple[Any, ...], space: Mapping[str, Any], recipe: Recipe) -> None:
    counts = counts_in(space, recipe)
    if isinstance(values, Range):
        if not -math.inf < values.low <= values.high < math.inf:  # NaN fails too
            raise ArgumentError(f"Expected a range from low to high for {name}. Received: {values}.")
        if values.log and values.low <= 0:
            raise ArgumentError(f"Expected the range of {name} to start above 0, as it is searched by its logarithm.")
    for value in (values.low, values.high) if isinstance(values, Range) else values:
        if LENGTHS.get(name) in counts:
            if not 1 <= value <= LONGEST:
                raise ArgumentError(f"Expected {name} to be at least 1 and at most {LONGEST}. Received: {value}.")
            continue
        if name in FIELDS and name not in custom_arguments(recipe.model):
            expect_in_bounds(name, value, FIELDS[name].metadata)  # also of what has no effect in the recipe itself
        recipe_of({f"{name}_1" if name in counts else name: value}, recipe)


def space_text(values: Range | tuple[Any, ...]) -> str:
    """Write a hyperparameter's values as `--space` takes them."""
    return str(values) if isinstance(values, Range) else ",".join(map(str, values))


def _number(text: str) -> int | float | None:
    try:
        return int(text)
    except ValueError:
        with contextlib.suppress(ValueError):
            return float(text)
        return None


def _range(name: str, before: object, text: str) -> Range:
    low, high = map(_number, text.split(":"))
    if low is None or high is None:
        raise _unreadable(f"{name}={text}")
    return Range(low, high, before.log if isinstance(before, Range) else low > 0)


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
