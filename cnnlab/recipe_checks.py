"""Check the recipe: the bounds of its fields, and which of them go together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from cnnlab.errors import ArgumentError, expect_one_of

WITH_MOMENTUM: tuple[str, ...] = ("sgd", "muon")  # optimizers that take one


def field(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
    default_text: str | None = None,
    space: Any = None,
) -> Any:
    """Make a field of the recipe.

    Args:
        default: its value where nothing is given; `None` is the model's default.
        help: the help text of its option.
        low, above, high: bounds of a number; `above` is exclusive.
        choices: the texts that it may hold.
        default_text: the default in words, where it depends on more than the model.
        space: what a search varies it over where `--space` gives only its name: a tuple of choices or a `Range`.
    """
    bounds = {"low": low, "above": above, "high": high, "choices": choices}
    return dataclasses.field(
        default=default, metadata={"help": help, **bounds, "default_text": default_text, "space": space}
    )


def bounds_text(metadata: Mapping[str, Any]) -> str:
    """Put a field's bounds into words, for error messages and `--help`; empty where there are none."""
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


def expect_in_bounds(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
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


def expect_to_combine(recipe: Any) -> None:
    """Raise `ArgumentError` where two fields of a `ResolvedRecipe` do not go together."""

    def expect(condition: object, what: str, received: object, advice: str) -> None:
        if not condition:
            raise ArgumentError(f"Expected {what}. Received: {received}. {advice}")

    def either(first: str, second: str, why: str, unset: int = 0) -> None:
        one, other = getattr(recipe, first), getattr(recipe, second)
        is_one_unset = one in (None, unset) or other in (None, unset)
        received = f"{first} {one} and {second} {other}"
        expect(is_one_unset, f"{first} or {second}, {why}", received, f"Set one to {unset}.")

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
    what = f"no momentum with another optimizer than {' and '.join(WITH_MOMENTUM)}"
    received = f"momentum {recipe.momentum} with {recipe.optimizer}"
    expect(recipe.momentum is None or recipe.optimizer in (*WITH_MOMENTUM, None), what, received, "Leave one out.")
    either("ema", "lookahead", "which both end the training with averaged weights")
    either("bias_lr_scale", "layer_decay", "which both set rates by layer", unset=1)
    what, one = "2 epochs or more with progressive_resizing, as the last one sees whole pictures", recipe.epochs == 1
    expect(not (recipe.progressive_resizing and one), what, recipe.epochs, "Leave progressive_resizing out.")
    either("ema", "progressive_resizing", "as Keras keeps averages within one fit only")
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
            expect(value is None, f"fine_tune, a number of epochs, with {name}", value, "Set fine_tune to 5, say.")
