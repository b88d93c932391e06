"""A user's own model: a function in a file, `my_models.py:build_net`, `(input_shape, num_classes, **arguments)`."""

import ast
import contextlib
import functools
import hashlib
import importlib.util
import inspect
import sys
from contextlib import contextmanager
from pathlib import Path

from cnnlab.errors import ArgumentError, LabError, expect_one_of, first_line
from cnnlab.utils.environment import read_variable
from cnnlab.utils.startup import load_tensorflow

STORED_CODE_VARIABLE = "CNNLAB_STORED_CODE"
PINNED = {}  # texts that stand for a function's file, by its full name


def is_custom(name) -> bool:
    """Whether a model's name means a function in a file."""
    return ".py:" in name


def function_name(name) -> str:
    """The function's name in `FILE.py:FUNCTION`."""
    return name.rpartition(":")[2]


def absolute_name(name) -> str:
    """The same with the file's full path, so that it means the same from another folder."""
    file, _, function = name.rpartition(":")
    return f"{Path(file).resolve()}:{function}"


def read_source(name) -> str:
    """The text of the file.

    Raises:
        ArgumentError: there is no such file.
    """
    file = name.rpartition(":")[0]
    if absolute_name(name) in PINNED:
        return PINNED[absolute_name(name)]
    if not Path(file).is_file():
        raise ArgumentError(f"Expected the model's file to exist. Received: '{file}', which does not.")
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LabError(f"Expected '{file}' to be a Python file. Received: {first_line(error)}. Correct it.") from error


@contextmanager
def pinned_sources(names, text=None):
    """Inside, functions are what they are now, whatever becomes of their files, or what `text` says.

    Args:
        names: of models, of whatever kind.
        text: of the file of the only one, as a store has it.

    Raises:
        LabError: that text is not what the file holds now, and nobody has said that it may run.
    """
    for name in names:
        if text is not None and is_custom(name):
            _expect_trusted(name, text)
    before = dict(PINNED)
    PINNED.update({absolute_name(name): text or read_source(name) for name in names if is_custom(name)})
    try:
        yield
    finally:
        PINNED.clear()
        PINNED.update(before)


def _expect_trusted(name, text):
    """A store may be somebody else's, and the code in it too."""
    file = name.rpartition(":")[0]
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if read_variable(STORED_CODE_VARIABLE) == "run" or Path(file).read_text(encoding="utf-8") == text:
            return
    raise LabError(
        f"Expected '{file}' to hold the code that the store has of it. Received: other code, or no file. Put it there "
        f"again, or let the store's own run, once you have read it (model_source.py of the run): "
        f"{STORED_CODE_VARIABLE}=run."
    )


def load(name):
    """The function.

    Raises:
        ArgumentError: the file does not exist, has no such function, or one without the two arguments.
        LabError: the file cannot be imported.
    """
    return _load(absolute_name(name), read_source(name))


@functools.cache  # a module a version of the file: what it registers with Keras is registered once
def _load(name, source):
    file, _, function = name.rpartition(":")
    module_name = f"cnnlab_own_{Path(file).stem}_{hashlib.sha256(source.encode()).hexdigest()[:8]}"
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(module_name, loader=None, origin=file))
    module.__file__ = file
    load_tensorflow()  # which the file will import, with all that it prints
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


def parse_arguments(pairs, defaults) -> dict:
    """`("width=32", ...)` as keyword arguments, each of the type of its default.

    Args:
        pairs: as `--arg` gives them.
        defaults: argument to its default, or `inspect.Parameter.empty`.

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


def parse_value(name, text, default):
    """A value of the type of the argument's default; without a default what Python reads it as, else a text."""
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
