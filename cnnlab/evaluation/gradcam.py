"""Where a model looked: Grad-CAM (Selvaraju et al., 2017, arXiv:1610.02391).

Keras has no word for gradients outside of a training, so that this room knows TensorFlow.
"""

import keras
import numpy as np
import tensorflow as tf

from cnnlab.evaluation import plots
from cnnlab.evaluation.predictions import confident_mistakes
from cnnlab.models.layers import member_networks


def looked_at(model, class_names, images, predictions, count=12) -> dict:
    """A figure by artifact path: where the model looked in its most confident mistakes; none where it cannot be said.

    Args:
        images: `(N, H, W, 3) uint8`, those of the `Predictions`.
    """
    wrong, captions = confident_mistakes(predictions, class_names, count)
    heat = grad_cam(model, images[wrong], predictions.predicted[wrong]) if len(wrong) else None
    if heat is None:
        return {}
    title = "What spoke for the most confident mistakes (Grad-CAM)"
    return {"gradcam.png": plots.image_grid(images[wrong], captions, title, heat=heat)}


def grad_cam(model, images, classes):
    """Heat maps of what speaks for a class, as `heat_maker`'s; `None` where the model has none."""
    make = heat_maker(model)
    return make and make(images, classes)


def heat_maker(model):
    """What makes heat maps of what speaks for a class: the last spatial features, weighted by their gradient, without
    negatives.

    Args:
        model: functional `keras.Model` from images to probabilities.

    Returns:
        A function of images, `(N, H, W, 3) uint8`, and classes, `(N,)` integers that each is explained for, which
        gives `(N, h, w) float32`, 0 to 1 for each image, in the size of the features, or `None` where no gradient
        reaches them; `None` where the model has no features with places before its answer. Of several members the
        mean of their maps.
    """
    makers = [_maker(_inner(network)) for network in member_networks(model)]
    if None in makers:
        return None

    def mean(images, classes):
        heats = [make(images, classes) for make in makers]
        return None if any(heat is None for heat in heats) else np.mean(heats, axis=0)

    return mean


def _maker(model):
    """`heat_maker` of one network."""
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


def _inner(model):
    """The model within one that only augments its images."""
    outer = [layer for layer in model.layers if layer.weights]
    if len(outer) == 1 and isinstance(outer[0], keras.Model):
        return _inner(outer[0])
    return model


def _last_spatial(model):
    """The last layer that gives features with places, behind a first one with weights."""
    layers = list(model.layers)
    weighted = next((i for i, layer in enumerate(layers) if layer.weights), len(layers))
    shapes = [getattr(getattr(layer, "output", None), "shape", ()) for layer in layers]
    places = [i for i in range(weighted, len(layers)) if len(shapes[i]) == 4 and shapes[i][1] * shapes[i][2] > 1]
    return layers[places[-1]] if places else None


def _scores(model):
    """What the last softmax is taken of: after it a confident answer has no gradient."""
    last = model.layers[-1]
    if isinstance(last, keras.layers.Softmax) or getattr(last, "activation", None) is keras.activations.softmax:
        if isinstance(last, keras.layers.Dense):
            x = keras.ops.cast(last.input, "float32")
            return keras.ops.matmul(x, last.kernel) + (0 if last.bias is None else last.bias)
        return last.input
    return model.outputs[0]
