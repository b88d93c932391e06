"""What a search may vary: the spaces, narrowing them, and turning KerasTuner's values into recipes.

A hyperparameter is a field of the recipe, except for the CNN's `filters`, which stands for the filters of each block,
and `blocks`, the number of blocks.
"""

import dataclasses
import math
from dataclasses import dataclass

from cnnlab.errors import ArgumentError, expect_one_of
from cnnlab.recipe import Recipe


@dataclass(frozen=True)
class Range:
    """A continuous hyperparameter from `low` to `high`, both inclusive; `log` searches its logarithm evenly."""

    low: float
    high: float
    log: bool = False

    def __str__(self):
        return f"{self.low:g}:{self.high:g}{' (log)' if self.log else ''}"


SPACES = {
    "cnn": {
        "blocks": (2, 3, 4),
        "filters": (32, 64, 128),
        "kernel_size": (3, 5),
        # With "valid", four blocks or large kernels use a 32 pixel image up.
        "padding": ("same",),
        "dense_units": (64, 128, 256),
        "dropout": Range(0.0, 0.5),
        "learning_rate": Range(3e-4, 3e-3, log=True),
        "augment": ("none", "flip", "full"),
        "batch_size": (32, 64, 128),
    },
    "vgg16": {
        "learning_rate": Range(1e-5, 1e-2, log=True),
        "dense_units": (64, 128, 256, 512),
        "dropout": Range(0.0, 0.7),
        "weight_decay": Range(1e-4, 1e-1, log=True),
        "preprocessing": ("vgg16", "scale"),
        "train_blocks": (0, 1),
    },
}


def narrowed(space, options) -> dict:
    """A space with some hyperparameters replaced, as `--space` gives them.

    Args:
        space: name to a tuple of choices or a `Range`.
        options: texts such as "learning_rate=1e-4:1e-2" (a range, for numbers) or "filters=16,32,64" (choices).

    Raises:
        ArgumentError: an unknown hyperparameter, or values that do not parse.
    """
    space = dict(space)
    for option in options:
        name, equals, text = option.partition("=")
        if not equals or not text:
            raise _unreadable(option)
        expect_one_of("the hyperparameter of --space", name, space)
        space[name] = _range(name, space[name], text) if ":" in text else _choices(name, text, option)
    return space


def fixed(space, recipe_fields) -> dict:
    """The space without what the user gave a value of its own."""
    gone = set(recipe_fields) | ({"blocks"} if "filters" in recipe_fields else set())
    return {name: values for name, values in space.items() if name not in gone}


def check_space(space, recipe) -> None:
    """Raise `ArgumentError` where a value of the space is out of its field's bounds."""
    for name, values in space.items():
        for value in (values.low, values.high) if isinstance(values, Range) else values:
            if name == "blocks":
                if not 1 <= value <= 8:
                    raise ArgumentError(f"Expected blocks to be at least 1 and at most 8. Received: {value}.")
            else:
                dataclasses.replace(recipe, **{name: (value,) if name == "filters" else value})


def hyperparameters(space, base):
    """The space as KerasTuner's `HyperParameters`; filters of later blocks are active only where there are as many.

    The defaults are the base recipe's values, where the space has them.
    """
    import keras_tuner

    hp = keras_tuner.HyperParameters()
    blocks = space.get("blocks", ())
    filters = base.filters or ()
    if blocks:
        _declare(hp, "blocks", blocks, len(filters))
    for name, values in space.items():
        if name == "filters" and blocks:
            for i in range(1, max(blocks) + 1):
                with hp.conditional_scope("blocks", [b for b in blocks if b >= i]):
                    _declare(hp, f"filters_{i}", values, filters[i - 1] if i <= len(filters) else None)
        elif name != "blocks":
            _declare(hp, name, values, getattr(base, name))
    return hp


def recipe_of(values, base) -> Recipe:
    """The base recipe with a trial's values in it.

    Args:
        values: KerasTuner's, name to value; its own (`tuner/epochs`) shorten the training.
        base: the recipe that everything else comes from.
    """
    # The Gaussian process's are NumPy's.
    values = {name: value.item() if hasattr(value, "item") else value for name, value in values.items()}
    names = {f.name for f in dataclasses.fields(Recipe)}
    changes = {name: value for name, value in values.items() if name in names}
    if "blocks" in values:
        changes["filters"] = tuple(values[f"filters_{i}"] for i in range(1, values["blocks"] + 1))
    if "tuner/epochs" in values:  # hyperband; trained from the start, so that the recipe alone repeats the trial
        changes["epochs"] = values["tuner/epochs"]
    return dataclasses.replace(base, **changes)


def _declare(hp, name, values, start):
    if not isinstance(values, Range):
        hp.Choice(name, list(values), default=start if start in values else None)
        return
    sampling = "log" if values.log else "linear"
    default = start if start is not None and values.low <= start <= values.high else None
    if _is_integer(name):
        hp.Int(name, int(values.low), int(values.high), sampling=sampling, default=default)
    else:
        hp.Float(name, values.low, values.high, sampling=sampling, default=default)


def _is_integer(name):
    annotations = {f.name: f.type for f in dataclasses.fields(Recipe)}
    return annotations[name] in (int, int | None)


def _range(name, before, text):
    low, _, high = text.partition(":")
    try:
        low, high = float(low), float(high)
    except ValueError:
        raise _unreadable(f"{name}={text}") from None
    if isinstance(before, tuple) and not all(isinstance(value, int) for value in before):
        raise ArgumentError(f"Expected choices for {name}, such as {name}={before[0]}. Received: the range {text}.")
    # NaN fails too.
    if name in ("filters", "blocks") or not low < high < math.inf:
        raise ArgumentError(
            f"Expected {'choices' if name in ('filters', 'blocks') else 'a range from low to high'} for {name}. "
            f"Received: {text}."
        )
    log = before.log if isinstance(before, Range) else True
    if log and low <= 0:
        raise ArgumentError(f"Expected the range of {name} to start above 0, as it is searched by its logarithm.")
    return Range(low, high, log)


def _choices(name, text, option):
    if name in ("filters", "blocks") or _is_integer(name):
        kind = int
    else:
        numeric = {f.name: f.type in (float, float | None) for f in dataclasses.fields(Recipe)}
        kind = float if numeric[name] else str
    try:
        return tuple(dict.fromkeys(kind(part) for part in text.split(",")))
    except ValueError:
        raise _unreadable(option) from None


def _unreadable(option):
    return ArgumentError(
        f"Expected --space as name=low:high or name=value,value,... Received: '{option}'. "
        "For example: --space learning_rate=1e-4:1e-2 --space filters=16,32,64."
    )
