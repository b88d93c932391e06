"""The training recipe: `Recipe` is what the user asks for, `ResolvedRecipe` what is really used, with every default.

A field of the recipe is an option of the command line and a param of the run. The defaults are in
`cnnlab.models.model_table`. `RunOptions` is how a job is carried out, which is no part of the recipe.
"""

import contextlib
import dataclasses
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from cnnlab.data.dataset import LAYOUT_OPTIONS
from cnnlab.errors import ArgumentError, did_you_mean, reading
from cnnlab.models import custom_model
from cnnlab.models.augmentation import parse_augment
from cnnlab.models.model_table import COMMON, MODELS, Model, Range, dependent_defaults, find_model
from cnnlab.recipe_checks import expect_in_bounds, expect_to_combine, field
from cnnlab.utils.argument_types import convert_fields
from cnnlab.utils.environment import read_variable
from cnnlab.utils.text import escape_control_characters

PRECISIONS: tuple[str, ...] = ("float32", "mixed_bfloat16", "auto")
OPTIMIZERS: tuple[str, ...] = ("adam", "adamw", "sgd", "muon")
SCHEDULES: tuple[str, ...] = ("constant", "cosine", "one-cycle", "plateau")
SMALLEST = 32  # pixels a side of pictures in memory, at least, where the recipe gives no size
# The fields that say which pictures are loaded, at whatever size.
DATA_FIELDS = ("dataset", *LAYOUT_OPTIONS, "drop_duplicates", "resize_mode", "val_fraction", "test_fraction")
DATA_FIELDS += ("hold_out_every_class", "limit", "split_seed")
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
# Fields that are newer than the keys of trainings, which have them only where they are set.
NEWER: tuple[str, ...] = ("image_column", "label_column", "split_column", "fold", "test_fraction")


