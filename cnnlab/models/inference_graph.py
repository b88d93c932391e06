"""Rebuild a trained model for inference: without augmentation, in float32, of operations that other runtimes have."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from cnnlab.models.layers import operations_of

HALF_PRECISIONS = ("mixed_bfloat16", "mixed_float16", "bfloat16", "float16")
AUGMENTATIONS = ("RandAugment", "AugMix", "MixUp", "CutMix")  # beside the layers whose names start with "Random"


def inference_model(model: keras.Model, *, portable: bool = False, float_input: bool = False) -> keras.Model:
    """Rebuild a trained model for inference, with the same weights.

    Called without the argument `training`, a model of Keras 3.15 that has a preprocessing layer runs as in training: it
    augments, and BatchNormalization uses the batch's statistics; `export` would write it so. Here layers of
    augmentation become casts, and every layer is called with `training=False`. Layers in half precision compute in
    float32.

    Args:
        model: `keras.Model` from raw images `(N, H, W, 3)` to probabilities; it stays as it is.
        portable: for ONNX and LiteRT, which have no bicubic or antialiased resizing of TensorFlow's kind: `Resizing`
            layers become products with constant matrices, which give the same pictures. Constants go into the graph,
            since tf2onnx 1.17 takes tensors for inputs.
        float_input: take `(N, H, W, 3) float32`, 0..255, in place of uint8.

    Returns:
        A `keras.Model`, not compiled, from `(N, H, W, 3) uint8, 0..255` to `(N, num_classes) float32`.
    """
    config = keras.saving.serialize_keras_object(model)
    made: Any = keras.saving.deserialize_keras_object(
        _rewrite(config, portable, float_input), custom_objects={"MatrixResizing": MatrixResizing}
    )
    made.set_weights(model.get_weights())
    for layer in operations_of(made):
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # it computes with copies of its weights
            if portable:
                layer.mean, layer.variance = map(keras.ops.convert_to_numpy, (layer.mean, layer.variance))
    images: Any = keras.Input(made.input_shape[1:], dtype="float32" if float_input else "uint8", name="images")
    x = images if made.inputs[0].dtype == images.dtype else keras.ops.cast(images, made.inputs[0].dtype)
    return keras.Model(images, made(x, training=False), name=made.name)


def is_rounded(model: keras.Model) -> bool:
    """Return whether any layer of a model computes in half precision."""
    text = model.to_json()
    return any(f'"{name}"' in text for name in HALF_PRECISIONS)


class MatrixResizing(keras.layers.Layer):
    """Resize pictures of one size as `keras.layers.Resizing` does, by two products with constant matrices.

    Each row of a resized picture is a weighted sum of the picture's rows, and so are the columns: resizing one-pixel
    stripes gives the weights. `resizing` is the configuration of the `Resizing` layer.
    """

    def __init__(self, resizing: dict[str, Any], **options: Any) -> None:
        super().__init__(**options)
        self.resizing: dict[str, Any] = resizing

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Compute the matrices `(height, new height)` and `(width, new width)`."""
        resize: Any = keras.layers.Resizing.from_config({**self.resizing, "dtype": "float32"})
        height, width = input_shape[1] or 0, input_shape[2] or 0
        rows, columns = np.eye(height, dtype="float32"), np.eye(width, dtype="float32")
        rows = np.broadcast_to(rows[:, :, None, None], (height, height, width, 1))
        columns = np.broadcast_to(columns[:, None, :, None], (width, height, width, 1))
        self.rows: npt.NDArray[np.float32] = np.asarray(resize(rows))[:, :, 0, 0]
        self.columns: npt.NDArray[np.float32] = np.asarray(resize(columns))[:, 0, :, 0]

    def call(self, images: Any) -> Any:
        """Resize `(N, H, W, C)`."""
        images = keras.ops.einsum("nhwc,hg->ngwc", keras.ops.cast(images, "float32"), self.rows)
        return keras.ops.einsum("ngwc,wv->ngvc", images, self.columns)

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return the shape of the resized pictures."""
        return (shape[0], self.resizing["height"], self.resizing["width"], shape[-1])

    def get_config(self) -> dict[str, Any]:
        """Return the configuration."""
        return {**super().get_config(), "resizing": self.resizing}


def _rewrite(node: Any, portable: bool, float_input: bool) -> Any:
    """Rewrite a part of a model's configuration, and all parts in it."""
    if isinstance(node, list | tuple):
        return type(node)(_rewrite(part, portable, float_input) for part in node)
    if not isinstance(node, dict):
        return node
    if portable and node.get("class_name") == "__tensor__":
        return {**node, "class_name": "__numpy__"}
    if node.get("module") == "keras.layers":
        node = _replace_layer(node, portable, float_input)
    return {
        key: "float32"
        if value in HALF_PRECISIONS
        and (key == "dtype" or (key == "name" and len(node) == 1))  # {"name": ...} of a policy
        else _rewrite(value, portable, float_input)
        for key, value in node.items()
        if key != "compile_config"  # with it come the optimizer's weights
    }


def _replace_layer(layer: dict[str, Any], portable: bool, float_input: bool) -> dict[str, Any]:
    """Return the configuration of the layer that takes the place of one of Keras's layers."""
    name, config = layer["class_name"], layer["config"]
    common = {"name": config.get("name"), "dtype": "float32"}
    kept = {key: value for key, value in layer.items() if key not in ("build_config", "registered_name")}
    if name in AUGMENTATIONS or name.startswith("Random"):
        return {**kept, "class_name": "Rescaling", "config": {**common, "scale": 1.0, "offset": 0.0}}
    if portable and name == "Resizing" and not (config["crop_to_aspect_ratio"] or config["pad_to_aspect_ratio"]):
        own = {"module": None, "class_name": "MatrixResizing", "registered_name": "MatrixResizing"}
        return {**kept, **own, "config": {**common, "resizing": config}}
    if float_input and name == "InputLayer":
        return {**layer, "config": {**config, "dtype": "float32"}}
    return layer
