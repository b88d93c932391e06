"""Attach a pre-trained backbone to a model: copy its layers, freeze or unfreeze them, and find its stages.

Stages are separated by the layers that halve the height and width of the features. Fine-tuning unfreezes whole
stages.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import keras
import numpy as np

from cnnlab.errors import ArgumentError, LabError, did_you_mean
from cnnlab.models.backbones import too_many_stages
from cnnlab.models.pretrained import PretrainedNetwork

PIXEL_LAYERS = (keras.layers.Rescaling, keras.layers.Normalization)
OUR_NAMES = ("images", "resize", "scale", "flatten", "average_pool", "max_pool", "dense", "dropout", "probabilities")


def attach_backbone(
    network: PretrainedNetwork,
    x: keras.KerasTensor,
    trained: Collection[str],
    frozen_precision: str,
    later: Collection[str] = (),
) -> keras.KerasTensor:
    """Return the network's features of `x`, computed by copies of its layers with their weights.

    Args:
        network: the backbone.
        x: Keras tensor `(N, H, W, C) float32`, preprocessed.
        trained: names of the layers that are trained; the others are frozen, with their dropout switched off.
        frozen_precision: dtype policy of the frozen layers; the others follow the global policy.
        later: names of layers that are frozen now and trained in a later stage; they follow the global policy too.

    Raises:
        LabError: the network has weights that are not finite numbers.
    """
    copy: Any = keras.models.clone_model(
        network.model,
        input_tensors=keras.Input(x.shape[1:], dtype="float32"),
        clone_function=lambda layer: _clone(
            layer, layer.name in trained, keras.config.dtype_policy().name if layer.name in later else frozen_precision
        ),
    )
    values = network.model.get_weights()
    if not all(np.isfinite(value).all() for value in values):
        raise LabError(
            f"Expected the weights of {network.name} to be finite numbers. Received others. Use another file."
        )
    copy.set_weights(values)
    for layer in copy.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # takes over the mean and variance that were set
    # The copy's own graph is removed, so that each layer has one input and one output, and the frozen front of the new
    # model can end at any of them. These attributes are private, but the copy is thrown away; Keras 3.15.1.
    for operation in copy.operations:
        operation._inbound_nodes.clear()
        operation._outbound_nodes.clear()
    return copy.call(x)


def _clone(layer: Any, trained: bool, frozen_precision: str) -> Any:
    if isinstance(layer, keras.Model):  # a model within the network
        return keras.models.clone_model(layer, clone_function=lambda part: _clone(part, trained, frozen_precision))
    if not isinstance(layer, keras.layers.Layer):  # an operation, such as ConvNeXt's `+`
        return type(layer).from_config(layer.get_config())
    config = {**layer.get_config(), "trainable": trained}
    if isinstance(layer, PIXEL_LAYERS):
        config["dtype"] = "float32"  # bfloat16 has not the digits for pixels
    else:
        config["dtype"] = keras.config.dtype_policy().name if trained else frozen_precision
    if not trained and "rate" in config:  # dropout is for training
        config["rate"] = 0.0
    config["name"] = backbone_layer_name(config["name"])
    return type(layer).from_config(config)


def backbone_layer_name(name: str) -> str:
    """Return what a layer of a backbone is called in the model that it is attached to."""
    return f"backbone_{name}" if name in OUR_NAMES or name.startswith("random_") else name


def trained_layers(network: PretrainedNetwork, count: int, side: int) -> set[str]:
    """Return the names of the layers in the topmost `count` stages; raise `ArgumentError` where there are fewer."""
    if not count:
        return set()
    stages = _stages(network, side)
    if count > len(stages):
        raise ArgumentError(too_many_stages("train_blocks", len(stages), network.name, count))
    names, behind = [layer.name for layer in network.model.layers], stages[count - 1]
    return set(names[names.index(behind) + 1 :] if behind else names)


def layer_groups_from(network: PretrainedNetwork, start: str, side: int) -> list[list[str]]:
    """Return the names of the layers from `start` upwards, stage by stage, the topmost first.

    Args:
        network: the backbone.
        start: "top" (the topmost stage), a number of stages, the beginning of a layer's name, or "all".
        side: pixels a side of the images.

    Raises:
        ArgumentError: the network has fewer stages, or no such layer.
    """
    stages = _stages(network, side)
    names = [layer.name for layer in network.model.layers]
    begins = [names.index(stage) + 1 if stage else 0 for stage in stages]
    count = int(start) if start.isdigit() else {"top": 1, "all": len(stages)}.get(start)
    if count is not None and not 1 <= count <= len(stages):
        raise ArgumentError(too_many_stages("fine_tune_from", len(stages), network.name, start))
    if count:
        first = begins[count - 1]
    else:
        first = next((i for i, name in enumerate(names) if name.startswith(start)), None)
        if first is None:
            raise ArgumentError(
                f"Expected fine_tune_from to be top, a number of stages up to {len(stages)}, all, or the beginning of "
                f"a layer's name. Received: '{start}', which no layer of {network.name} begins with. Its stages start "
                f"at: {', '.join(names[i] for i in begins)}."
                + did_you_mean(start, [*(name.partition("_")[0] for name in names), *names])
            )
    groups, end = [], len(names)
    inputs = {layer.name for layer in network.model.layers if isinstance(layer, keras.layers.InputLayer)}
    for begin in (max(first, one) for one in begins):
        if begin < end:
            groups.append([name for name in names[begin:end] if name not in inputs])
        end = min(end, begin)
    return groups


def _stages(network: PretrainedNetwork, side: int) -> tuple[str, ...]:
    return network.stages if network.stages is not None else find_stages(network.model, side)


def find_stages(model: keras.Model, side: int) -> tuple[str, ...]:
    """Find the stages of a network: return the layers that they start behind, the topmost first, "" for the input.

    A stage starts where features lose half their size, and a single tensor holds all that the rest of the network
    needs.
    """
    sized = keras.models.clone_model(model, input_tensors=keras.Input((side, side, model.inputs[0].shape[-1])))
    places: list[Any] = [layer for layer in sized.layers if len(getattr(layer.output, "shape", ())) == 4]
    start, stages = places[0].output.shape[1], [""]
    for i, layer in enumerate(places):
        if layer.output.shape[1] <= 0.6 * start:
            start = layer.output.shape[1]
            before = places[max(1, i - 10) : i]
            stages += [next((place.name for place in reversed(before) if _is_cut(place, sized)), "")]
    order = ["", *(layer.name for layer in sized.layers)]
    ends = [*stages[1:], order[-1]]
    weighted = {layer.name for layer in sized.layers if layer.weights}
    kept = [
        stage
        for stage, end in zip(stages, ends, strict=True)
        if weighted.intersection(order[order.index(stage) + 1 : order.index(end) + 1])
    ]
    return (*dict.fromkeys(reversed(kept[1:])), "")  # the lowest starts at the image


def _is_cut(layer: Any, model: keras.Model) -> bool:
    """Return whether the rest of a model can be computed from the output of one layer alone."""
    try:
        keras.Model(layer.output, model.outputs[0])
    except ValueError:
        return False
    return True
