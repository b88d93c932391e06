"""The table of models: how each is built and checked, the defaults that it gives the recipe, and what a search varies.

A custom model, a function of the user's in a file, gets a row of its own. A default of the recipe is looked up in the
model's row, else in `COMMON`; `dependent_defaults` holds those that depend on other fields of the recipe.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

from cnnlab.errors import expect_one_of
from cnnlab.models import custom_model
from cnnlab.models.backbones import BACKBONES
from cnnlab.models.cnn import check_cnn, cnn
from cnnlab.models.resnet9 import adapt, check_resnet9, resnet9
from cnnlab.models.transfer import check_transfer, transfer


@dataclass(frozen=True)
class Range:
    """A continuous hyperparameter from `low` to `high`, both inclusive; `log` searches its logarithm evenly."""

    low: float
    high: float
    log: bool = False

    def __str__(self) -> str:
        return f"{self.low:g}:{self.high:g}{' (log)' if self.log else ''}"


@dataclass(frozen=True)
class Model:
    """A row of the table: what is known of a model before it is built."""

    # `(input_shape, num_classes, **arguments) -> keras.Model` from raw `(N, H, W, 3) uint8` images to `(N, num_classes)
    # float32` probabilities.
    factory: Callable[..., Any]
    # `(side, **arguments)`, raises `ArgumentError` where the model cannot be built for images of that size.
    check: Callable[..., None] = lambda side, **arguments: None
    # Field of the recipe to default, for fields that are no arguments of the factory, or have another default there.
    defaults: Mapping[str, Any] = field(default_factory=dict)
    # What a search varies: hyperparameter to a tuple of choices or a `Range`.
    space: Mapping[str, Any] = field(default_factory=dict)
    # Optimizer to field to default, with an optimizer that is not the one in `defaults`.
    of_optimizers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    # `(model, images)`, called once with the model that was built and the training images.
    prepare: Callable[..., None] | None = None
    is_custom: bool = False  # whether it is a function of the user's, whose further arguments are given as `arguments`

    @property
    def arguments(self) -> dict[str, Any]:
        """List the factory's keyword arguments with their defaults (or `inspect.Parameter.empty`), but bound ones."""
        bound = getattr(self.factory, "keywords", {})
        parameters = [p for p in inspect.signature(self.factory).parameters.values() if p.name not in bound]
        if self.is_custom:
            parameters = parameters[2:]  # of whatever kind, after the shape and the number of classes
        kinds = [inspect.Parameter.KEYWORD_ONLY, *[inspect.Parameter.POSITIONAL_OR_KEYWORD] * self.is_custom]
        return {p.name: p.default for p in parameters if p.kind in kinds}

    @property
    def recipe_defaults(self) -> dict[str, Any]:
        """List the recipe's fields that say something about this model, with their defaults."""
        return {**COMMON, **self.arguments, **self.defaults}


# Defaults of every model, where its row has no others.
COMMON: dict[str, Any] = {"epochs": 5, "batch_size": 32, "augment": "none", "precision": "float32"}
COMMON["class_weights"] = "none"
# Defaults of every model that we compile: fields of the optimizer and the loss.
TRAINING: dict[str, Any] = {
    **{"optimizer": "adam", "learning_rate": 1e-3, "momentum": None, "weight_decay": 0.0},
    **{"schedule": "constant", "warmup": None, "label_smoothing": 0.0, "ema": 0.0, "lookahead": 0.0, "clip_norm": None},
    "bias_lr_scale": 1.0,
}
# Defaults with an optimizer that is not the model's own, where its row has no others; decay and momentum are Keras's.
OF_OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"weight_decay": 0.004},
    "sgd": {"momentum": 0.9},
    "muon": {"weight_decay": 0.004, "momentum": 0.95},
}
# Found on 17 flowers at 224 pixels and CIFAR-10 at 96, 979 and 45,000 images, with an EfficientNet-Lite0 of ImageNet.
HEAD: dict[str, Any] = {**TRAINING, "learning_rate": 2e-3, "schedule": "cosine", "dense_units": 256, "dropout": 0.2}
FROZEN: dict[str, Any] = {
    **{"frozen_precision": "auto", "feature_dtype": "auto"},
    **{"fine_tune": 0, "fine_tune_from": None, "fine_tune_learning_rate": None, "layer_decay": None},
}
HEAD_OPTIMIZERS: dict[str, dict[str, Any]] = {"sgd": {"learning_rate": 2e-2}}
RATES: dict[str, Any] = {"learning_rate": Range(1e-4, 1e-2, log=True)}
HEAD_SPACE: dict[str, Any] = {
    **RATES,
    "dense_units": (0, 128, 256, 512),
    "dropout": Range(0.0, 0.7),
    "weight_decay": Range(1e-4, 1e-1, log=True),
    "train_blocks": (0, 1),
}
SEARCHED: Any = (HEAD_SPACE, HEAD_OPTIMIZERS)

