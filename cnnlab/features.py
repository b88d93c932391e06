"""The features of frozen layers, computed before a training asks for them."""

import time
from dataclasses import dataclass

from cnnlab.errors import ArgumentError
from cnnlab.models import custom_model
from cnnlab.resolve import build_model, prepare
from cnnlab.tracking import mlflow_store
from cnnlab.training.trainer import features_by_part
from cnnlab.utils import user_cache


@dataclass(frozen=True)
class Stored:
    """The entries of the cache (see `cached.entries`) that are `new`, the `pictures` they are of, and the `seconds`."""

    new: list
    pictures: int
    seconds: float


def store_features(recipe, parts=("train", "val", "test")) -> Stored:
    """Put the features that a training of this recipe starts from into the cache, where it finds them.

    Args:
        recipe: a `Recipe` of a model with frozen layers; what concerns its head only makes no difference.
        parts: of the data; a training uses all of them, a trial of a search no "test".

    Raises:
        ArgumentError: the recipe's model is not cut behind its frozen layers, so nothing is stored for it.
        LabError: data or weights cannot be had, or the features cannot be stored.
    """
    mlflow_store.expect_usable_store(writes=False)
    with custom_model.pinned_sources([recipe.model]), mlflow_store.opened(writes=False):
        dataset, [prepared] = prepare([recipe])
        model = build_model(prepared.recipe, dataset)
    images = {part: getattr(dataset, part).images for part in parts}
    before = {entry["key"] for entry in user_cache.entries()}
    started = time.perf_counter()
    if features_by_part(model, images, prepared.recipe) is None:
        raise ArgumentError(
            f"Expected a model whose first layers are frozen and have no randomness. Received: {recipe.label}, with "
            "none that are worth storing. Use another backbone, or leave --augment and --train-blocks out."
        )
    seconds = time.perf_counter() - started
    new = [entry for entry in user_cache.entries() if entry["key"] not in before]
    return Stored(new, sum(map(len, images.values())), seconds)
