"""Custom models: functions of the user's, given as `my_models.py:build_net`, that build a Keras model.

Such a function takes `(input_shape, num_classes, **arguments)`. Its file is read once for a command (`pinned_sources`),
so that all trainings of the command use the same code.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from cnnlab.errors import ArgumentError, LabError, did_you_mean, expect_one_of, first_line
from cnnlab.utils.environment import read_variable
from cnnlab.utils.startup import load_tensorflow

GIVEN = "keras:"  # before the name of a model that a program gave to `fit_and_evaluate`
STORED_CODE_VARIABLE = "CNNLAB_STORED_CODE"
# The code of custom models within `pinned_sources`, by their absolute names. A model is named in many places, such as
# recipes, so that the code is not handed down with each name.
_pinned: dict[str, str] = {}


def is_custom(name: str) -> bool:
    """Return whether a model's name means a function in a file."""
    return ".py:" in name


def refuse_to_build(input_shape: tuple[int, ...], num_classes: int) -> Any:
    """Raise `ArgumentError`: stands for the function of a model that a program gave to `fit_and_evaluate`."""
    raise ArgumentError(
        "Expected a model that can be built again. Received: one that a program gave to fit_and_evaluate. The run has "
        "its data, epochs, batch size, seed, optimizer, layers and trained weights, but neither its code nor its first "
        "weights. Run that program again, or put a function that builds the model into a file: FILE.py:FUNCTION."
    )


def function_name(name: str) -> str:
    """Return the function's name in `FILE.py:FUNCTION`."""
    return name.rpartition(":")[2]


def absolute_name(name: str) -> str:
    """Return the name with the file's full path, so that it means the same from another folder."""
    file, _, function = name.rpartition(":")
    return f"{Path(file).resolve()}:{function}"


def read_source(name: str) -> str:
    """Return the code of a custom model's file; within `pinned_sources` what it was at the beginning.

    Raises:
        ArgumentError: there is no such file.
        LabError: it is not a text file.
    """
    file = name.rpartition(":")[0]
    if absolute_name(name) in _pinned:
        return _pinned[absolute_name(name)]
    if not Path(file).is_file():
        near = did_you_mean(file, files=lambda path: path.suffix == ".py")
        raise ArgumentError(f"Expected the model's file to exist. Received: '{file}', which does not.{near}")
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LabError(f"Expected '{file}' to be a Python file. Received: {first_line(error)}. Correct it.") from error


@contextmanager
def pinned_sources(names: Iterable[str], text: str | None = None) -> Iterator[None]:
    """Keep the code of custom models as it is now, whatever becomes of their files until the end of the block.

    Args:
        names: of models; those that are not custom are skipped.
        text: the code of the only one as a store has it, which is used in place of its file.

    Raises:
        LabError: that text is not what the file holds now, and `$CNNLAB_STORED_CODE` does not allow it to run.
    """
    names = [name for name in names if is_custom(name)]
    for name in names if text is not None else ():
        _expect_trusted(name, text)
    before = dict(_pinned)
    _pinned.update({absolute_name(name): text or read_source(name) for name in names})
    try:
        yield
    finally:
        _pinned.clear()
        _pinned.update(before)


def _expect_trusted(name: str, text: str | None) -> None:
    """Raise `LabError` for stored code that is not the file's, as a store may be somebody else's."""
    file = name.rpartition(":")[0]
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if read_variable(STORED_CODE_VARIABLE) == "run" or Path(file).read_text(encoding="utf-8") == text:
            return
    raise LabError(
        f"Expected '{file}' to hold the code that the store has of it. Received: other code, or no file. Put it there "
        f"again, or let the store's own run, once you have read it (model_source.py of the run): "
        f"{STORED_CODE_VARIABLE}=run."
    )


def load(name: str) -> Callable[..., Any]:
    """Import the file of a custom model and return the function.

    Raises:
        ArgumentError: the file does not exist, has no such function, or one without the two arguments.
        LabError: the file cannot be imported.
    """
    return _load(absolute_name(name), read_source(name))


@functools.cache  # one module for a version of the file: classes in it are registered with Keras once
def _load(name: str, source: str) -> Callable[..., Any]:
    file, _, function = name.rpartition(":")
    module = _import(file, source)
    functions = [key for key, value in vars(module).items() if inspect.isfunction(value)]
    if not functions:
        raise ArgumentError(f"Expected '{file}' to have a function '{function}'. Received a file without functions.")
    if function not in functions:
        expect_one_of(f"the function in '{file}'", function, functions)
    parameters = list(inspect.signature(getattr(module, function)).parameters.values())
    if len(parameters) < 2 or any(p.default is not p.empty or p.kind > p.POSITIONAL_OR_KEYWORD for p in parameters[:2]):
        raise ArgumentError(
            f"Expected {function} to be a function of (input_shape, num_classes, **arguments). "
            f"Received: {function}{inspect.signature(getattr(module, function))}. Change its arguments."
        )
    return getattr(module, function)


def _import(file: str, source: str) -> ModuleType:
    """Run a file's code as a module, whose name has a hash of the code in it."""
    module_name = f"cnnlab_own_{Path(file).stem}_{hashlib.sha256(source.encode()).hexdigest()[:8]}"
    module = importlib.util.module_from_spec(ModuleSpec(module_name, loader=None, origin=file))
    module.__file__ = file
    load_tensorflow()  # before the file imports it, as it would print its start-up messages
    sys.modules[module_name] = module
    sys.path.insert(0, str(Path(file).parent))  # it may import its neighbours
    try:
        exec(compile(source, file, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        sys.modules.pop(module_name)
        raise LabError(
            f"Expected '{file}' to be a Python file that can be imported. Received {type(error).__name__}: "
            f"{first_line(error)}. Correct it."
        ) from error
    finally:
        sys.path.remove(str(Path(file).parent))
    return module


def parse_arguments(pairs: Iterable[str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Parse `("width=32", ...)` as keyword arguments, each of the type of its default.

    Args:
        pairs: as `--arg` takes them.
        defaults: the default of each argument, or `inspect.Parameter.empty`.

    Raises:
        ArgumentError: an unknown argument, or a value of another type.
    """
    values = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ArgumentError(f"Expected --arg as name=value. Received: '{pair}'.")
        expect_one_of("an argument of the function that is no option", name, defaults)
        if name in values:
            raise ArgumentError(f"Expected one value for {name}. Received: several. Leave the others out.")
        values[name] = parse_value(name, text, defaults[name])
    return values


def parse_value(name: str, text: str, default: Any) -> Any:
    """Parse a value as the type of the argument's default; without a default as a Python literal, else as text."""
    kind = type(default)
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if kind in (int, float):
            return kind(text)
    except (ValueError, KeyError):
        raise ArgumentError(f"Expected {name} to be of type {kind.__name__}. Received: '{text}'.") from None
    if kind is str:
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if kind in (tuple, list) and not isinstance(value, (tuple, list)):
        raise ArgumentError(f"Expected {name} to be several values, such as {name}=1,2. Received: '{text}'.")
    return kind(value) if kind in (tuple, list) else value
