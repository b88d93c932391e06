"""Load Keras model and weights files of unknown origin, after checking that they hold nothing but layers and arrays.

Keras's safe mode keeps a file from bringing code. This module refuses more: classes that run code or read other files,
classes that are not Keras's or registered, archives with names or sizes that Keras did not write, links out of an HDF5
file, and layers that are larger than the weights in the file.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import stat
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import h5py.h5l
import h5py.h5o
import keras
from keras.src.backend.common import global_state

from cnnlab.errors import ArgumentError, did_you_mean, first_line
from cnnlab.models.layers import operations_of
from cnnlab.utils.temporary_folders import private_folder

CONFIG, WEIGHTS, ABOUT = "config.json", "model.weights.h5", "metadata.json"
DESCRIPTION, LABELS = "cnnlab.json", "labels.txt"  # texts that `cnnlab export` adds to a file
MOST_CONFIG = 2**24  # bytes; the largest of keras.applications has 1.6 million
MOST_DEPTH, MOST_OBJECTS = 100, 200_000  # of the configuration
MOST_LAYERS = 5_000
MOST_VALUES = 2**26  # of one layer's output for one picture
MOST_EXPANSION, SMALL = 100, 2**24  # data of more than SMALL bytes may be as many times larger than it is stored
MOST_PARTS = 100_000  # of an HDF5 file
SPECIAL = ("__keras_tensor__", "__tensor__", "__numpy__", "__bytes__", "__ellipsis__", "__slice__")
# Layers that run code from the file or of another library, read files that it names, or make tables at any size.
REFUSED = (
    "Lambda TFSMLayer JaxLayer FlaxLayer TorchModuleWrapper TextVectorization StringLookup IntegerLookup IndexLookup "
    "HashedCrossing FeatureSpace MelSpectrogram STFTSpectrogram Tokenizer"
).split()
ALLOWED_BASES: tuple[type, ...] = (
    *(keras.Operation, keras.Initializer, keras.Regularizer, keras.constraints.Constraint, keras.optimizers.Optimizer),
    *(keras.optimizers.schedules.LearningRateSchedule, keras.Loss, keras.Metric, keras.DTypePolicy),
    *(keras.quantizers.Quantizer, keras.random.SeedGenerator),
)
# Modules of Keras in which classes, and functions, are looked up by their names alone.
CLASS_MODULES = ("layers", "models", "initializers", "regularizers", "constraints", "optimizers", "losses", "metrics")
FUNCTION_MODULES = (*CLASS_MODULES[2:], "activations")
FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_LZF}


class RefusedFileError(ValueError):
    """Report a file that is not opened; the message is the reason."""


def load_model(path: str | Path) -> keras.Model:
    """Load a saved model, not compiled, without running code from its file.

    Raises:
        RefusedFileError: it holds something else than layers of Keras, or registered ones, and their weights.
        Exception: whatever Keras raises.
    """
    expect_file(path)
    with private_folder("model") as folder:
        weights = folder / WEIGHTS
        try:
            with zipfile.ZipFile(path) as archive:
                _check_members(archive)
                config = _parse(archive.read(CONFIG))
                with archive.open(WEIGHTS) as packed, weights.open("wb") as file:
                    shutil.copyfileobj(packed, file, 2**20)
                size = archive.getinfo(WEIGHTS).compress_size
        except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError, KeyError) as error:
            raise RefusedFileError(f"its archive cannot be read ({first_line(error)})") from error
        _remove_compilation(config)
        check_config(config)
        stored = check_hdf5(weights, size)
        model = build_checked(lambda: keras.saving.deserialize_keras_object(config, safe_mode=True), stored)
        model.load_weights(str(weights))
    return model


@contextlib.contextmanager
def uncompiled(model: keras.Model) -> Iterator[None]:
    """Treat a model as not compiled within the block, so that it is saved without optimizer, loss and metrics.

    Inference needs none of them, and they may name classes that a reader does not have. An optimizer's variables make
    a file up to three times as large.
    """
    parts: list[Any] = [one for one in (model, *operations_of(model)) if isinstance(one, keras.Model) and one.compiled]
    before = [(part, part.optimizer) for part in parts]
    try:
        for part in parts:
            part.compiled, part.optimizer = False, None
        yield
    finally:
        for part, optimizer in before:
            part.compiled, part.optimizer = True, optimizer


def save_model(model: keras.Model, path: str | Path) -> None:
    """Save a model as a `.keras` file, not compiled."""
    with uncompiled(model):
        model.save(path)


def build_checked(build: Callable[[], Any], stored: int, keep: bool = True) -> keras.Model:
    """Build a model, and allocate its weights only after checking that as many are stored.

    Args:
        build: returns the model.
        stored: how many numbers its file holds.
        keep: whether its weights are allocated; else only the check is made.

    Raises:
        RefusedFileError: it is no model, or has more weights than are stored.
    """
    # Private: without it, variables of a refused model would be allocated by whatever is built next. Keras 3.15.1.
    waiting: Any = global_state.get_global_attribute("uninitialized_variables", [], set_to_default=True)
    before = list(waiting)
    scope = keras.StatelessScope(initialize_variables=False)  # in it, variables have shapes and no values
    try:
        with scope:
            model = build()
            _check_sizes(model, stored)
            scope.initialize_variables = keep
    except BaseException:
        waiting[:] = before
        raise
    if not keep:
        waiting[:] = before
    return model


def load_weights(model: keras.Model, path: str | Path) -> None:
    """Load the weights of an HDF5 file (`.weights.h5`, `.h5`, `.hdf5`) into a model.

    Raises:
        RefusedFileError: it holds something else than arrays.
        Exception: whatever Keras raises.
    """
    expect_file(path)
    if not str(path).endswith((".h5", ".hdf5")):
        raise RefusedFileError("its name ends neither in .h5 nor in .hdf5")
    check_hdf5(path, os.stat(path).st_size)
    model.load_weights(str(path))


def read_description(path: str | Path) -> dict[str, Any]:
    """Read the values that `cnnlab export` adds to a `.keras` file.

    Raises:
        ArgumentError: there is no such file, or cnnlab did not export it.
    """
    try:
        expect_file(path)
        with zipfile.ZipFile(path) as archive:
            _check_members(archive)
            about = json.loads(archive.read(DESCRIPTION))
        return {**about, "class_names": tuple(about["class_names"]), "run_id": about["run_id"], "model": about["model"]}
    except Exception as error:  # whatever a file of unknown origin makes its readers raise
        raise ArgumentError(
            f"Expected '{path}' to be a file that 'cnnlab export --format keras' wrote. "
            f"Received: {first_line(error)}. Name such a file, a registered model, or a run."
            + did_you_mean(path, files=lambda near: near.suffix == ".keras")
        ) from error


def expect_file(path: str | Path) -> None:
    """Raise `RefusedFileError` where a path is a folder, a pipe or the like."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise RefusedFileError("it is no file")


