"""What a field of the recipe is: its help and bounds, whether its value was said, and which go together."""

import math
from dataclasses import field as dataclass_field

from cnnlab.errors import ArgumentError, expect_one_of

WITH_MOMENTUM = ("sgd", "muon")  # optimizers that take one


def field(default, help, *, low=None, above=None, high=None, choices=None, unsaid=None, space=None):
    """A field with its help text, bounds (`low` inclusive, `above` exclusive), what `None` means, in words, and what a
    search varies it over where only its name is given.
    """
    bounds = {"low": low, "above": above, "high": high, "choices": choices}
    return dataclass_field(default=default, metadata={"help": help, **bounds, "unsaid": unsaid, "space": space})


def bounds_text(metadata) -> str:
    """A field's bounds in words, for error messages and `--help`; empty where there are none."""
    if metadata["choices"]:
        return "one of: " + ", ".join(metadata["choices"])
    parts = []
    if metadata["low"] is not None:
        parts.append(f"at least {metadata['low']}")
    if metadata["above"] is not None:
        parts.append(f"above {metadata['above']}")
    if metadata["high"] is not None:
        parts.append(f"at most {metadata['high']}")
    return " and ".join(parts)


def check(name, value, metadata) -> None:
    """Raise `ArgumentError` where a value is none of its field's choices or out of its bounds."""
    if value is None:
        return
    if metadata["choices"]:
        expect_one_of(name, value, metadata["choices"])
    low, above, high = metadata["low"], metadata["above"], metadata["high"]
    if low is above is high is None:
        return
    for number in value if isinstance(value, tuple) else (value,):
        # Written so that NaN fails.
        inside = (
            isinstance(number, (int, float))
            and math.isfinite(number)
            and (low is None or number >= low)
            and (above is None or number > above)
            and (high is None or number <= high)
        )
        if not inside:
            raise ArgumentError(f"Expected {name} to be {bounds_text(metadata)}. Received: {number}.")
    if value == ():
        raise ArgumentError(f"Expected {name} to name at least one number. Received: nothing.")


def expect_to_combine(recipe):
    """Raise `ArgumentError` where two fields do not go together."""

    def expect(condition, what, received, advice):
        if not condition:
            raise ArgumentError(f"Expected {what}. Received: {received}. {advice}")

    for name, given in (("patience", recipe.patience), ("schedule plateau", recipe.schedule == "plateau")):
        expect(
            not given or recipe.val_fraction,
            f"val_fraction above 0 with {name}, since that would choose by the test set",
            "val_fraction=0",
            f"Leave {name} out or hold out a validation set.",
        )
    if recipe.schedule == "plateau":
        for name in ("warmup", "layer_decay"):
            value = getattr(recipe, name)
            expect(not value, f"no {name} with schedule plateau, which sets one learning rate", value, "Leave one out.")
    expect(
        recipe.momentum is None or recipe.optimizer in (*WITH_MOMENTUM, None),
        f"no momentum with another optimizer than {' and '.join(WITH_MOMENTUM)}",
        f"momentum {recipe.momentum} with {recipe.optimizer}",
        "Leave one out.",
    )
    expect(
        not (recipe.ema and recipe.lookahead),
        "ema or lookahead, which both end the training with averaged weights",
        f"ema {recipe.ema} and lookahead {recipe.lookahead}",
        "Set one to 0.",
    )
    expect(
        recipe.layer_decay in (None, 1) or recipe.bias_lr_scale in (None, 1),
        "bias_lr_scale or layer_decay, which both set rates by layer",
        f"bias_lr_scale {recipe.bias_lr_scale} and layer_decay {recipe.layer_decay}",
        "Set one to 1.",
    )
    expect(
        not (recipe.progressive_resizing and recipe.epochs == 1),
        "2 epochs or more with progressive_resizing, as the last one sees whole pictures",
        recipe.epochs,
        "Leave progressive_resizing out.",
    )
    expect(
        not (recipe.progressive_resizing and recipe.ema),
        "ema or progressive_resizing, as Keras keeps averages within one fit only",
        f"ema {recipe.ema} and progressive_resizing {recipe.progressive_resizing}",
        "Set one to 0.",
    )
    sizes = {recipe.stored_size, recipe.image_size} - {None}
    expect(
        not recipe.progressive_resizing or len(sizes) < 2,
        "pictures in memory of the size that the model sees with progressive_resizing, as crops that it resizes save "
        "no time",
        f"stored_size {recipe.stored_size} and image_size {recipe.image_size}",
        "Make them equal.",
    )
    if not recipe.fine_tune:
        for name in ("fine_tune_from", "fine_tune_learning_rate", "layer_decay"):
            value = getattr(recipe, name)
            expect(value is None, f"fine_tune, a number of epochs, with {name}", value, "Add --fine-tune 5, say.")


class Unsaid:
    """Marks a default that the model filled in, so that another model can replace it."""


class _UnsaidInt(Unsaid, int):
    pass


class _UnsaidFloat(Unsaid, float):
    pass


class _UnsaidStr(Unsaid, str):
    pass


class _UnsaidTuple(Unsaid, tuple):
    pass


_KINDS = {int: _UnsaidInt, float: _UnsaidFloat, str: _UnsaidStr, tuple: _UnsaidTuple}


def unsaid(value):
    """A value marked as a default."""
    return _KINDS[type(value)](value)


def plain(value):
    """A value without the mark, for libraries that look at types."""
    return next((kind(value) for kind, marked in _KINDS.items() if isinstance(value, marked)), value)
