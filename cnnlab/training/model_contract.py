"""Check that a user's own Keras model can be trained here, and find the recipe that is logged with any model.

Every model takes raw images and gives class probabilities. What `build_model` built is known by the recipe that it was
built from; any other model is the user's own.
"""

from __future__ import annotations

import dataclasses
import json
import weakref
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from cnnlab.data.dataset import ImageDataset
from cnnlab.errors import LabError, expecting
from cnnlab.models import safe_loading
from cnnlab.models.custom_model import GIVEN
from cnnlab.recipe import DATA_FIELDS, PRECISIONS, Recipe, ResolvedRecipe
from cnnlab.training import runtime
from cnnlab.training.optimizers import takes_one_hot_labels
from cnnlab.utils.log import log

# Fields of the recipe that the training follows, whatever the model was built from.
FOLLOWED = (*DATA_FIELDS, "stored_size", "seed", "epochs", "batch_size", "class_weights", "patience", "deterministic")
# And those that it follows with models that `build_model` has built.
STAGES = ("progressive_resizing", "fine_tune", "fine_tune_from", "fine_tune_learning_rate", "layer_decay")
COMPILE = "model.compile('adam', 'sparse_categorical_crossentropy', metrics=['accuracy'])"


@dataclass(frozen=True)
class Built:
    """What a model was built from: its recipe, and the optimizer that it was compiled with."""

    recipe: Recipe
    optimizer: keras.optimizers.Optimizer


_built: weakref.WeakKeyDictionary[keras.Model, Built] = weakref.WeakKeyDictionary()


def remember_recipe(model: keras.Model, recipe: Recipe) -> None:
    """Remember from which recipe a compiled model was built."""
    _built[model] = Built(recipe, model.optimizer)


def recipe_of(model: keras.Model, recipe: Recipe, dataset: ImageDataset) -> ResolvedRecipe:
    """Return the recipe that a model is really trained with, and warn of what was asked for and is not in it.

    Args:
        model: may be built from this recipe, from another one, or by the user, who may also have compiled it anew.
        recipe: gives what the training follows: data, epochs, batch size, seed, ...
        dataset: that it is trained on.

    Raises:
        LabError: a model of the user's own does not take the images, or gives no class probabilities for them.
    """
    used, built = recipe.with_defaults(), _built.get(model) if isinstance(model, keras.Model) else None
    if built and model.optimizer is built.optimizer:
        if built.recipe == recipe:
            return used
        source, followed = built.recipe.with_defaults(), (*FOLLOWED, *STAGES)
    else:
        what = f"the model '{getattr(model, 'name', '')}'"
        expect_compiled(model, what)
        expect_probabilities(model, what, dataset)
        expect_labels(model, what, dataset)
        source, followed = Recipe(model=f"{GIVEN}{model.name}").with_defaults(), FOLLOWED
        precision = policy if (policy := model.dtype_policy.name) in PRECISIONS else None
        source = dataclasses.replace(source, image_size=max(8, dataset.image_shape[0]), precision=precision)
    real = dataclasses.replace(source, **{name: getattr(used, name) for name in followed})
    asked = {f.name: getattr(recipe, f.name) for f in dataclasses.fields(Recipe) if f.name not in followed}
    defaults = {f.name: f.default for f in dataclasses.fields(Recipe)}
    lost = [f"{n} {v}" for n, v in asked.items() if v not in (defaults[n], getattr(real, n))]
    if lost:
        log.warning(f"'{model.name}' was not built with {', '.join(lost)}; the run records what the model really is.")
    return real


def expect_compiled(model: Any, what: str) -> None:
    """Raise `LabError` unless this is a compiled Keras model."""
    if not isinstance(model, keras.Model):
        raise LabError(f"Expected a compiled keras.Model. Received: {type(model).__name__}. Build one, and compile it.")
    if not model.compiled or model.optimizer is None:
        raise LabError(f"Expected {what} to be compiled. Received one that is not. Call {COMPILE}.")


def expect_probabilities(model: keras.Model, what: str, dataset: ImageDataset) -> None:
    """Raise `LabError` unless a model with finite weights gives class probabilities for two images of the data set."""
    expected = f"class probabilities of shape (N, {len(dataset.class_names)})"
    shape = f"(N, {', '.join(map(str, dataset.image_shape))})"
    with expecting(f"{what} to take images {shape} uint8", "Build it for this shape."):
        given = model(dataset.train.images[:2], training=False)
    if isinstance(given, (list, tuple, dict)):
        raise LabError(f"Expected {what} to give {expected}. Received: {len(given)} outputs. Leave the others out.")
    probabilities = runtime.to_numpy(given).astype("float64")
    if probabilities.ndim != 2 or probabilities.shape[1] != len(dataset.class_names):
        raise LabError(
            f"Expected {what} to give {expected}. Received: shape {probabilities.shape}. End it with "
            f"Dense({len(dataset.class_names)}, activation='softmax')."
        )
    if not all(np.isfinite(value).all() for value in model.get_weights()):
        raise LabError(f"Expected {what} to start with finite weights. Received others. Correct it.")
    # Written so that NaN fails.
    if not (abs(probabilities.sum(axis=1) - 1).max() <= 0.02 and probabilities.min() >= 0):
        raise LabError(
            f"Expected {what} to give {expected}, which sum to 1. Received: others. End it with a softmax, and compile "
            "it with a loss of probabilities, so without from_logits."
        )


def expect_labels(model: keras.Model, what: str, dataset: ImageDataset) -> None:
    """Raise `LabError` unless the loss and metrics of a compiled model take probabilities and the data set's labels."""
    if getattr(model.loss, "from_logits", False):
        raise LabError(
            f"Expected {what} to be compiled with a loss of probabilities. Received: from_logits=True. Leave it out."
        )
    labels = dataset.train.labels[:3]
    if takes_one_hot_labels(model):
        labels = np.eye(len(dataset.class_names), dtype="float32")[labels]
    taken = f"the loss and metrics that {what} is compiled with to take labels that are integers"
    with expecting(taken, f"Use sparse ones: {COMPILE}."):
        model.test_on_batch(dataset.train.images[:3], labels)
        model.reset_metrics()


def expect_saveable(model: keras.Model, what: str) -> None:
    """Raise `LabError` before the training where a model could not be loaded after it; warn where no command will."""
    with safe_loading.uncompiled(model):
        text = model.to_json()
    cure = "Use Keras's own layers, or give yours get_config() and @keras.saving.register_keras_serializable()."
    with expecting(f"{what} to be saved and loaded again", cure):
        keras.models.model_from_json(text)
    try:
        safe_loading.check_config(json.loads(text))
    except safe_loading.RefusedFileError as error:
        log.warning(f"{what} will not load in 'cnnlab predict', 'cnnlab serve' or a registration: {error}.")
