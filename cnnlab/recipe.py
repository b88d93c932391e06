"""The training recipe: one frozen dataclass whose fields are the run's params and the command line's options."""

import dataclasses
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cnnlab.errors import ArgumentError, reading
from cnnlab.fields import Unsaid, check, expect_to_combine, field, plain, unsaid
from cnnlab.models import custom_model
from cnnlab.models.augmentation import parse_augment
from cnnlab.models.model_table import COMMON, MODELS, OF_OPTIMIZERS, TRAINING, Range, find_model
from cnnlab.utils.text import escape_control_characters

PRECISIONS = ("float32", "mixed_bfloat16", "auto")
OPTIMIZERS = ("adam", "adamw", "sgd", "muon")
SCHEDULES = ("constant", "cosine", "one-cycle", "plateau")
# What fields were called in earlier versions: stored recipes and runs, options and --space still take these names.
OLD_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "fit": "resize_mode",
        "picture_size": "stored_size",
        "small_first": "progressive_resizing",
        "offset_rate": "bias_lr_scale",
        "test_views": "tta_views",
        "members": "ensemble_size",
    }
)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run, so that a run can be repeated from what it logged.

    A field left `None` that the model has a default for gets that default, and gives it up for that of another model
    when `dataclasses.replace` changes the model. `dataset` and `weights` left `None` mean "the usual one, or its
    embedded stand-in where it cannot be downloaded", `image_size` and `stored_size` the usual ones for the pictures;
    the run stores what was really used.

    Raises:
        ArgumentError: a field is out of bounds.
    """

    model: str = field("cnn", "Model factory.")
    dataset: str | None = field(
        None, "cifar10, cifar100, mnist, fashion_mnist, digits, or an image folder.", unsaid="cifar10"
    )
    image_size: int | None = field(
        None,
        "Pixels a side inside the model.",
        low=8,
        high=1024,
        unsaid="the model's usual one, of a named set 32 for cnn, resnet9 and vgg16; at most the pictures' own for "
        "these three, 3 times it for the others",
    )
    resize_mode: str | None = field(
        None,
        "How a picture of a folder becomes a square: crop cuts its middle out, pad adds grey, stretch changes its "
        "shape.",
        choices=("crop", "pad", "stretch"),
        unsaid="crop",
    )
    labels: str | None = field(None, "CSV file with the labels of the pictures, in place of class folders.")
    class_names: str | None = field(None, "CSV file with the names of classes whose folders are ids.")
    skip_bad: bool = field(False, "Leave files that do not decode out, and class folders without pictures.")
    drop_duplicates: bool = field(
        False,
        "Keep pictures that validation or test has too, that come again or have two labels out of training.",
    )
    stored_size: int | None = field(
        None,
        "Pixels a side of the pictures in memory.",
        low=8,
        high=1024,
        unsaid="their own size where image_size is larger and the model enlarges them, else image_size",
    )
    val_fraction: float = field(
        0.1, "Share of the training set held out for validation; 0 validates on the test set.", low=0, high=0.9
    )
    limit: int | None = field(None, "Use at most this many training images (stratified), tests in proportion.", low=1)
    split_seed: int = field(0, "Seed of the splits and of the choice that limit makes.", low=0, high=2**31 - 1)
    seed: int = field(0, "Seed of the initial weights and the shuffling.", low=0, high=2**31 - 1)
    epochs: int | None = field(
        None, "Passes over the training set, before any fine-tuning.", low=1, high=10_000, space=(5, 10, 20)
    )
    batch_size: int | None = field(None, "Images per optimizer step.", low=1, high=65_536, space=(32, 64, 128, 256))
    optimizer: str | None = field(
        None,
        "Of the weights; muon is AdamW for the last layer and whatever is no convolution or dense layer.",
        choices=OPTIMIZERS,
        space=OPTIMIZERS,
    )
    learning_rate: float | None = field(
        None, "The optimizer's, at its highest.", above=0, high=10, space=Range(1e-4, 1e-2, log=True)
    )
    momentum: float | None = field(
        None,
        "Nesterov momentum of sgd and muon.",
        low=0,
        high=0.999,
        unsaid="0.9 with sgd, 0.95 with muon",
        space=Range(0.8, 0.95),
    )
    weight_decay: float | None = field(
        None, "Decoupled weight decay.", low=0, high=1, space=Range(1e-5, 1e-1, log=True)
    )
    schedule: str | None = field(
        None,
        "Of the learning rate; cosine falls to 0 by the last epoch, one-cycle rises before it falls, plateau halves it "
        "after 2 epochs without a lower val_loss.",
        choices=SCHEDULES,
        space=("constant", "cosine", "one-cycle"),
    )
    warmup: float | None = field(
        None,
        "Share of the training in which the learning rate rises.",
        low=0,
        high=0.9,
        unsaid="0.3 with one-cycle, else 0",
        space=(0.0, 0.1, 0.3),
    )
    label_smoothing: float | None = field(
        None,
        "Share of each label that is spread over all classes (arXiv:1512.00567).",
        low=0,
        high=0.9,
        space=Range(0, 0.2),
    )
    class_weights: str | None = field(
        None,
        "Of each class in the loss: none, balanced, or a JSON file of class names and numbers.",
        space=("none", "balanced"),
    )
    augment: str | None = field(
        None,
        "Augmentation while training: none, full (flip,shift,rotate,zoom), or any of flip, altflip, shift, crop, "
        "rotate, zoom, color, randaugment, cutout, mixup, cutmix, separated by commas, each with a strength if wished "
        "(crop:0.06).",
        space=("none", "flip", "flip+crop", "flip+crop+cutout", "full"),
    )
    progressive_resizing: float | None = field(
        None,
        "Share of the epochs, the first ones, that see random crops of 25/32 of the pictures' side, which take about "
        "two thirds of the time.",
        low=0,
        high=0.9,
        space=(0.0, 0.4, 0.6),
    )
    ema: float | None = field(
        None,
        "Decay of the average of the weights that is validated and kept; 0 for none, 0.99 is usual.",
        low=0,
        high=0.9999,
        space=(0.0, 0.98, 0.99, 0.995),
    )
    lookahead: float | None = field(
        None,
        "How much of the way of 5 steps is taken back after them, at the training's end; it rises from 0 "
        "(arXiv:1907.08610). 0 for none, 0.77 is usual.",
        low=0,
        high=0.99,
        space=(0.0, 0.5, 0.77, 0.9),
    )
    clip_norm: float | None = field(
        None, "Highest norm of all gradients together.", above=0, high=1e6, space=Range(0.5, 5, log=True)
    )
    bias_lr_scale: float | None = field(
        None,
        "Factor of the learning rate of BatchNormalization's offsets (arXiv:2404.00498).",
        above=0,
        high=1000,
        space=(1.0, 16.0, 64.0),
    )
    patience: int | None = field(
        None, "Stop after this many epochs without a lower val_loss and keep the best weights.", low=1
    )
    precision: str | None = field(
        None, "Arithmetic; auto is mixed_bfloat16 where the processor has it in hardware.", choices=PRECISIONS
    )
    deterministic: bool = field(False, "Only operations that repeat bit for bit on the same machine.")
    backbone: str | None = field(
        None,
        "A backbone's name, a saved model (.keras), models:/NAME@ALIAS of the registry, or hub:PRESET of KerasHub.",
    )
    weights: str | None = field(
        None, "imagenet, random, or a file of the backbone's weights without its top.", unsaid="imagenet"
    )
    pooling: str | None = field(None, "What the head makes of the features.", choices=("average", "max", "flatten"))
    dense_units: int | None = field(None, "Width of the dense layer before the softmax, or 0.", low=0, high=65_536)
    dropout: float | None = field(None, "Dropout rate before the softmax.", low=0, high=0.95)
    preprocessing: str | None = field(
        None, "The backbone's own, or plain 0..1 scaling.", choices=("own", "vgg16", "scale")
    )
    train_blocks: int | None = field(
        None, "Stages of the backbone that are trained too, counted from the top.", low=0, high=16
    )
    fine_tune: int | None = field(
        None,
        "Epochs of a second stage, after the head's, that trains upper layers of the backbone too.",
        low=0,
        high=10_000,
        space=(0, 2, 5),
    )
    fine_tune_from: str | None = field(
        None,
        "Where fine-tuning starts: top (the topmost stage), a number of stages from the top, the beginning of a "
        "layer's name, or all.",
        unsaid="top",
        space=("top", "2", "all"),
    )
    fine_tune_learning_rate: float | None = field(
        None,
        "The optimizer's while fine-tuning.",
        above=0,
        high=10,
        unsaid="a tenth of learning_rate",
        space=Range(1e-5, 1e-3, log=True),
    )
    layer_decay: float | None = field(
        None,
        "Factor of the learning rate from one stage of the backbone to the one below it while fine-tuning.",
        above=0,
        high=1,
        unsaid="1",
        space=Range(0.5, 1),
    )
    frozen_precision: str | None = field(
        None,
        "Arithmetic of frozen layers; auto is mixed_bfloat16 where that is faster.",
        choices=PRECISIONS,
    )
    feature_dtype: str | None = field(
        None,
        "What the output of frozen layers is stored in; auto is float16 where that loses nothing, after bfloat16.",
        choices=("float16", "float32", "auto"),
    )
    filters: tuple[int, ...] | None = field(None, "Filters of each convolution block.", low=1, high=4096)
    tta_views: int | None = field(
        None,
        "Views of a picture that an answer is averaged over: 1, 2 with its mirror image, or 6 with both moved by a "
        "pixel to two corners.",
        low=1,
        high=6,
    )
    ensemble_size: int | None = field(
        None,
        "Networks of different first weights that are trained together and whose answers are averaged.",
        low=1,
        high=10,
    )
    kernel_size: int | None = field(None, "Side of the convolution kernels.", low=1, high=11)
    padding: str | None = field(None, "Padding of the convolutions.", choices=("valid", "same"))
    arguments: tuple[str, ...] = field((), "name=value of a function of your own.")

    # No fields. `dataclasses.replace` hands on from the recipe that it changes whether it is one of those, and
    # whether it was read back, so that the file of a function of the user's may be gone or another by now.
    replaced: dataclasses.InitVar[bool] = False
    read_back: dataclasses.InitVar[bool] = False

    def __post_init__(self, replaced, read_back):
        object.__setattr__(self, "replaced", True)
        object.__setattr__(self, "read_back", read_back)
        for name in ("filters", "arguments"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        for f in dataclasses.fields(self):
            if isinstance(value := getattr(self, f.name), Unsaid):
                # Of the model that was there before `replace`; given by anybody else it is a value like others.
                object.__setattr__(self, f.name, None if replaced else plain(value))
        if not (read_back and custom_model.is_custom(self.model)):
            self._fill_in(find_model(self.model), replaced)
        for f in dataclasses.fields(self):
            check(f.name, getattr(self, f.name), f.metadata)
        parse_augment(self.augment)
        expect_to_combine(self)

    def _fill_in(self, model, replaced):
        further = own_arguments(self.model)
        taken = {name: default for name, default in model.arguments.items() if name not in further}
        defaults = {**COMMON, **model.defaults, **taken} if model.own else model.recipe_defaults
        for name, default in defaults.items():
            if getattr(self, name) is None and default not in (None, inspect.Parameter.empty):
                object.__setattr__(self, name, unsaid(default))
        for name, default in self._dependent_defaults(model).items():
            if not self.said(name):
                object.__setattr__(self, name, None if default is None else unsaid(default))
        if self.arguments and not model.own:
            if not replaced:
                raise ArgumentError(
                    f"Expected no arguments with {self.model}. Received: {self.arguments[0]}. Leave them out."
                )
            object.__setattr__(self, "arguments", ())
        if model.own:
            self.factory_arguments()  # finds what does not parse
        elif "backbone" in model.arguments and not self.backbone:
            raise ArgumentError(
                "Expected a backbone with the model 'transfer'. Received: none. Name one with --backbone: a name of "
                "'cnnlab models --available', a .keras file, models:/NAME@ALIAS or hub:PRESET."
            )

    def _dependent_defaults(self, model):
        """Defaults that depend on what other fields hold."""
        defaults = {name: TRAINING[name] for name in self._given_way(model) if getattr(self, name) is not None}
        if self.optimizer and self.optimizer != model.defaults.get("optimizer"):
            defaults |= {**OF_OPTIMIZERS.get(self.optimizer, {}), **model.of_optimizers.get(self.optimizer, {})}
        if self.schedule == "one-cycle":
            defaults["warmup"] = model.defaults.get("warmup") or 0.3
        if self.fine_tune:
            rate = (
                self.learning_rate if self.said("learning_rate") else defaults.get("learning_rate", self.learning_rate)
            )
            defaults |= {"fine_tune_from": "top", "fine_tune_learning_rate": rate / 10}
        return defaults

    def _given_way(self, model):
        """Fields whose value for the model does not go with what was asked for."""
        if self.optimizer != model.defaults.get("optimizer"):
            yield from ("momentum", "bias_lr_scale")
        if self.schedule == "plateau":
            yield "warmup"
        if self.ema:
            yield "lookahead"
        if self.layer_decay not in (None, 1):
            yield "bias_lr_scale"

    @property
    def label(self) -> str:
        """The model's name for people: a function's without its file, a backbone's without its folder."""
        return escape_control_characters(self._name) + (" fine-tuned" if self.fine_tune else "")

    @property
    def _name(self):
        if custom_model.is_custom(self.model):
            return custom_model.function_name(self.model)
        if self.model != "transfer":
            return self.model
        if self.backbone.startswith("models:/"):
            return self.backbone.removeprefix("models:/").replace("/", "-v").replace("@", "-")
        return Path(self.backbone).name.removesuffix(".keras")

    def said(self, name) -> bool:
        """Whether a field was given, and does not hold the model's own default."""
        return getattr(self, name) is not None and not isinstance(getattr(self, name), Unsaid)

    def factory_arguments(self) -> dict:
        """What the model's factory is called with, besides the shape and the number of classes."""
        model = find_model(self.model)
        further = own_arguments(self.model)
        given = {name: plain(getattr(self, name)) for name in model.arguments if name not in further}
        given = {name: value for name, value in given.items() if value is not None}
        given |= custom_model.parse_arguments(self.arguments, further)
        missing = [name for name, default in model.arguments.items() if default is inspect.Parameter.empty]
        if model.own and (missing := [name for name in missing if name not in given]):
            raise ArgumentError(
                f"Expected a value for every argument of {self.label}. Received none for: {', '.join(missing)}. "
                f"Give it with --arg {missing[0]}=..., or a default in the function."
            )
        return given

    def params(self) -> dict:
        """The fields that apply to this model, as flat MLflow params."""
        values = {
            f.name: ",".join(map(str, value)) if isinstance(value, tuple) else plain(value)
            for f in dataclasses.fields(self)
            if f.name != "arguments"
            and (value := getattr(self, f.name)) is not None
            # What a function of the user's does not take has no value.
            and (custom_model.is_custom(self.model) or applies(f, self.model))
        }
        given = dict(pair.split("=", 1) for pair in self.arguments)
        return values | {
            f"arg.{name}" if name in _FIELDS or name in OLD_NAMES else name: value for name, value in given.items()
        }

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2)

    def key_text(self) -> str:
        """Give the text that equal trainings are found by, with the fields' first names as earlier versions wrote."""
        return json.dumps(first_names(dataclasses.asdict(self)), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """A stored recipe, also of an earlier version: what had no name then is what was done then.

        Raises:
            LabError: the text is none.
        """
        with reading("'recipe.json' to be a run's recipe", "Restore the store's artifacts, or train again."):
            return cls._from_stored(json.loads(text))

    @classmethod
    def _from_stored(cls, stored):
        stored = renamed_fields(stored)
        stored.setdefault("stored_size", stored["image_size"])
        stored.setdefault("frozen_precision", stored["precision"])
        stored.setdefault("feature_dtype", "float32")
        stored.setdefault("resize_mode", "stretch")
        if stored["model"] == "resnet9":
            stored.setdefault("lookahead", 0.0)
            stored.setdefault("bias_lr_scale", 1.0)
        return cls(**stored, read_back=True)


def renamed_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the keys that are old names of fields, such as those of a stored run's params, to today's names."""
    return {OLD_NAMES.get(name, name): value for name, value in values.items()}


def first_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Rename fields to the names that they had at first, in which the keys of trainings and searches are computed."""
    old = {today: name for name, today in OLD_NAMES.items()}
    return {old.get(name, name): value for name, value in values.items()}


# Options that a function of the user's may take by their names.
SHARED = ("learning_rate", "weight_decay", "dropout", "dense_units", "filters", "kernel_size", "padding", "pooling")


_FIELDS = {f.name: f for f in dataclasses.fields(Recipe)}
# Fields that say something about some models only.
_OF_MODELS = {name for model in MODELS.values() for name in model.recipe_defaults} - set(COMMON) | {"arguments"}


def own_arguments(model) -> dict:
    """Arguments, with their defaults, of a function of the user's that are no fields of the recipe by name and type."""
    found = find_model(model)
    return {name: default for name, default in found.arguments.items() if found.own and not _is_field(name, default)}


def _is_field(name, default):
    if name not in SHARED:
        return False
    kind = next((k for k in (bool, int, float, str) if _FIELDS[name].type in (k, k | None)), tuple)
    return default in (None, inspect.Parameter.empty) or isinstance(default, (int, float) if kind is float else kind)


def applies(recipe_field: dataclasses.Field, model: str) -> bool:
    """Whether a field of the recipe says anything about this model: read off the factory's signature."""
    if recipe_field.name == "arguments":
        return custom_model.is_custom(model)
    if recipe_field.name not in _OF_MODELS:
        return True
    found = find_model(model)
    # An argument of a function of the user's that only shares the name of an option is given as its own.
    return recipe_field.name in found.defaults or recipe_field.name in set(found.arguments) - set(own_arguments(model))