def _check_members(archive: zipfile.ZipFile) -> None:
    members = archive.infolist()
    names = sorted(member.filename for member in members)
    if other := next((name for name in names if name not in (CONFIG, ABOUT, WEIGHTS, DESCRIPTION, LABELS)), None):
        raise RefusedFileError(f"its archive holds '{other}'")
    if len(set(names)) < len(names) or not {CONFIG, WEIGHTS} <= set(names):
        raise RefusedFileError("its archive lacks parts, or has one twice")
    for member in members:
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
            raise RefusedFileError(f"'{member.filename}' in its archive is no file")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
            raise RefusedFileError(f"'{member.filename}' in its archive is packed in a way that Keras does not use")
        most = MOST_CONFIG if member.filename != WEIGHTS else max(SMALL, MOST_EXPANSION * member.compress_size)
        if member.file_size > most:
            raise RefusedFileError(f"'{member.filename}' in its archive unpacks to {member.file_size:,} bytes")


def _parse(text: bytes) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RefusedFileError("its configuration is no JSON that can be read") from error
    if not isinstance(config, dict) or "class_name" not in config:
        raise RefusedFileError("its configuration is none of a model")
    return config


def _remove_compilation(config: dict[str, Any]) -> None:
    """Remove optimizer, loss and metrics from the configurations of a model and of those within it.

    They are not used, and without them files with any optimizer can be loaded.
    """
    left: list[Any] = [config]
    while left:
        node = left.pop()
        if isinstance(node, dict):
            if "class_name" in node:
                node.pop("compile_config", None)
            left += node.values()
        elif isinstance(node, list):
            left += node


def check_config(config: dict[str, Any]) -> None:
    """Raise `RefusedFileError` unless every class that is named is one of Keras's that only computes, or registered."""
    left: list[tuple[Any, int]] = [(config, 0)]
    objects = layers = 0
    while left:
        node, depth = left.pop()
        objects += 1
        if depth > MOST_DEPTH or objects > MOST_OBJECTS:
            raise RefusedFileError("its configuration is too deep or too long")
        if isinstance(node, dict) and "class_name" in node:
            layers += _check_object(node)
        values = node.values() if isinstance(node, dict) else node
        left += [(value, depth + 1) for value in values if isinstance(value, dict | list)]
    if layers > MOST_LAYERS:
        raise RefusedFileError(f"it has {layers:,} layers, and at most {MOST_LAYERS:,} are read")


def _check_object(node: dict[str, Any]) -> bool:
    """Check one object of the configuration, and return whether it is a layer or another operation."""
    name, module = node["class_name"], node.get("module")
    registered = node.get("registered_name")
    if not all(text is None or isinstance(text, str) for text in (name, module, registered)) or name is None:
        raise RefusedFileError("its configuration names a class that is no text")
    if name in SPECIAL:
        return False
    if name == "function":
        if not _is_function(module, node.get("config")):
            raise RefusedFileError(f"it names the function '{module}.{node.get('config')}', which is none of a model")
        return False
    found = keras.saving.get_registered_object(registered) if registered else None
    if found is None:
        found = _find_class(name, module)
    if not (isinstance(found, type) and issubclass(found, ALLOWED_BASES)):
        raise RefusedFileError(f"it names '{f'{module}.' if module else ''}{name}', which is no layer of Keras")
    if wrong := next((base.__name__ for base in found.__mro__ if base.__name__ in REFUSED), None):
        raise RefusedFileError(f"it has a layer '{wrong}', which may run code or read other files")
    return issubclass(found, keras.Operation)


