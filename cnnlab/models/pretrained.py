"""Load pre-trained backbones: from `keras.applications`, a saved model, a registered model, or KerasHub.

Each is loaded once a process and copied into the models that are built from it.
"""

from __future__ import annotations

import contextlib
import functools
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from cnnlab.errors import ArgumentError, LabError, did_you_mean, expecting
from cnnlab.models import safe_loading
from cnnlab.models.backbones import BACKBONES, Backbone
from cnnlab.models.keras_hub_presets import load_preset
from cnnlab.models.layers import member_networks
from cnnlab.utils.downloads import download_timeout

REGISTERED, HUB = "models:/", "hub:"
VGG16_SEEDS = 13  # one for the kernel of each convolution
# The downloaded file of each registered model, by its URI. This module cannot reach the registry, so `resolve` puts the
# files here (`add_downloaded_model`), and a model's factory needs to be given nothing but the URI.
_downloaded: dict[str, str] = {}
DEPTHWISE = (keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D)


@dataclass(frozen=True)
class PretrainedNetwork:
    """Hold a pre-trained network without its head."""

    name: str  # for the model that is built from it
    model: keras.Model  # functional `keras.Model` from what `preprocess` gives to features `(N, H, W, C)` or `(N, C)`
    # A function of Keras tensors from pixels, 0 to 255, to what the network was trained with.
    preprocess: Callable[[Any], Any]
    # Names of the layers that its stages start behind, top first, "" for the input; `None` where unknown.
    stages: tuple[str, ...] | None = None
    members: int = 1  # how many networks the saved model averages, of which this is the first


def load_backbone(backbone: str, weights: str | None, side: int | None) -> PretrainedNetwork:
    """Load a backbone with its weights.

    Args:
        backbone: a name of `BACKBONES`, a `.keras` file, `models:/...` or `hub:...`.
        weights: of a named backbone: "imagenet", "random" or a file; `None` for the others.
        side: pixels a side of the images, which paddings of a named backbone depend on; `None` for the others.

    Raises:
        ArgumentError: there is no such backbone or file.
        LabError: it cannot be downloaded, or does not load.
    """
    if backbone in BACKBONES:
        if weights == "random":
            return _build_named(backbone, None, side)
        if weights is None or (weights != "imagenet" and not Path(weights).is_file()):
            raise ArgumentError(
                f"Expected weights to be 'imagenet', 'random' or an existing file. Received: '{weights}'."
                + did_you_mean(weights, ("imagenet", "random"), lambda path: path.suffix in (".h5", ".hdf5"))
            )
        with _same_random_state():
            network = _load_named(backbone, weights, side, _modified(weights))
        if backbone == "vgg16":  # draws as many seeds as with random weights, so that earlier runs repeat bit for bit
            for _ in range(VGG16_SEEDS):
                keras.initializers.GlorotUniform()
        return network
    with _same_random_state():
        if backbone.startswith(HUB):
            return _load_hub(backbone)
        path = _downloaded.get(backbone, backbone)
        if backbone.startswith(REGISTERED) and path == backbone:
            raise LabError(f"Expected '{backbone}' to be fetched from the registry. Received: only its name.")
        if not Path(path).is_file():
            by_size = sorted(BACKBONES, key=lambda name: BACKBONES[name].parameters)
            raise ArgumentError(
                "Expected backbone to be one of: a name of 'cnnlab models --available', a .keras file, "
                f"models:/NAME@ALIAS, hub:PRESET. Received: '{backbone}'."
                + did_you_mean(backbone, by_size, lambda path: path.suffix == ".keras")
            )
        return _load_saved(backbone, path, _modified(path))


