"""Compute and draw Grad-CAM heat maps of what speaks for a class in an image (Selvaraju et al., arXiv:1610.02391).

Keras has no gradients outside of a training, so this module uses TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from cnnlab.evaluation import plots
from cnnlab.evaluation.predictions import Predictions, confident_mistakes
from cnnlab.models.layers import member_networks

if TYPE_CHECKING:
    from cnnlab.data.image_dataset import Images

# From images `(N, H, W, 3)` and the classes `(N,)` to explain to heat maps `(N, h, w)`, 0 to 1 for each image, in the
# size of the features; `None` where no gradient reaches these.
HeatMaker: TypeAlias = Callable[
    [npt.NDArray[np.uint8], Sequence[int] | npt.NDArray[np.int64]], npt.NDArray[np.float32] | None
]


def gradcam_figures(
    model: keras.Model, class_names: tuple[str, ...], images: Images, predictions: Predictions, count: int = 12
) -> dict[str, plots.Figure]:
    """Draw heat maps over at most `count` of a model's most confident mistakes on images `(N, H, W, 3)`.

    The figure is returned by its artifact path; none where the model has no heat maps.
    """
    wrong, captions = confident_mistakes(predictions, class_names, count)
    heat = grad_cam(model, images[wrong], predictions.predicted[wrong]) if len(wrong) else None
    if heat is None:
        return {}
    title = "What spoke for the most confident mistakes (Grad-CAM)"
    return {"gradcam.png": plots.image_grid(images[wrong], captions, title, heat=heat)}


def grad_cam(
    model: keras.Model, images: npt.NDArray[np.uint8], classes: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32] | None:
    """Compute the heat maps of `heat_maker` for images; `None` where the model has none."""
    make = heat_maker(model)
    return make and make(images, classes)


def heat_maker(model: keras.Model) -> HeatMaker | None:
    """Make a function that computes heat maps of what speaks for a class in images.

    A heat map is the sum of the last spatial features, weighted by their gradients, without negative values. The heat
    map of an ensemble is the mean of its members'. `None` is returned for a model without spatial features in front of
    its output.
    """
    makers = [make for network in member_networks(model) if (make := _network_maker(_inner(network)))]
    if len(makers) < len(member_networks(model)):
        return None

    def mean(images, classes):
        heats = [heat for make in makers if (heat := make(images, classes)) is not None]
        return np.mean(heats, axis=0) if len(heats) == len(makers) else None

    return mean


def _network_maker(model: keras.Model) -> HeatMaker | None:
    """Make the function of `heat_maker` for one network."""
    last = _last_spatial(model)
    if last is None:
        return None
    both = keras.Model(model.inputs[0], [last.output, _scores(model)])

    def make(images, classes):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in both.weights])  # frozen ones too, so that all is on the tape
            features, scores = both(images, training=False)
            chosen = tf.reduce_sum(tf.gather(scores, classes, batch_dims=1))
        gradients = tape.gradient(chosen, features)
        if gradients is None:
            return None
        weights = tf.reduce_mean(gradients, axis=(1, 2), keepdims=True)
        heat = tf.nn.relu(tf.reduce_sum(tf.cast(weights * features, "float32"), axis=-1)).numpy()
        return heat / np.maximum(heat.max(axis=(1, 2), keepdims=True), 1e-12)

    return make


def _inner(model: keras.Model) -> keras.Model:
    """Return the model inside of one that only augments its images."""
    outer = [layer for layer in model.layers if layer.weights]
    if len(outer) == 1 and isinstance(outer[0], keras.Model):
        return _inner(outer[0])
    return model


def _last_spatial(model: keras.Model) -> keras.layers.Layer | None:
    """Find the last layer that outputs spatial features, behind a first layer with weights."""
    layers = list(model.layers)
    weighted = next((i for i, layer in enumerate(layers) if layer.weights), len(layers))
    shapes: list[tuple[int, ...]] = [getattr(getattr(layer, "output", None), "shape", ()) for layer in layers]
    places = [i for i in range(weighted, len(layers)) if len(shapes[i]) == 4 and shapes[i][1] * shapes[i][2] > 1]
    return layers[places[-1]] if places else None


def _scores(model: keras.Model) -> Any:
    """Return the input of the last softmax, as a confident prediction has no gradient behind it."""
    last = model.layers[-1]
    if isinstance(last, keras.layers.Softmax) or getattr(last, "activation", None) is keras.activations.softmax:
        if isinstance(last, keras.layers.Dense):
            x: Any = keras.ops.cast(last.input, "float32")
            product: Any = keras.ops.matmul(x, last.kernel)
            return product + (0 if last.bias is None else last.bias)
        return last.input
    return model.outputs[0]
