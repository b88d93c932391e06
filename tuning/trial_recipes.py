"""Turn the values of a trial into a recipe, and list the values that a space has.

A hyperparameter is a field of the recipe or an argument of a function of the user's. A field of several numbers, such
as the CNN's `filters`, is varied number by number (`filters_1`, ...); another hyperparameter (`blocks`) sets how many
numbers there are.
"""

import dataclasses
import inspect
import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from cnnlab.models.model_table import TRAINING, Range, find_model
from cnnlab.recipe import Recipe, ResolvedRecipe, custom_arguments
from cnnlab.recipe_checks import WITH_MOMENTUM

# Fields that say something only beside some values of others: `(values, base)` tells whether they do.
DEPENDENT: dict[str, Callable[[Mapping[str, Any], ResolvedRecipe], object]] = {
    **dict.fromkeys(
        ("fine_tune_from", "fine_tune_learning_rate"),
        lambda values, base: values.get("fine_tune", base.fine_tune),
    ),
    **dict.fromkeys(("lookahead", "progressive_resizing"), lambda values, base: not values.get("ema", base.ema)),
    # Beside others that set rates by layer, or one rate, a `layer_decay` is none.
    "layer_decay": lambda values, base: (
        values.get("fine_tune", base.fine_tune)
        and values.get("schedule") != "plateau"
        and values.get("bias_lr_scale", 1) == 1
    ),
    "momentum": lambda values, base: values.get("optimizer", base.optimizer) in WITH_MOMENTUM,
    "warmup": lambda values, base: values.get("schedule", base.schedule) != "plateau",
}
LENGTHS: dict[str, str] = {"blocks": "filters"}  # the hyperparameter that says how many numbers a field has
LONGEST = 8  # numbers of such a field
SAMPLES = 16  # values that stand for a continuous range where candidates are listed
MOST = 50_000  # candidates that are listed
FIELDS = {f.name: f for f in dataclasses.fields(Recipe)}
UNTYPED = (None, inspect.Parameter.empty)  # defaults that say nothing of an argument's type


def start_recipe(recipe: Recipe, space: Mapping[str, Any]) -> Recipe:
    """Give the arguments of a function of the user's that have no default the first value of the space."""
    model, own = find_model(recipe.model), custom_arguments(recipe.model)
    given = {pair.partition("=")[0] for pair in recipe.arguments}
    first = {}
    for name, default in model.arguments.items():
        is_open = name not in given if name in own else getattr(recipe, name) is None
        if default is inspect.Parameter.empty and name in space and is_open:
            value = space[name].low if isinstance(space[name], Range) else space[name][0]
            first[name] = (value,) if name in LENGTHS.values() and name not in own else value
    return _changed(recipe, first)


def recipe_of(values: Mapping[str, Any], base: Recipe) -> ResolvedRecipe:
    """Put a trial's values into the recipe that a search starts from; the defaults follow them.

    Args:
        values: the tuner's, name to value; its own (`tuner/epochs`) shorten the training.
        base: what was asked for.
    """
    values, used, own = in_effect(values, base), base.with_defaults(), custom_arguments(base.model)
    changes = {name: value for name, value in values.items() if name in FIELDS or name in own}
    for length, field in LENGTHS.items():
        numbers = [values[key] for i in range(LONGEST) if (key := f"{field}_{i + 1}") in values]
        if numbers:
            changes[field] = tuple(numbers[: values[length]] if length in values and length not in own else numbers)
    if "tuner/epochs" in values:  # hyperband; trained from the start, so that the recipe alone repeats the trial
        changes["epochs"] = values["tuner/epochs"]
    if changes.get("epochs", used.epochs) == 1 and changes.get("progressive_resizing", used.progressive_resizing):
        changes["progressive_resizing"] = 0.0  # a single epoch sees whole pictures
    return _changed(base, changes).with_defaults()


def in_effect(values: Mapping[str, Any], base: Recipe) -> dict[str, Any]:
    """Leave out of a trial's values what says nothing beside the others."""
    # The Gaussian process's are NumPy's.
    values = {name: value.item() if hasattr(value, "item") else value for name, value in values.items()}
    used, dependent = base.with_defaults(), DEPENDENT.keys() - custom_arguments(base.model).keys()
    return {name: value for name, value in values.items() if name not in dependent or DEPENDENT[name](values, used)}


