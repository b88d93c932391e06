"""Convert arguments from Python programs and command lines to the types that they are annotated with.

NumPy and other numbers, whole floats, texts, paths, lists, dicts and pandas' Series are taken.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import os
from collections.abc import Callable, Mapping, Set
from typing import Any, ParamSpec, TypeVar

from cnnlab.errors import ArgumentError
from cnnlab.utils.text import shortened

P = ParamSpec("P")
R = TypeVar("R")
BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
LONGEST_VALUE = 100  # characters of a value in an error message


def convert(name: str, value: Any, annotation: object) -> Any:
    """Return a value as the type of its annotation; `None`, and what is annotated with other types, as it is.

    Args:
        name: of the argument, for the error message.
        value: a dict becomes JSON for a text, and `key=value` for several texts.
        annotation: a union of bool, int, float, str, `tuple[int, ...]` and `tuple[str, ...]`, or its text.

    Raises:
        ArgumentError: the value cannot be converted.
    """
    kinds = [kind for kind in _kinds(annotation) if kind != "None"]
    if value is None or not set(kinds) <= set(_CONVERTERS):
        return value
    for kind in kinds:
        try:
            return _CONVERTERS[kind][0](value)
        except (TypeError, ValueError, LookupError, OverflowError):
            continue
    words = " or ".join(_CONVERTERS[kind][1] for kind in kinds)
    raise ArgumentError(f"Expected {name} to be {words}. Received: {shortened(repr(value), LONGEST_VALUE)}.")


def convert_fields(instance: Any) -> None:
    """Convert the fields of a frozen dataclass in place; `None` becomes the field's default."""
    for f in dataclasses.fields(instance):
        value = getattr(instance, f.name)
        if value is None and f.default is not dataclasses.MISSING:
            value = f.default
        object.__setattr__(instance, f.name, convert(f.name, value, f.type))


def convert_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function so that its arguments are converted first; `None` becomes the argument's default."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def converted(*args: P.args, **kwargs: P.kwargs) -> R:
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            parameter = signature.parameters[name]
            if value is None and parameter.default is not parameter.empty:
                value = parameter.default
            bound.arguments[name] = convert(name, value, parameter.annotation)
        return function(*bound.args, **bound.kwargs)

    return converted


@functools.cache
def _kinds(annotation: object) -> tuple[str, ...]:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return tuple(kind.strip() for kind in text.split("|"))


def _is_boolean(value: Any) -> bool:
    return type(value).__name__ in ("bool", "bool_")  # Python's and NumPy's


def _boolean(value: Any) -> bool:
    return bool(value) if _is_boolean(value) else BOOLEANS[str(value).lower()]


def _expect_one_value(value: Any) -> None:
    if _is_boolean(value) or getattr(value, "shape", ()):
        raise TypeError


def _whole(value: Any) -> int:
    _expect_one_value(value)
    number = int(value)
    if not isinstance(value, str) and number != value:
        raise ValueError
    return number


def _number(value: Any) -> float:
    _expect_one_value(value)
    return float(value)


def _text(value: Any) -> str:
    if isinstance(value, (str, os.PathLike)):
        return str(os.fspath(value))
    if hasattr(value, "items"):  # written by hand, as equal keys of different types are to be found later
        pairs = (f"{json.dumps(_text(key))}: {json.dumps(item, default=_plain)}" for key, item in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, (list, tuple)):
        return ",".join(_text(item) for item in value)
    number = _number(value)
    return str(int(number) if number.is_integer() else number)


def _plain(value: Any) -> Any:
    """Return a number of another library as Python's, and what is none as a text."""
    try:
        return _number(value)
    except (TypeError, ValueError):
        return str(value)


def _whole_numbers(value: Any) -> tuple[int, ...]:
    if isinstance(value, (Mapping, Set)):
        raise TypeError
    if isinstance(value, str):
        value = value.split(",")
    try:
        items = list(value)
    except TypeError:
        items = [value]
    return tuple(_whole(item) for item in items)


def _texts(value: Any) -> tuple[str, ...]:
    if hasattr(value, "items"):
        return tuple(f"{key}={item}" for key, item in value.items())
    return (value,) if isinstance(value, str) else tuple(str(item) for item in value)


_CONVERTERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "bool": (_boolean, "true or false"),
    "int": (_whole, "a whole number"),
    "float": (_number, "a number"),
    "str": (_text, "a text"),
    "tuple[int, ...]": (_whole_numbers, "whole numbers separated by commas, such as 32,64,128"),
    "tuple[str, ...]": (_texts, "texts"),
}
