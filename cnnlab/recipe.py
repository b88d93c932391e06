"""The training recipe: one frozen dataclass whose fields are the run's params and the command line's options."""

import dataclasses
import json
import math
from dataclasses import dataclass, field

from cnnlab.errors import ArgumentError, expect_one_of
from cnnlab.models import AUGMENTATIONS, MODELS, PADDINGS, PREPROCESSING, factory_defaults
from cnnlab.precision import PRECISIONS


def _field(default, help, *, low=None, above=None, high=None, choices=None, models=None, unsaid=None):
    """A field with its help text, bounds (`low` inclusive, `above` exclusive), the models it applies to, and what it
    means when it is left `None`, in words.
    """
    bounds = {"low": low, "above": above, "high": high, "choices": choices}
    return field(default=default, metadata={"help": help, **bounds, "models": models, "unsaid": unsaid})


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run, so that a run can be repeated from what it logged.

    A field left `None` that the model's factory also takes gets the factory's own default. `dataset` and `weights`
    left `None` mean "the usual one, or its embedded stand-in where it cannot be downloaded"; the runner stores what
    was really used.

    Raises:
        ArgumentError: a field is out of bounds.
    """

    model: str = _field("cnn", "Model factory.")
    dataset: str | None = _field(
        None, "cifar10, cifar100, mnist, fashion_mnist, digits, or an image folder.", unsaid="cifar10"
    )
    image_size: int = _field(32, "Images are resized to this many pixels a side.", low=8, high=512)
    val_fraction: float = _field(
        0.1, "Share of the training set held out for validation; 0 validates on the test set.", low=0, high=0.9
    )
    limit: int | None = _field(None, "Use at most this many training images (stratified), tests in proportion.", low=1)
    split_seed: int = _field(0, "Seed of the splits and of the choice that limit makes.", low=0, high=2**31 - 1)
    seed: int = _field(0, "Seed of the initial weights and the shuffling.", low=0, high=2**31 - 1)
    epochs: int = _field(5, "Passes over the training set.", low=1, high=10_000)
    batch_size: int = _field(32, "Images per optimizer step.", low=1, high=65_536)
    learning_rate: float | None = _field(None, "Adam's learning rate.", above=0, high=10)
    dense_units: int | None = _field(None, "Width of the dense layer before the softmax.", low=1, high=65_536)
    dropout: float | None = _field(None, "Dropout rate after the dense layer.", low=0, high=0.95)
    weight_decay: float | None = _field(None, "Adam's decoupled weight decay.", low=0, high=1)
    augment: str = _field("none", "Augmentation while training.", choices=AUGMENTATIONS)
    patience: int | None = _field(
        None, "Stop after this many epochs without a lower val_loss and keep the best weights.", low=1
    )
    precision: str = _field(
        "float32", "Arithmetic; auto is mixed_bfloat16 where the processor has it in hardware.", choices=PRECISIONS
    )
    deterministic: bool = _field(False, "Only operations that repeat bit for bit on the same machine.")
    filters: tuple[int, ...] | None = _field(
        None, "Filters of each convolution block.", low=1, high=4096, models=("cnn",)
    )
    kernel_size: int | None = _field(None, "Side of the convolution kernels.", low=1, high=11, models=("cnn",))
    padding: str | None = _field(None, "Padding of the convolutions.", choices=PADDINGS, models=("cnn",))
    weights: str | None = _field(
        None, "imagenet, random, or a weights file of VGG16 without its top.", models=("vgg16",)
    )
    preprocessing: str | None = _field(
        None, "VGG16's own, or plain 0..1 scaling.", choices=PREPROCESSING, models=("vgg16",)
    )
    train_blocks: int | None = _field(
        None, "Convolution blocks trained too, counted from the top.", low=0, high=5, models=("vgg16",)
    )

    def __post_init__(self):
        if isinstance(self.filters, list):
            object.__setattr__(self, "filters", tuple(self.filters))
        for name, default in factory_defaults(self.model).items():
            if name != "weights" and getattr(self, name, default) is None:
                object.__setattr__(self, name, default)
        for f in dataclasses.fields(self):
            _check(f.name, getattr(self, f.name), f.metadata)
        if self.patience and not self.val_fraction:
            raise ArgumentError(
                "Expected val_fraction above 0 with patience, since stopping early on the test set would choose by it. "
                "Received: val_fraction=0. Leave patience out or hold out a validation set."
            )

    def params(self) -> dict:
        """The fields that apply to this model, as flat MLflow params."""
        return {
            f.name: ",".join(map(str, value)) if isinstance(value, tuple) else value
            for f in dataclasses.fields(self)
            if applies(f, self.model) and (value := getattr(self, f.name)) is not None
        }

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        return cls(**json.loads(text))


def default_text(recipe_field) -> str:
    """A field's default in words, for `--help`: its own, or those of the factories that take it."""
    if unsaid := recipe_field.metadata["unsaid"]:
        return unsaid
    if recipe_field.default is not None:
        return str(recipe_field.default)
    defaults = {model: factory_defaults(model).get(recipe_field.name) for model in MODELS}
    texts = {
        model: ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        for model, value in defaults.items()
        if value is not None
    }
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return ", ".join(f"{text} for {model}" for model, text in texts.items())


def applies(recipe_field: dataclasses.Field, model: str) -> bool:
    """Whether a field of the recipe says anything about this model."""
    models = recipe_field.metadata["models"]
    return models is None or model in models or model not in MODELS


def bounds_text(metadata) -> str:
    """A field's bounds in words, for error messages and `--help`; empty where there are none."""
    if metadata["choices"]:
        return "one of: " + ", ".join(metadata["choices"])
    parts = []
    if metadata["low"] is not None:
        parts.append(f"at least {metadata['low']}")
    if metadata["above"] is not None:
        parts.append(f"above {metadata['above']}")
    if metadata["high"] is not None:
        parts.append(f"at most {metadata['high']}")
    return " and ".join(parts)


def _check(name, value, metadata):
    if value is None:
        return
    if metadata["choices"]:
        expect_one_of(name, value, metadata["choices"])
    low, above, high = metadata["low"], metadata["above"], metadata["high"]
    if low is above is high is None:
        return
    for number in value if isinstance(value, tuple) else (value,):
        # Written so that NaN fails.
        inside = (
            isinstance(number, (int, float))
            and math.isfinite(number)
            and (low is None or number >= low)
            and (above is None or number > above)
            and (high is None or number <= high)
        )
        if not inside:
            raise ArgumentError(f"Expected {name} to be {bounds_text(metadata)}. Received: {number}.")
    if value == ():
        raise ArgumentError(f"Expected {name} to name at least one number. Received: nothing.")