def _find_class(name: str, module: str | None) -> Any:
    """Return a class of Keras by its name, without importing anything, or `None`."""
    if module in (None, "builtins"):
        return next((home[name] for home in map(_public, CLASS_MODULES) if name in home), None)
    if module.startswith("keras.src."):
        return vars(sys.modules.get(module, keras)).get(name)
    found: Any = keras
    for part in module.split(".")[1:]:
        found = getattr(found, part, None)
    return getattr(found, name, None) if module.partition(".")[0] == "keras" else None


def _is_function(module: str | None, name: object) -> bool:
    """Return whether a function that a configuration names is registered, or one of Keras's that only computes."""
    if not isinstance(name, str):
        return False
    if keras.saving.get_registered_object(name) is not None:
        return True
    home = (module or "").removeprefix("keras.")
    homes = FUNCTION_MODULES if module == "builtins" else (home,) if home in FUNCTION_MODULES else ()
    return any(name in _public(home) for home in homes) and name not in ("get", "serialize", "deserialize")


def _public(home: str) -> dict[str, Any]:
    return vars(getattr(keras, home))


def _check_sizes(model: Any, stored: int) -> None:
    """Check that a model has as many weights as are stored, and that no layer's output is too large."""
    if not isinstance(model, keras.Model):
        raise RefusedFileError("it is no model")
    declared = sum(math.prod(variable.shape) for variable in model.variables)
    # The states of random layers and the like are not stored.
    if declared > stored + SMALL // 4:
        raise RefusedFileError(f"its layers have {declared:,} weights, and {stored:,} are stored")
    for operation in operations_of(model):
        for node in operation._inbound_nodes:
            for tensor in node.output_tensors:
                if math.prod(side or 1 for side in tensor.shape[1:]) > MOST_VALUES:
                    raise RefusedFileError(f"its layer '{operation.name}' makes {tensor.shape} of a picture")


def check_hdf5(path: str | Path, size: int) -> int:
    """Check that an HDF5 file holds nothing but groups and arrays, and return how many numbers are in them.

    Args:
        size: bytes that it was stored with, perhaps compressed.

    Raises:
        RefusedFileError: it holds something else.
    """
    try:
        with h5py.File(path, "r") as opened:
            total, values = _check_parts(opened.id)
    except RefusedFileError:
        raise
    except Exception as error:  # h5py raises all kinds for a damaged file
        raise RefusedFileError(f"its weights cannot be read ({first_line(error)})") from error
    if total > max(SMALL, MOST_EXPANSION * size):
        raise RefusedFileError(f"its arrays have {total:,} bytes, and {size:,} are stored")
    return values


def _check_parts(root: Any) -> tuple[int, int]:
    """Check all parts below a group, and return how many bytes and numbers their arrays have."""
    left: list[Any] = [root]
    seen: set[int] = set()
    total = values = 0
    while left:
        part = left.pop()
        address = h5py.h5o.get_info(part).addr
        if address in seen:  # a group may contain itself
            continue
        seen.add(address)
        for i in range(h5py.h5a.get_num_attrs(part)):
            attribute = h5py.h5a.open(part, index=i)
            if math.prod(attribute.shape) * attribute.get_type().get_size() > SMALL:
                raise RefusedFileError("it has an attribute that is too large")
        if isinstance(part, h5py.h5d.DatasetID):
            total += _check_dataset(part)
            values += math.prod(part.shape)
            continue
        if not isinstance(part, h5py.h5g.GroupID):
            raise RefusedFileError("it has a part that is no array")
        for name in part:
            if part.links.get_info(name).type != h5py.h5l.TYPE_HARD:
                raise RefusedFileError(f"its part '{name.decode(errors='replace')}' is a link to elsewhere")
            left.append(h5py.h5o.open(part, name))
            if len(left) > MOST_PARTS:
                raise RefusedFileError(f"it has more than {MOST_PARTS:,} parts")
    return total, values


def _check_dataset(dataset: Any) -> int:
    """Check one array, and return how many bytes it has."""
    properties = dataset.get_create_plist()
    if properties.get_layout() == h5py.h5d.VIRTUAL or properties.get_external_count():
        raise RefusedFileError("it has an array that lies in another file")
    if any(properties.get_filter(i)[0] not in FILTERS for i in range(properties.get_nfilters())):
        raise RefusedFileError("it has an array packed in a way that Keras does not use")
    kind = dataset.get_type()
    # Texts stand in weights of earlier versions; bfloat16 is stored as two bytes without a meaning.
    if not isinstance(kind, h5py.h5t.TypeIntegerID | h5py.h5t.TypeFloatID | h5py.h5t.TypeEnumID) and not (
        isinstance(kind, h5py.h5t.TypeOpaqueID) and kind.get_size() == 2
    ):
        raise RefusedFileError("it has an array that is not of numbers")
    return math.prod(dataset.shape) * kind.get_size()