MODELS: Mapping[str, Model] = MappingProxyType(
    {
        "cnn": Model(
            cnn,
            check_cnn,
            {**TRAINING, "image_size": 32},
            {
                "blocks": (2, 3, 4),
                "filters": (32, 64, 128),
                "kernel_size": (3, 5),
                # With "valid", four blocks or large kernels use a 32 pixel image up.
                "padding": ("same",),
                "dense_units": (64, 128, 256),
                "dropout": Range(0.0, 0.5),
                "learning_rate": Range(3e-4, 3e-3, log=True),
                "augment": ("none", "flip", "full"),
                "batch_size": (32, 64, 128),
            },
            of_optimizers={"sgd": {"learning_rate": 1e-2}},
        ),
        "resnet9": Model(
            resnet9,
            check_resnet9,
            {
                **{**TRAINING, "image_size": 32, "epochs": 14, "batch_size": 512, "precision": "auto"},
                **{"optimizer": "sgd", "learning_rate": 0.75, "momentum": 0.85, "weight_decay": 0.009},
                **{"schedule": "one-cycle", "warmup": 0.25, "label_smoothing": 0.2, "augment": "altflip+crop:0.0625"},
                **{"lookahead": 0.77, "bias_lr_scale": 64.0, "progressive_resizing": 0.0},
            },
            {
                "learning_rate": Range(0.2, 2.0, log=True),
                "weight_decay": Range(2e-3, 3e-2, log=True),
                "label_smoothing": Range(0.0, 0.3),
                "warmup": (0.1, 0.25, 0.4),
                "augment": ("altflip", "altflip+crop:0.0625", "altflip+crop", "altflip+crop:0.0625+cutout"),
                "lookahead": (0.0, 0.77, 0.9),
                "batch_size": (256, 512),
            },
            of_optimizers={
                "adam": {"learning_rate": 2e-3},
                "adamw": {"learning_rate": 2e-3, "weight_decay": 0.009},
                "muon": {"learning_rate": 0.02, "momentum": 0.9, "weight_decay": 0.15},
            },
            prepare=adapt,
        ),
        # The seed's VGG16: Flatten and a dense layer, at the pictures' usual 32 pixels.
        "vgg16": Model(
            partial(transfer, backbone="vgg16"),
            partial(check_transfer, backbone="vgg16"),
            {
                **{**TRAINING, "learning_rate": 1e-4, "image_size": 32, **FROZEN},
                **{"pooling": "flatten", "dense_units": 256, "preprocessing": "vgg16"},
            },
            {
                "learning_rate": Range(1e-5, 1e-2, log=True),
                "dense_units": (64, 128, 256, 512),
                "dropout": Range(0.0, 0.7),
                "weight_decay": Range(1e-4, 1e-1, log=True),
                "preprocessing": ("vgg16", "scale"),
                "train_blocks": (0, 1),
            },
            of_optimizers={"sgd": {"learning_rate": 1e-3}},
        ),
        # Any backbone: --backbone says which.
        "transfer": Model(transfer, check_transfer, {**HEAD, **FROZEN}, *SEARCHED),
        **{
            name: Model(
                partial(transfer, backbone=name), partial(check_transfer, backbone=name), {**HEAD, **FROZEN}, *SEARCHED
            )
            for name in BACKBONES
            if name != "vgg16"
        },
    }
)


def dependent_defaults(model: Model, values: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Look up the defaults that depend on other fields of the recipe.

    Args:
        model: the row of the recipe's model.
        values: field to value, with the model's defaults in what was left open.
        asked: the fields that were asked for.

    Returns:
        Field to default, for fields that may have been asked for too; `None` is a field without a value.
    """
    optimizer, is_models_own = values.get("optimizer"), values.get("optimizer") == model.defaults.get("optimizer")
    # The model's own values of these do not go with what was asked for.
    unfit = () if is_models_own else ("momentum", "bias_lr_scale")
    unfit += ("warmup",) if values.get("schedule") == "plateau" else ()
    unfit += ("lookahead",) if values.get("ema") else ()
    unfit += ("bias_lr_scale",) if values.get("layer_decay") not in (None, 1) else ()
    defaults = {name: TRAINING[name] for name in unfit if name in values}
    if optimizer and not is_models_own:
        defaults |= {**OF_OPTIMIZERS.get(optimizer, {}), **model.of_optimizers.get(optimizer, {})}
    if values.get("schedule") == "one-cycle":
        defaults["warmup"] = model.defaults.get("warmup") or 0.3
    if values.get("fine_tune"):
        rate = {**values, **defaults, **asked}.get("learning_rate")
        defaults |= {"fine_tune_from": "top", "fine_tune_learning_rate": rate and rate / 10}
    return defaults


def find_model(name: str) -> Model:
    """Look up the row of a model, or make one for a function in a file, given as `my_models.py:build_net`.

    Raises:
        ArgumentError: no model has that name, or the file has no such function.
    """
    if custom_model.is_custom(name):
        # Its optimizer is its own where it compiles itself, so that a default of ours would say what is not so.
        defaults = {**dict.fromkeys(TRAINING), "image_size": 32, "feature_dtype": "auto"}
        more: dict[str, Any] = {"of_optimizers": {"sgd": {"learning_rate": 1e-2}}, "is_custom": True}
        return Model(custom_model.load(name), defaults=defaults, space=RATES, **more)
    if name.startswith(custom_model.GIVEN):
        return Model(custom_model.refuse_to_build, defaults=dict.fromkeys((*TRAINING, "image_size")))
    if name not in MODELS:
        usual = ("cnn", "resnet9", "vgg16", "transfer")
        near = [*usual, *sorted(set(MODELS) - set(usual), key=lambda name: BACKBONES[name].parameters)]
        expect_one_of("model", name, near, shown=[*usual, "one of 'cnnlab models --available'", "FILE.py:FUNCTION"])
    return MODELS[name]
