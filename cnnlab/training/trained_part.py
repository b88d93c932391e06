"""Choose which part of a model `fit` trains, and on what inputs.

It is the head on stored features where the first layers are frozen, an ensemble's members side by side, a model for
crops, or the model itself; each has the model's own layers, so that training the part trains the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import keras

from cnnlab.models.augmentation import has_alternating_flip, mixing_strengths
from cnnlab.models.layers import member_networks, stack_outputs
from cnnlab.recipe import ResolvedRecipe
from cnnlab.training import multi_device
from cnnlab.training.frozen_layers import Rows, compute_features, separate_frozen_layers
from cnnlab.training.optimizers import compile_like
from cnnlab.training.stages import Stage, clone_for_crops


@dataclass(frozen=True)
class TrainedPart:
    """The part of a model that one stage trains."""

    model: keras.Model  # the compiled model that is fitted
    predictor: keras.Model  # a model from the same inputs to probabilities `(N, num_classes)`
    inputs: Mapping[str, Rows]  # by split, images `(N, H, W, 3) uint8` or features `(N, ...)`
    on_features: bool = False  # whether the inputs are features
    members: int = 1  # number of networks that are trained side by side; a batch holds its labels as many times


def select_trained_part(
    model: keras.Model, images: Mapping[str, Rows], recipe: ResolvedRecipe, stage: Stage
) -> TrainedPart:
    """Choose the part of a compiled model that a stage trains.

    `images` are by split, `(N, H, W, 3) uint8`, the training images first.
    """
    networks = member_networks(model)  # without TTA views, which are for predictions: training on one costs less
    if stage.on_crops:
        networks = [clone_for_crops(network) for network in networks]
    trained = networks[0] if len(networks) == 1 else stack_outputs(networks)
    if trained is not model:
        compile_like(trained, model)
        part = TrainedPart(trained, model, images, members=len(networks))
    elif (head_and_features := features_by_split(model, images, recipe)) is not None:
        head, features = head_and_features
        part = TrainedPart(head, head, features, on_features=True)
    else:
        part = TrainedPart(model, model, images)
    if multi_device.device_count(model) == 1:
        return part
    replicated = multi_device.replicate(part.model, model)
    return dataclasses.replace(part, model=replicated, predictor=multi_device.on_one_device(part.predictor))


def features_by_split(
    model: keras.Model, images: Mapping[str, Rows], recipe: ResolvedRecipe
) -> tuple[keras.Model, dict[str, Rows]] | None:
    """Compute, or read from the cache, the features that a model's frozen layers give for its images.

    `images` are by split, `(N, H, W, 3) uint8`, the training images first.

    Returns:
        The compiled head, from features to probabilities, and the features by split, `(N, ...)`. `None` where the model
        is trained on images: no first layers are frozen, or there is no room for the features.
    """
    changes_batches = (
        mixing_strengths(recipe.augment) or has_alternating_flip(recipe.augment) or recipe.progressive_resizing
    )
    parts = None if changes_batches else separate_frozen_layers(model)
    if parts is None:
        return None
    dtype = "float16" if recipe.feature_dtype == "float16" else "float32"
    features = compute_features(parts.frozen, *images.values(), flips=parts.flips, dtype=dtype)
    return None if features is None else (parts.head, dict(zip(images, features, strict=True)))