def at_full_length(values: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out of a trial's values how long Hyperband trains it."""
    return {name: value for name, value in values.items() if not name.startswith("tuner/")}


def values_of(recipe: ResolvedRecipe, space: Iterable[str]) -> dict[str, Any]:
    """Look up the values that a recipe has for the hyperparameters of a space, other than how long a field is."""
    own = custom_arguments(recipe.model)
    return {name: value_of(name, recipe) for name in space if name in own or name in FIELDS}


def value_of(name: str, recipe: ResolvedRecipe) -> Any:
    """Look up the value that a recipe has for a hyperparameter."""
    further = custom_arguments(recipe.model)
    if name in further:
        return recipe.factory_arguments().get(name, further[name])
    return TRAINING.get(name) if getattr(recipe, name) is None else getattr(recipe, name)


def kind_of(name: str, recipe: Recipe | None = None, values: object = None) -> type:
    """Find the type of a hyperparameter's values: `int`, `float`, `bool` or `str`.

    An argument whose default says nothing of its type has the type of its range's ends, or texts, which are parsed as
    `--arg` is.
    """
    further = custom_arguments(recipe.model) if recipe else {}
    if name in further:
        if further[name] in UNTYPED and isinstance(values, Range):
            return int if isinstance(values.low, int) and isinstance(values.high, int) else float
        return next((kind for kind in (bool, int, float) if isinstance(further[name], kind)), str)
    if name in LENGTHS or name in LENGTHS.values():
        return int
    return next((kind for kind in (int, float) if FIELDS[name].type in (kind, kind | None)), str)


def counts_in(space: Mapping[str, Any], recipe: Recipe) -> dict[str, tuple[int, ...]]:
    """Find the fields that a space varies number by number, and how many numbers each may have."""
    own = custom_arguments(recipe.model)
    return {
        field: space[length] if length in space and length not in own else (len(getattr(recipe, field) or (0,)),)
        for length, field in LENGTHS.items()
        if field in space and field not in own
    }


def candidates(space: Mapping[str, Any], recipe: Recipe, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield values of trials as a tuner gives them, in random order: all combinations, or `MOST` of more.

    A continuous range stands for `SAMPLES` random values of it.
    """
    draw, pools = random.Random(seed), {}
    counts = counts_in(space, recipe.with_defaults())
    lengths = {field: length for length, field in LENGTHS.items() if field in counts and length in space}
    for name in sorted(space, key=lambda name: name in counts):  # what says how many numbers there are first
        pool = _pool(space[name], kind_of(name, recipe, space[name]), draw)
        pools |= {f"{name}_{i + 1}": pool for i in range(max(counts[name]))} if name in counts else {name: pool}
    total = math.prod(map(len, pools.values()))
    drawn = draw.sample(range(total), total) if total <= MOST else (draw.randrange(total) for _ in range(MOST))
    for number in drawn:
        values = {}
        for name, pool in pools.items():
            number, place = divmod(number, len(pool))
            field, _, which = name.rpartition("_")
            if field not in lengths or int(which) <= values[lengths[field]]:
                values[name] = pool[place]
        yield values


def _pool(values: Range | tuple[Any, ...], kind: type, draw: random.Random) -> Sequence[Any]:
    if not isinstance(values, Range):
        return values
    if kind is int:
        return range(int(values.low), int(values.high) + 1)
    if not values.log:
        return [draw.uniform(values.low, values.high) for _ in range(SAMPLES)]
    return [values.low * (values.high / values.low) ** draw.random() for _ in range(SAMPLES)]


def without_effect(space: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """Find the hyperparameters whose values make no difference to the recipe, whatever the others are."""
    counts = counts_in(space, recipe)
    several, idle = list(itertools.islice(candidates(space, recipe), 256)), []
    for name, values in space.items():
        ends = (values.low, values.high) if isinstance(values, Range) else (values[0], values[-1])
        if name in counts or LENGTHS.get(name) in counts or ends[0] == ends[1]:
            continue
        if all(
            recipe_of({**one, name: ends[0]}, recipe) == recipe_of({**one, name: ends[1]}, recipe) for one in several
        ):
            idle.append(name)
    return idle


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
