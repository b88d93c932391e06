"""Every model by name: a row of the table, or a function of the user's own in a file."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType

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

    def __str__(self):
        return f"{self.low:g}:{self.high:g}{' (log)' if self.log else ''}"


@dataclass(frozen=True)
class Model:
    """What there is to know of a model before it is built.

    Attributes:
        factory: `(input_shape, num_classes, **arguments) -> keras.Model` from raw `(N, H, W, 3) uint8` images to
            `(N, num_classes) float32` probabilities.
        defaults: of fields of the recipe that are not the factory's, or that it has other defaults for.
        check: `(side, **arguments)`, raises `ArgumentError` where the model cannot be built for images of that size.
        space: what a search varies, hyperparameter to a tuple of choices or a `Range`.
        of_optimizers: optimizer to what `defaults` would be with that one.
        prepare: `(model, images)`, called once with the model that was built and the training images.
        own: whether it is a function of the user's, whose further arguments are given as `arguments`.
    """

    factory: Callable
    check: Callable = lambda side, **arguments: None
    defaults: Mapping = field(default_factory=dict)
    space: Mapping = field(default_factory=dict)
    of_optimizers: Mapping = field(default_factory=dict)
    prepare: Callable | None = None
    own: bool = False

    @property
    def arguments(self) -> dict:
        """The factory's keyword arguments with their defaults (or `inspect.Parameter.empty`), without bound ones."""
        bound = getattr(self.factory, "keywords", {})
        parameters = [p for p in inspect.signature(self.factory).parameters.values() if p.name not in bound]
        if self.own:
            parameters = parameters[2:]  # of whatever kind, after the shape and the number of classes
        kinds = (inspect.Parameter.KEYWORD_ONLY, *((inspect.Parameter.POSITIONAL_OR_KEYWORD,) if self.own else ()))
        return {p.name: p.default for p in parameters if p.kind in kinds}

    @property
    def recipe_defaults(self) -> dict:
        """The recipe's fields that say something about this model, with their defaults."""
        return {**COMMON, **self.arguments, **self.defaults}


# Of every model, where its row has no others.
COMMON = {"epochs": 5, "batch_size": 32, "augment": "none", "precision": "float32", "class_weights": "none"}
# Of models that we compile.
TRAINING = {
    **{"optimizer": "adam", "learning_rate": 1e-3, "momentum": None, "weight_decay": 0.0},
    **{"schedule": "constant", "warmup": None, "label_smoothing": 0.0, "ema": 0.0, "lookahead": 0.0, "clip_norm": None},
    "bias_lr_scale": 1.0,
}
# Of an optimizer that is not the model's own, where the model's row has no others; decay and momentum are Keras's.
OF_OPTIMIZERS = {
    "adamw": {"weight_decay": 0.004},
    "sgd": {"momentum": 0.9},
    "muon": {"weight_decay": 0.004, "momentum": 0.95},
}
# Found on 17 flowers at 224 pixels and CIFAR-10 at 96, 979 and 45,000 images, with an EfficientNet-Lite0 of ImageNet.
HEAD = {**TRAINING, "learning_rate": 2e-3, "schedule": "cosine", "dense_units": 256, "dropout": 0.2}
FROZEN = {
    **{"frozen_precision": "auto", "feature_dtype": "auto"},
    **{"fine_tune": 0, "fine_tune_from": None, "fine_tune_learning_rate": None, "layer_decay": None},
}
HEAD_OPTIMIZERS = {"sgd": {"learning_rate": 2e-2}}
RATES = {"learning_rate": Range(1e-4, 1e-2, log=True)}
HEAD_SPACE = {
    **RATES,
    "dense_units": (0, 128, 256, 512),
    "dropout": Range(0.0, 0.7),
    "weight_decay": Range(1e-4, 1e-1, log=True),
    "train_blocks": (0, 1),
}


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
        "transfer": Model(transfer, check_transfer, {**HEAD, **FROZEN}, HEAD_SPACE, HEAD_OPTIMIZERS),
        **{
            name: Model(
                partial(transfer, backbone=name),
                partial(check_transfer, backbone=name),
                {**HEAD, **FROZEN},
                HEAD_SPACE,
                HEAD_OPTIMIZERS,
            )
            for name in BACKBONES
            if name != "vgg16"
        },
    }
)


def find_model(name) -> Model:
    """The row of a model, or one for a function in a file, given as `my_models.py:build_net`.

    Raises:
        ArgumentError: no model has that name, or the file has no such function.
    """
    if custom_model.is_custom(name):
        # Its optimizer is its own where it compiles itself, so that a default of ours would say what is not so.
        defaults = {**dict.fromkeys(TRAINING), "image_size": 32, "feature_dtype": "auto"}
        return Model(
            custom_model.load(name),
            defaults=defaults,
            space=RATES,
            of_optimizers={"sgd": {"learning_rate": 1e-2}},
            own=True,
        )
    if name not in MODELS:
        usual = ("cnn", "resnet9", "vgg16", "transfer")
        near = [*usual, *sorted(set(MODELS) - set(usual))]
        expect_one_of("model", name, near, shown=[*usual, "one of 'cnnlab models --available'", "FILE.py:FUNCTION"])
    return MODELS[name]