@dataclass(frozen=True)
class Recipe:
    """What a training is asked to be. A field that is `None` is left to its default.

    Defaults depend on the model and on what else is asked for (`with_defaults`), and some on the data and the machine
    (`cnnlab.resolve`): `dataset` and `weights` are the usual ones, or their embedded stand-ins where they cannot be
    downloaded, `image_size` and `stored_size` those that go with the images. `dataclasses.replace` keeps what was
    asked for, and the defaults follow: those of the new model, say.

    Values are converted as on the command line: `filters=8`, `epochs="3"`, NumPy's numbers, lists, a `Path`, and a dict
    for `class_weights` and `arguments`.

    Raises:
        ArgumentError: a field is out of bounds, two do not go together, or the model is unknown. A function in a file
            is read when the recipe is used.
    """

    model: str = field("cnn", "Name of the model.")
    dataset: str | None = field(
        None, "cifar10, cifar100, mnist, fashion_mnist, digits, or an image folder.", default_text="cifar10"
    )
    image_size: int | None = field(
        None,
        "Pixels a side inside the model.",
        low=8,
        high=1024,
        default_text="the model's usual one, of a named set 32 for cnn, resnet9 and vgg16; at most the "
        "pictures' own for these three, 3 times it for the others",
    )
    resize_mode: str | None = field(
        None,
        "How a picture of a folder becomes a square: crop cuts its middle out, pad adds grey, stretch changes its "
        "shape.",
        choices=("crop", "pad", "stretch"),
        default_text="crop",
    )
    labels: str | None = field(None, "CSV file with the labels of the pictures, in place of class folders.")
    image_column: str | None = field(
        None,
        "Column of --labels with the file names: a name, or a number from 1.",
        default_text="the one whose values name most pictures",
    )
    label_column: str | None = field(
        None,
        "Column of --labels with the labels.",
        default_text="the one that is called label, class, target or so",
    )
    split_column: str | None = field(
        None,
        "Column of --labels that tells train, val and test; none leaves such columns aside.",
        default_text="those that are called split, is_valid, fold or so",
    )
    fold: str | None = field(None, "Fold of --labels that is the validation set.")
    class_names: str | None = field(None, "CSV file with the names of classes whose folders are ids.")
    skip_bad: bool = field(False, "Leave out files that do not decode, and class folders without pictures.")
    drop_duplicates: bool = field(
        False,
        "Leave out training pictures that are in another split too, come again, or have two labels.",
    )
    stored_size: int | None = field(
        None,
        "Pixels a side of the pictures in memory.",
        low=8,
        high=1024,
        default_text="their own size where image_size is larger and the model enlarges them, else image_size",
    )
    val_fraction: float = field(
        0.1, "Share of the training set held out for validation; 0 validates on the test set.", low=0, high=0.9
    )
    test_fraction: float | None = field(
        None,
        "Share of a folder's pictures held out as the test set, where it has none.",
        above=0,
        high=0.9,
        default_text="0.2",
    )
    # None is False. Recipes of before the field have True, which is what was done then.
    hold_out_every_class: bool | None = field(
        None,
        "Hold out a picture of each class, also where that is more than the fractions say; else small classes may be "
        "trained only.",
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
        "Optimizer of the weights; muon uses AdamW for the last layer and for what is no convolution or dense layer.",
        choices=OPTIMIZERS,
        space=OPTIMIZERS,
    )
    learning_rate: float | None = field(
        None, "Learning rate of the optimizer, at its highest.", above=0, high=10, space=Range(1e-4, 1e-2, log=True)
    )
    momentum: float | None = field(
        None,
        "Nesterov momentum of sgd and muon.",
        low=0,
        high=0.999,
        default_text="0.9 with sgd, 0.95 with muon",
        space=Range(0.8, 0.95),
    )
    weight_decay: float | None = field(
        None, "Decoupled weight decay.", low=0, high=1, space=Range(1e-5, 1e-1, log=True)
    )
    schedule: str | None = field(
        None,
        "Schedule of the learning rate: cosine falls to 0 by the last epoch, one-cycle rises before it falls, plateau "
        "halves it after 2 epochs without a lower val_loss.",
        choices=SCHEDULES,
        space=("constant", "cosine", "one-cycle"),
    )
    warmup: float | None = field(
        None,
        "Share of the training in which the learning rate rises.",
        low=0,
        high=0.9,
        default_text="0.3 with one-cycle, else 0",
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
        "Weight of each class in the loss: none, balanced, or a JSON file of class names and numbers.",
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
        "Share of every 5 steps' way that is taken back after them, at the training's end; it rises from 0 "
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
        None, "Weights of the backbone: imagenet, random, or a file without its top.", default_text="imagenet"
    )
    pooling: str | None = field(None, "How the head pools the features.", choices=("average", "max", "flatten"))
    dense_units: int | None = field(None, "Width of the dense layer before the softmax, or 0.", low=0, high=65_536)
    dropout: float | None = field(None, "Dropout rate before the softmax.", low=0, high=0.95)
    preprocessing: str | None = field(
        None,
        "Preprocessing of the pictures: the backbone's own, or scaling to 0..1.",
        choices=("own", "vgg16", "scale"),
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
        default_text="top",
        space=("top", "2", "all"),
    )
    fine_tune_learning_rate: float | None = field(
        None,
        "Learning rate of the optimizer while fine-tuning.",
        above=0,
        high=10,
        default_text="a tenth of learning_rate",
        space=Range(1e-5, 1e-3, log=True),
    )
    layer_decay: float | None = field(
        None,
        "Factor of the learning rate from one stage of the backbone to the one below it while fine-tuning.",
        above=0,
        high=1,
        default_text="1",
        space=Range(0.5, 1),
    )
    frozen_precision: str | None = field(
        None,
        "Arithmetic of frozen layers; auto is mixed_bfloat16 where that is faster.",
        choices=PRECISIONS,
    )
    feature_dtype: str | None = field(
        None,
        "Type of the stored output of frozen layers; auto is float16 where that loses nothing, after bfloat16.",
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
    arguments: tuple[str, ...] = field((), "name=value for an argument of a custom model's function; may be repeated.")

    if not TYPE_CHECKING:  # which finds a wrong name by itself

        def __new__(cls, *values: Any, **fields: Any) -> Self:
            if wrong := next((name for name in fields if name not in cls.__dataclass_fields__), None):
                near = f" Did you mean '{OLD_NAMES[wrong]}'?" if wrong in OLD_NAMES else did_you_mean(wrong, _FIELDS)
                raise ArgumentError(f"Expected fields that help(cnnlab.Recipe) lists. Received: '{wrong}'.{near}")
            return super().__new__(cls)

    def __post_init__(self) -> None:
        convert_fields(self)
        if not isinstance(self, ResolvedRecipe) and not custom_model.is_custom(self.model):
            self.with_defaults()  # raises what is wrong with the recipe that would be used
            return
        for f in dataclasses.fields(self):
            expect_in_bounds(f.name, getattr(self, f.name), f.metadata)
        parse_augment(self.augment or "none")
        expect_to_combine(self)

    def with_defaults(self) -> "ResolvedRecipe":
        """Give the recipe with the defaults of its model and of what it asks for in the fields that it leaves open.

        Raises:
            ArgumentError: the recipe that would be used is wrong, or a function in a file lacks an argument.
            LabError: that file cannot be imported.
        """
        model = find_model(self.model)
        asked = {f.name: value for f in dataclasses.fields(self) if (value := getattr(self, f.name)) is not None}
        values = {**_model_defaults(self.model, model), **asked}
        values |= {name: value for name, value in dependent_defaults(model, values, asked).items() if name not in asked}
        if self.arguments and not model.is_custom:
            raise ArgumentError(
                f"Expected no arguments with {self.model}. Received: {self.arguments[0]}. Leave them out."
            )
        if not model.is_custom and "backbone" in model.arguments and not self.backbone:
            raise ArgumentError(
                "Expected a backbone with the model 'transfer'. Received: none. Name one as backbone: a name of "
                "'cnnlab models --available', a .keras file, models:/NAME@ALIAS or hub:PRESET."
            )
        resolved = ResolvedRecipe(**values)
        if model.is_custom:
            resolved.factory_arguments()  # finds what does not parse
        return resolved

    @property
    def label(self) -> str:
        """Name the model for people: a function without its file, a backbone without its folder."""
        return escape_control_characters(self._name) + (" fine-tuned" if self.fine_tune else "")

    @property
    def _name(self) -> str:
        if custom_model.is_custom(self.model):
            return custom_model.function_name(self.model)
        if self.model != "transfer" or not self.backbone:
            return self.model.removeprefix(custom_model.GIVEN)
        if self.backbone.startswith("models:/"):
            return self.backbone.removeprefix("models:/").replace("/", "-v").replace("@", "-")
        return Path(self.backbone).name.removesuffix(".keras")

    def data_arguments(self) -> dict[str, Any]:
        """Give the arguments of `load_dataset` that load the recipe's data."""
        given = {name: getattr(self, name) for name in DATA_FIELDS}
        given |= {"name_or_folder": given.pop("dataset"), "seed": given.pop("split_seed")}
        given |= {"image_size": self.stored_size or self.image_size or SMALLEST}
        return given | {"resize_mode": self.resize_mode or "crop"}

    def to_json(self) -> str:
        """Write the recipe as `from_json` reads it."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def key_text(self) -> str:
        """Give the text that equal trainings are found by, with the fields' first names as earlier versions wrote.

        What `hold_out_every_class` makes of the splits is for the data set to say, as earlier versions did not have it.
        """
        values = {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if name != "hold_out_every_class" and (name not in NEWER or value is not None)
        }
        return json.dumps(first_names(values), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a stored recipe, also of an earlier version: a field that did not exist then holds what was done then.

        Raises:
            LabError: the text is none.
        """
        with reading("'recipe.json' to be a run's recipe", "Restore the store's artifacts, or train again."):
            stored = renamed_fields(json.loads(text))
            stored.setdefault("stored_size", stored["image_size"])
            stored.setdefault("frozen_precision", stored["precision"])
            stored.setdefault("feature_dtype", "float32")
            stored.setdefault("resize_mode", "stretch")
            stored.setdefault("hold_out_every_class", True)
            if stored["model"] == "resnet9":
                stored.setdefault("lookahead", 0.0)
                stored.setdefault("bias_lr_scale", 1.0)
            return cls(**stored)


class ResolvedRecipe(Recipe):
    """What a training really uses: a recipe with a value in every field that says something about its model.

    A run stores it, so that the run can be repeated from what it logged.
    """

    if TYPE_CHECKING:
        epochs: int
        batch_size: int
        augment: str
        precision: str
        class_weights: str

    def with_defaults(self) -> "ResolvedRecipe":
        """Give the recipe itself, in which nothing is left open."""
        return self

    @classmethod
    def from_json(cls, text: str) -> "ResolvedRecipe":
        """Read the recipe of a run; one of an earlier version gets the defaults of fields that are newer.

        Raises:
            LabError: the text is none.
        """
        recipe = Recipe.from_json(text)
        if not custom_model.is_custom(recipe.model):
            return recipe.with_defaults()
        # Its file may have changed since, or be gone.
        return cls(**{f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe)})

    def factory_arguments(self) -> dict[str, Any]:
        """Give what the model's factory is called with, besides the shape and the number of classes."""
        model = find_model(self.model)
        further = custom_arguments(self.model)
        given = {name: getattr(self, name) for name in model.arguments if name not in further}
        given = {name: value for name, value in given.items() if value is not None}
        given |= custom_model.parse_arguments(self.arguments, further)
        missing = [name for name, default in model.arguments.items() if default is inspect.Parameter.empty]
        if model.is_custom and (missing := [name for name in missing if name not in given]):
            raise ArgumentError(
                f"Expected a value for every argument of {self.label}. Received none for: {', '.join(missing)}. "
                f"Give it in arguments (--arg {missing[0]}=...), or a default in the function."
            )
        return given

    def params(self) -> dict[str, Any]:
        """Give the fields that apply to this model, as flat MLflow params."""
        values = {
            f.name: ",".join(map(str, value)) if isinstance(value, tuple) else value
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


@dataclass(frozen=True)
class RunOptions:
    """How a job is carried out: what is no hyperparameter and not part of the recipe.

    Attributes:
        devices: GPUs of this machine that share every batch: a number, or "auto" for all that can share it equally.
            1 by default, or `$CNNLAB_DEVICES`.
        checkpoint: seconds between two checkpoints of a training, 0 for one after every epoch, or "none". 60 by
            default, or `$CNNLAB_CHECKPOINT`.
        experiment: name of MLflow's experiment for the runs. By default `$MLFLOW_EXPERIMENT_NAME`, or one for each
            data set.
        recheck: whether the files of a folder are compared with its stored pictures byte by byte; else their names,
            sizes and times tell whether they changed. `$CNNLAB_RECHECK` by default.
        cluster: the Ray cluster that works for the job: "ray" (on this machine), "HOST:PORT" or "ray://HOST:PORT".
        cpus, gpus: what each job asks the cluster for.

    Raises:
        ArgumentError: a value, of an argument or a variable, is none of these.

    Example:
        >>> cnnlab.RunOptions(devices=2, checkpoint=0).devices
        2
    """

    devices: int | str = ""
    checkpoint: float | str = ""
    experiment: str | None = None
    recheck: bool = False
    cluster: str | None = None
    cpus: float | None = None
    gpus: float | None = None

    def __post_init__(self) -> None:
        convert_fields(self)
        devices = str(self.devices if self.devices != "" else read_variable("CNNLAB_DEVICES") or 1)
        if devices != "auto":
            if not (devices.isascii() and devices.isdigit() and int(devices)):
                raise ArgumentError(f"Expected devices to be auto or a number from 1 upwards. Received: '{devices}'.")
            devices = int(devices)
        checkpoint = str(self.checkpoint if self.checkpoint != "" else read_variable("CNNLAB_CHECKPOINT") or 60)
        if checkpoint != "none":
            checkpoint = _seconds(checkpoint)
        object.__setattr__(self, "devices", devices)
        object.__setattr__(self, "checkpoint", checkpoint)
        object.__setattr__(self, "experiment", self.experiment or read_variable("MLFLOW_EXPERIMENT_NAME"))
        object.__setattr__(self, "recheck", self.recheck or bool(read_variable("CNNLAB_RECHECK")))
        if not (self.cpus is None or self.cpus > 0) or not (self.gpus is None or self.gpus >= 0):
            raise ArgumentError(
                f"Expected cpus above 0, and gpus from 0 upwards. Received: cpus {self.cpus}, gpus {self.gpus}."
            )
        if (self.cpus, self.gpus) != (None, None) and self.cluster is None:
            name = "gpus" if self.cpus is None else "cpus"
            raise ArgumentError(
                f"Expected {name} (--{name}) with a cluster (--on). Received: none. Give it, or leave {name} out."
            )

    @property
    def checkpoint_seconds(self) -> float | None:
        """Give the seconds between two checkpoints; `None` where there are to be none."""
        return None if isinstance(self.checkpoint, str) else self.checkpoint


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if float(text) >= 0:
            return float(text)
    raise ArgumentError(
        f"Expected CNNLAB_CHECKPOINT (--checkpoint) to be seconds, 0 for every epoch, or 'none'. Received: '{text}'."
    )


def renamed_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the keys that are old names of fields, such as those of a stored run's params, to today's names."""
    return {OLD_NAMES.get(name, name): value for name, value in values.items()}


def first_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Rename fields to the names that they had at first, in which the keys of trainings and searches are computed."""
    old = {today: name for name, today in OLD_NAMES.items()}
    return {old.get(name, name): value for name, value in values.items()}


# Options that a function of the user's may take by their names.
SHARED: tuple[str, ...] = (
    "learning_rate",
    "weight_decay",
    "dropout",
    "dense_units",
    "filters",
    "kernel_size",
    "padding",
    "pooling",
)


_FIELDS: dict[str, dataclasses.Field] = {f.name: f for f in dataclasses.fields(Recipe)}
# Fields that say something about some models only.
_OF_MODELS: set[str] = {name for model in MODELS.values() for name in model.recipe_defaults} - set(COMMON) | {
    "arguments"
}


def _model_defaults(name: str, model: Model) -> dict[str, Any]:
    """Look up the defaults of a model's fields that depend on nothing else."""
    if not model.is_custom:
        defaults = model.recipe_defaults
    else:
        given_as_arguments = custom_arguments(name)
        taken = {name: default for name, default in model.arguments.items() if name not in given_as_arguments}
        defaults = {**COMMON, **model.defaults, **taken}
    return {name: value for name, value in defaults.items() if value not in (None, inspect.Parameter.empty)}


def custom_arguments(model: str) -> dict[str, Any]:
    """Give the arguments, with defaults, of a user's function that are no fields of the recipe by name and type."""
    found = find_model(model)
    return {
        name: default for name, default in found.arguments.items() if found.is_custom and not _is_field(name, default)
    }


def _is_field(name: str, default: Any) -> bool:
    if name not in SHARED:
        return False
    kind = next((k for k in (bool, int, float, str) if _FIELDS[name].type in (k, k | None)), tuple)
    return default in (None, inspect.Parameter.empty) or isinstance(default, (int, float) if kind is float else kind)


def applies(recipe_field: dataclasses.Field[Any], model: str) -> bool:
    """Tell whether a field of the recipe says anything about this model, by the factory's signature."""
    if recipe_field.name == "arguments":
        return custom_model.is_custom(model)
    if recipe_field.name not in _OF_MODELS:
        return True
    found = find_model(model)
    # An argument of a function of the user's that only shares the name of an option is given as its own.
    return recipe_field.name in found.defaults or recipe_field.name in set(found.arguments) - set(
        custom_arguments(model)
    )
