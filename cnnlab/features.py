"""Compute and store the features of frozen layers before a training asks for them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cnnlab.errors import ArgumentError
from cnnlab.recipe import Recipe, RunOptions
from cnnlab.resolve import build_model, prepare
from cnnlab.tracking.session import Session, opened_store
from cnnlab.training.trained_part import features_by_split
from cnnlab.utils import user_cache
from cnnlab.utils.ray_workers import passes_on_cluster


@dataclass(frozen=True)
class Stored:
    """The entries of the cache (see `user_cache.entries`) that are `new`, how many `pictures` they are of, and the
    `seconds` it took.
    """

    new: list[dict[str, Any]]
    pictures: int
    seconds: float


def store_features(
    recipe: Recipe, splits: Sequence[str] = ("train", "val", "test"), *, options: RunOptions | None = None
) -> Stored:
    """Put the features that a training of this recipe starts from into the cache, where it finds them.

    Args:
        recipe: a `Recipe` of a model with frozen layers; what concerns its head only makes no difference.
        splits: of the data; a training uses all of them, a trial of a search no "test".
        options: how the job is carried out: a cluster spreads the pass over its nodes.

    Raises:
        ArgumentError: the recipe's model is not cut behind its frozen layers, so nothing is stored for it.
        LabError: data or weights cannot be had, or the features cannot be stored.
    """
    options = options or RunOptions()
    with Session([recipe.model], writes=False, options=options), opened_store(writes=False):
        [(dataset, prepared)] = prepare([recipe], options=options)
        model = build_model(prepared.recipe, dataset)
    images = {split: getattr(dataset, split).images for split in splits}
    before = {entry["key"] for entry in user_cache.entries()}
    started = time.perf_counter()
    with passes_on_cluster(options.cluster, options.cpus, options.gpus):
        features = features_by_split(model, images, prepared.recipe)
    if features is None:
        raise ArgumentError(
            f"Expected a model whose first layers are frozen and have no randomness. Received: {recipe.label}, with "
            "none that are worth storing. Use another backbone, or leave augment and train_blocks out."
        )
    seconds = time.perf_counter() - started
    new = [entry for entry in user_cache.entries() if entry["key"] not in before]
    return Stored(new, sum(map(len, images.values())), seconds)