@contextlib.contextmanager
def _same_random_state() -> Iterator[None]:
    """Restore `random`: the seeds of later layers must not depend on whether this process loaded weights before."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


def add_downloaded_model(uri: str, file: str) -> None:
    """Remember the downloaded file of a registered model, so that `load_backbone` finds it by its URI."""
    _downloaded[uri] = file


def is_downloaded(uri: str) -> bool:
    """Return whether `add_downloaded_model` was called for a registered model."""
    return uri in _downloaded


def describe_features(backbone: str) -> str:
    """Describe which features of a saved, registered or KerasHub network are used."""
    network = load_backbone(backbone, None, None)
    shape = ", ".join("any" if side is None else str(side) for side in network.model.output_shape[1:])
    whose = "its layer" if network.members == 1 else f"the first of its {network.members} members' layer"
    return f"the output of {whose} '{network.model.layers[-1].name}', ({shape})"


def has_depthwise_convolutions(backbone: str) -> bool:
    """Return whether a backbone convolves each channel by itself, which bfloat16 makes no faster on a CPU."""
    if backbone in BACKBONES:
        return BACKBONES[backbone].depthwise
    layers: list[Any] = load_backbone(backbone, None, None).model.layers
    return any(
        isinstance(layer, DEPTHWISE) or getattr(layer, "groups", 1) == getattr(layer, "filters", None)
        for layer in layers
    )


def default_image_size(backbone: str) -> int:
    """Return the pixels a side that a backbone was trained with; of an unknown size the 224 that are usual."""
    if backbone in BACKBONES:
        return BACKBONES[backbone].usual
    return load_backbone(backbone, None, None).model.input_shape[1] or 224


def _modified(path: str) -> int | None:
    """Return when a file was modified, so that a changed file is loaded again."""
    return Path(path).stat().st_mtime_ns if Path(path).is_file() else None


@functools.lru_cache(maxsize=8)
def _load_named(backbone: str, weights: str, side: int | None, modified: int | None) -> PretrainedNetwork:
    return _build_named(backbone, weights, side)


def _build_named(backbone: str, weights: str | None, side: int | None) -> PretrainedNetwork:
    row = BACKBONES[backbone]
    build = functools.partial(getattr(keras.applications, row.build), include_top=False, input_shape=(side, side, 3))
    if weights == "imagenet":
        cure = "Connect to a network, pass a weights file, or use weights='random'."
        with expecting(f"to download {row.build}'s ImageNet weights", cure, ""), download_timeout():
            model = build(weights="imagenet")
    else:
        model = build(weights=None)
        if weights is not None:
            _load_weights(model, weights, row)

    def preprocess(x: Any) -> Any:
        if not row.preprocess:
            return x
        return keras.applications.imagenet_utils.preprocess_input(keras.ops.cast(x, "float32"), mode=row.preprocess)

    _renumber_layers(model)
    return PretrainedNetwork(backbone, model, preprocess, row.stages)


def _renumber_layers(model: keras.Model) -> None:
    """Number the layers that have no name of their own within the network.

    Keras numbers them within the process, so that a network would have other names each time that it is built, and its
    second stage of training would look for layers that the model does not have.
    """
    unnamed: dict[str, list[tuple[int, Any]]] = defaultdict(list)
    for layer in model.layers:
        kind = re.sub("([a-z])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", type(layer).__name__)).lower()
        if number := re.fullmatch(rf"{kind}(?:_(\d+))?", layer.name):
            unnamed[kind].append((int(number[1] or 0), layer))
    for kind, layers in unnamed.items():
        for i, (_, layer) in enumerate(sorted(layers, key=lambda pair: pair[0])):
            layer.name = f"{kind}_{i}" if i else kind


def _load_weights(model: keras.Model, path: str, row: Backbone) -> None:
    what = f"'{path}' to hold the weights of {row.build} without its top (.weights.h5 or .h5)"
    with expecting(what, "Use another file, 'imagenet' or 'random'.", "a file that does not load"):
        safe_loading.load_weights(model, path)


@functools.lru_cache(maxsize=2)
def _load_saved(backbone: str, path: str, modified: int | None) -> PretrainedNetwork:
    """Load a saved Keras model without running code from it; where it ends in a softmax, its head is cut off."""
    if Path(path).suffix != ".keras":
        raise ArgumentError(
            f"Expected a backbone saved as .keras. Received: '{path}'. Save it with model.save('name.keras')."
        )
    cure = "Save the model anew, without code of your own in it."
    with expecting(f"'{path}' to be a Keras model of built-in layers", cure, "a file that does not load"):
        model: Any = safe_loading.load_model(path)
    if isinstance(model.layers[-1], keras.Model) and len(model.layers) == 2:
        model = model.layers[-1]  # behind an input, where `cnnlab export` puts the whole model
    networks = member_networks(model)  # without the mean of views or members, which is of probabilities
    name = Path(backbone).stem.partition("@")[0]
    return PretrainedNetwork(name, _without_head(networks[0], backbone), lambda x: x, members=len(networks))


def _without_head(model: Any, backbone: str) -> keras.Model:
    """Cut a model to what lies behind its augmentation and before its classifier."""
    functional = _functional(model, backbone)
    # A copy, as the layers of a sequential model may be part of another graph as well.
    copy: Any = keras.models.clone_model(functional)
    copy.set_weights(functional.get_weights())
    start, layers = copy.inputs[0], copy.layers[1:]
    while isinstance(layers[0], keras.layers.Pipeline) or type(layers[0]).__name__.startswith("Random"):
        start = layers.pop(0).output
    probabilities = (keras.activations.softmax, keras.activations.sigmoid)
    if not isinstance(layers[-1], keras.layers.Softmax) and getattr(layers[-1], "activation", 0) not in probabilities:
        return keras.Model(start, copy.outputs[0])
    first = next((i for i, layer in enumerate(layers) if layer.weights), len(layers))
    spatial = [layer.output for layer in layers[first:] if len(getattr(layer.output, "shape", ())) == 4]
    if not spatial:
        raise LabError(f"Expected '{backbone}' to have convolutions below its head. Received: none.")
    return keras.Model(start, spatial[-1])


def _functional(model: Any, backbone: str) -> keras.Model:
    """Return a model as a functional one, after checking that it takes one square RGB image and has one output."""
    try:
        functional = keras.Model(model.inputs[0], model.outputs[0])
        if not len(model.inputs) == len(model.outputs) == 1 or len(model.inputs[0].shape) != 4:
            raise ValueError("not one image and one output")
    except (AttributeError, ValueError, IndexError, TypeError):
        raise LabError(
            f"Expected '{backbone}' to be a functional or sequential model with one image in and one output. "
            "Received another kind. Save it as such."
        ) from None
    if model.inputs[0].shape[-1] not in (3, None):
        raise LabError(
            f"Expected '{backbone}' to take images (H, W, 3). Received a model of {model.inputs[0].shape[1:]}. "
            "Use one that was trained on RGB pictures."
        )
    if len({None, *model.inputs[0].shape[1:3]}) > 2:
        raise LabError(
            f"Expected '{backbone}' to take square images. Received a model of {model.inputs[0].shape[1:]}. "
            "Use another."
        )
    return functional


@functools.lru_cache(maxsize=2)
def _load_hub(backbone: str) -> PretrainedNetwork:
    preset = backbone.removeprefix(HUB)
    model, scale, offset = load_preset(preset)

    def preprocess(x: Any) -> Any:
        if scale is None and offset is None:
            return x
        return keras.layers.Rescaling(1.0 if scale is None else scale, 0.0 if offset is None else offset)(x)

    return PretrainedNetwork(Path(preset).name, model, preprocess)
