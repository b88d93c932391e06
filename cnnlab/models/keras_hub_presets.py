"""Load backbones from KerasHub's presets: download their files, check them like any other model file, and open them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from cnnlab.errors import LabError, expecting, first_line
from cnnlab.models import safe_loading
from cnnlab.utils.downloads import download_timeout

WEIGHTS = ("model.weights.h5", "model.safetensors")
INDEXES = ("model.weights.json", "model.safetensors.index.json")  # which name the files of large weights
SCALINGS = ("image_converter.json", "preprocessor_config.json")  # how pixels are scaled; the latter of transformers


def load_preset(preset: str | Path) -> tuple[keras.Model, Any, Any]:
    """Load a network of KerasHub, and how its pixels are scaled.

    Args:
        preset: one of KerasHub's names or addresses, or a folder of one.

    Returns:
        `(model, scale, offset)`: the network takes `pixels * scale + offset`; both are `None` where it takes pixels as
        they are.

    Raises:
        LabError: KerasHub is not installed, or the preset cannot be downloaded, or does not load.
    """
    try:
        import keras_hub  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise LabError(
            f"Expected KerasHub for the backbone 'hub:{preset}'. Received: {first_line(error)}. "
            "Install it with: pip install 'cnnlab[hub]'."
        ) from None
    read = keras_hub.models.Backbone.from_preset
    cure = "Correct the name, connect to a network, or use another preset."
    with expecting(f"'{preset}' to be a KerasHub preset or a folder of one", cure, ""):
        with download_timeout():
            folder = str(_download(preset))
        stored = _check_files(Path(folder))
        safe_loading.build_checked(lambda: read(folder, load_weights=False), stored, keep=False)
        loaded = read(folder)
        model = keras.Model(loaded.inputs[0], loaded.outputs[0])
    try:
        converter = keras_hub.layers.ImageConverter.from_preset(folder)
        return model, converter.scale, converter.offset
    except Exception:  # a preset without one takes pixels as they are
        return model, None, None


def _download(preset: str | Path) -> Path:
    """Return the folder with all files of a preset that are read; KerasHub itself downloads a file when it opens it."""
    if Path(preset).is_dir():
        return Path(preset)
    # Private, but the one function that reaches all of its hosts and only downloads. KerasHub 0.32.0.
    from keras_hub.src.utils.preset_utils import get_file  # pyright: ignore[reportMissingImports]

    folder = Path(get_file(preset, safe_loading.CONFIG)).parent
    for name in (*SCALINGS, *WEIGHTS, *INDEXES):
        try:
            got = Path(get_file(preset, name))
        except FileNotFoundError:
            continue
        for part in _parts(got) if name in INDEXES else ():
            get_file(preset, part)
        if name not in SCALINGS:
            break
    return folder


def _check_files(folder: Path) -> int:
    """Check all files of a folder that are read, and return how many numbers its weights hold at most."""
    for path in (folder / name for name in (safe_loading.CONFIG, *SCALINGS)):
        if path.name == safe_loading.CONFIG or path.exists():
            safe_loading.expect_file(path)
            if path.stat().st_size > safe_loading.MOST_CONFIG:
                raise safe_loading.RefusedFileError(f"its '{path.name}' has {path.stat().st_size:,} bytes")
            safe_loading.check_config({"": json.loads(path.read_bytes())})
    names = [name for name in WEIGHTS if (folder / name).exists()]
    for name in INDEXES:
        names += _parts(folder / name) if (folder / name).exists() else []
    stored = 0
    for path in (folder / name for name in names):
        safe_loading.expect_file(path)
        size = path.stat().st_size
        # safetensors are numbers by their format; of one byte each at least.
        stored += safe_loading.check_hdf5(path, size) if path.suffix == ".h5" else size
    return stored


def _parts(path: Path) -> Sequence[str]:
    """Return the names of the files that large weights are in, all of them in the folder of their index."""
    safe_loading.expect_file(path)
    listed = json.loads(path.read_bytes())["weight_map"].values()
    names = {name for value in listed for name in (value if isinstance(value, list) else [value])}
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith((".weights.h5", ".safetensors")):
            raise safe_loading.RefusedFileError(f"its weights are in '{name}', which is no file of its folder")
    return sorted(names)
