"""KerasHub's presets: their files are fetched, looked through as any other model file, and opened where they lie."""

import json
from pathlib import Path

import keras

from cnnlab.errors import LabError, first_line
from cnnlab.models import safe_loading
from cnnlab.utils.downloads import download_timeout

WEIGHTS = ("model.weights.h5", "model.safetensors")
LISTS = ("model.weights.json", "model.safetensors.index.json")  # of the parts of large weights
SCALES = ("image_converter.json", "preprocessor_config.json")  # what scales pictures; the latter of transformers


def load_preset(preset):
    """A network of KerasHub and what scales its pictures.

    Args:
        preset: one of KerasHub's names or addresses, or a folder of one.

    Returns:
        `(model, scale, offset)`, the latter `None` where pixels are taken as they are.

    Raises:
        LabError: KerasHub is not there, or the preset cannot be had, or does not load.
    """
    try:
        import keras_hub
    except ImportError as error:
        raise LabError(
            f"Expected KerasHub for the backbone 'hub:{preset}'. Received: {first_line(error)}. "
            "Install it with: pip install 'cnnlab[hub]'."
        ) from None
    read = keras_hub.models.Backbone.from_preset
    try:
        with download_timeout():
            folder = str(_fetched(preset))
        stored = _looked_through(Path(folder))
        safe_loading.built(lambda: read(folder, load_weights=False), stored, keep=False)
        loaded = read(folder)
        model = keras.Model(loaded.inputs[0], loaded.outputs[0])
    except Exception as error:  # of KerasHub, its hosts and its files
        raise LabError(
            f"Expected '{preset}' to be a KerasHub preset or a folder of one. Received: {first_line(error)}. "
            "Correct the name, connect to a network, or use another preset."
        ) from error
    try:
        converter = keras_hub.layers.ImageConverter.from_preset(folder)
        return model, converter.scale, converter.offset
    except Exception:  # a preset without one takes pixels as they are
        return model, None, None


def _fetched(preset):
    """The folder where what is read of a preset lies; KerasHub itself would fetch a file when it opens it."""
    if Path(preset).is_dir():
        return Path(preset)
    # Private, but the one way to all of its hosts, which only gets files. KerasHub 0.32.0.
    from keras_hub.src.utils.preset_utils import get_file

    folder = Path(get_file(preset, safe_loading.CONFIG)).parent
    for name in (*SCALES, *WEIGHTS, *LISTS):
        try:
            got = Path(get_file(preset, name))
        except FileNotFoundError:
            continue
        for part in _parts(got) if name in LISTS else ():
            get_file(preset, part)
        if name not in SCALES:
            break
    return folder


def _looked_through(folder):
    """How many numbers the weights of a folder hold, once all that is read of it is found to be in order."""
    for name in (safe_loading.CONFIG, *SCALES):
        if name == safe_loading.CONFIG or (folder / name).exists():
            _check_config(folder / name)
    names = [name for name in WEIGHTS if (folder / name).exists()]
    for name in LISTS:
        names += _parts(folder / name) if (folder / name).exists() else []
    stored = 0
    for path in (folder / name for name in names):
        safe_loading.expect_file(path)
        size = path.stat().st_size
        # safetensors are numbers by their format; of one byte each at least.
        stored += safe_loading.check_hdf5(path, size) if path.suffix == ".h5" else size
    return stored


def _check_config(path):
    safe_loading.expect_file(path)
    if path.stat().st_size > safe_loading.MOST_CONFIG:
        raise safe_loading.RefusedFileError(f"its '{path.name}' has {path.stat().st_size:,} bytes")
    safe_loading.check_config({"": json.loads(path.read_bytes())})


def _parts(path):
    """The names of the files that large weights are in, none of them elsewhere."""
    safe_loading.expect_file(path)
    listed = json.loads(path.read_bytes())["weight_map"].values()
    names = {name for value in listed for name in (value if isinstance(value, list) else [value])}
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith((".weights.h5", ".safetensors")):
            raise safe_loading.RefusedFileError(f"its weights are in '{name}', which is no file of its folder")
    return sorted(names)
