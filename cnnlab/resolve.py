"""From a recipe to what is really trained: the data, and the recipe with what was left open filled in."""

import dataclasses
import functools
from pathlib import Path

from cnnlab.data import dataset as data
from cnnlab.data.builtin_sets import BUILTIN_SETS
from cnnlab.data.class_weights import read_class_weights
from cnnlab.data.dataset import ImageDataset, load_dataset
from cnnlab.data.folder_layout import FolderLayout
from cnnlab.data.image_sizes import largest_image_side
from cnnlab.errors import ArgumentError, LabError
from cnnlab.models import custom_model, pretrained
from cnnlab.models.augmentation import crop_side
from cnnlab.models.backbones import BACKBONES
from cnnlab.models.model_table import find_model
from cnnlab.recipe import Recipe, own_arguments
from cnnlab.tracking import logged_models as stored_models
from cnnlab.training import build, multi_device, runtime
from cnnlab.utils.log import log

ENLARGED = 3  # at most as many times, where nobody says how much
SMALLEST = 32  # pixels a side that pictures are brought to in memory
FROM_SCRATCH = 64  # pixels a side that networks without a usual size see pictures of a folder at


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A `recipe` with everything in it that is really used, and `tags` on what stands in for something else."""

    recipe: Recipe
    tags: dict


def prepare(recipes, for_audit=False, quiet=False) -> tuple[ImageDataset, list[Prepared]]:
    """Load the data that recipes ask for, and find out for each what it is really trained with.

    Files get their full paths, so that a run can be repeated from another folder, sizes and precisions their values,
    and a backbone of the registry its version. ImageNet weights that nobody named and that cannot be downloaded become
    random ones, with a warning.

    Args:
        recipes: that agree in their data fields; those of the first are used.
        for_audit: as in `load_dataset`.
        quiet: what was found is not said, as another process has said it.

    Raises:
        ArgumentError: a model cannot be built for these images.
        LabError: data, weights or a backbone cannot be had.
    """
    say = (lambda line: None) if quiet else log.info
    recipes = [_located(recipe) for recipe in recipes]
    shared = {
        recipe.batch_size: len(multi_device.devices_for(recipe.batch_size)) for recipe in recipes
    }  # or it refuses
    source = _find(recipes[0], for_audit)
    if isinstance(source, FolderLayout):
        recipes = [dataclasses.replace(recipe, resize_mode=recipe.resize_mode or "crop") for recipe in recipes]
    side = functools.cache(lambda: largest_image_side(source, recipes[0].resize_mode))  # looked at where it matters
    shrunk = {recipe.label for recipe in recipes if not recipe.said("image_size") and _is_from_scratch(recipe)}
    recipes = [dataclasses.replace(recipe, image_size=_image_size(recipe, source, side)) for recipe in recipes]
    # One size for all, so that they are tested on the same images.
    in_memory = int(max(recipe.stored_size or _picture_size(recipe, side) for recipe in recipes))
    recipes = [_with_pictures(recipe, in_memory) for recipe in recipes]
    for recipe in recipes:
        smallest = crop_side(recipe.image_size) if recipe.progressive_resizing else recipe.image_size
        find_model(recipe.model).check(smallest, **recipe.factory_arguments())
    dataset = load_for(recipes[0], source, for_audit)
    say("\n".join(dataset.summary.lines))
    for label in sorted(shrunk if isinstance(source, FolderLayout) and side() > FROM_SCRATCH else ()):
        say(f"{label}: sees a folder's pictures at {FROM_SCRATCH} x {FROM_SCRATCH} pixels; --image-size for more.")
    recipes = [
        dataclasses.replace(recipe, class_weights=read_class_weights(recipe.class_weights, dataset.class_names))
        for recipe in recipes
    ]
    found = functools.cache(_weights)  # of several seeds once
    prepared = []
    for recipe in recipes:
        named = (recipe.backbone or recipe.model) if _takes(recipe, "weights") else None
        used, tags = found(named, recipe.weights, recipe.image_size)
        if named and named not in BACKBONES:
            tags = {**tags, "features": pretrained.describe_features(named)}
        prepared.append(Prepared(_precise(dataclasses.replace(recipe, weights=used)), tags))
    for size, number in shared.items():
        if number:
            say(f"Batches of {size} pictures are shared by {number} devices.")
        elif multi_device.wanted() == "auto" and (gpus := runtime.gpu_count()) > 1:
            say(f"Batches of {size} pictures cannot be shared equally by {gpus} GPUs; training on one.")
    for label, features in dict.fromkeys((one.recipe.label, one.tags.get("features")) for one in prepared):
        if features:
            say(f"{label}: features are {features}.")
    for label, size in dict.fromkeys((recipe.label, recipe.image_size) for recipe in recipes):
        if size != in_memory:
            done = "enlarged" if size > in_memory else "shrunk"
            say(f"{label}: pictures of {in_memory} pixels a side are {done} to {size} inside the model.")
    return dataset, prepared


def _find(recipe, for_audit=False):
    given = {name: getattr(recipe, name) for name in ("labels", "class_names", "skip_bad")}
    return data.locate_dataset(recipe.dataset, **given, for_audit=for_audit)


def load_for(recipe, source=None, for_audit=False) -> ImageDataset:
    """The data set that a recipe asks for, `source` being what `data.locate_dataset` gave for it."""
    return load_dataset(
        source or _find(recipe),
        image_size=recipe.stored_size or recipe.image_size or SMALLEST,
        resize_mode=recipe.resize_mode or "crop",
        skip_bad=recipe.skip_bad,
        drop_duplicates=recipe.drop_duplicates,
        val_fraction=recipe.val_fraction,
        limit=recipe.limit,
        seed=recipe.split_seed,
        for_audit=for_audit,
    )


def build_model(recipe, dataset):
    """Build the recipe's model for the dataset's image shape and classes, with the weights seeded, and compile it.

    Returns:
        A compiled `keras.Model`: `(N, H, W, 3) uint8, 0..255` to `(N, num_classes) float32` probabilities.

    Raises:
        ArgumentError: there is no such model, or it cannot be built for these images.
        LabError: its weights cannot be had.
    """
    return build.build_model(_located(recipe), dataset)


def _located(recipe):
    """The recipe with files by their full paths, and a model of the registry by its version."""
    model = custom_model.absolute_name(recipe.model) if custom_model.is_custom(recipe.model) else recipe.model
    backbone = recipe.backbone
    if backbone and backbone.startswith(pretrained.REGISTERED) and not pretrained.is_downloaded(backbone):
        backbone, file = stored_models.fetch(backbone)
        pretrained.add_downloaded_model(backbone, file)
    elif backbone and backbone.startswith(pretrained.HUB):
        backbone = pretrained.HUB + _full_path(backbone.removeprefix(pretrained.HUB), ())
    return dataclasses.replace(
        recipe,
        model=model,
        arguments=_arguments(recipe),
        dataset=_full_path(recipe.dataset, BUILTIN_SETS),
        labels=_full_path(recipe.labels, ()),
        class_names=_full_path(recipe.class_names, ()),
        weights=_full_path(recipe.weights, ("imagenet", "random")),
        backbone=_full_path(backbone, BACKBONES),
    )


def _arguments(recipe):
    """All arguments of a function of the user's, also those left to its defaults, so that the run holds them."""
    given = recipe.factory_arguments()
    further = own_arguments(recipe.model)
    values = {name: given.get(name, default) for name, default in further.items()}
    return tuple(f"{name}={value}" for name, value in values.items() if value is not None)


def _full_path(value, names):
    return value if value is None or value in names or not Path(value).exists() else str(Path(value).resolve())


def _takes(recipe, argument):
    return not custom_model.is_custom(recipe.model) and argument in find_model(recipe.model).arguments


def _image_size(recipe, source, side):
    if recipe.said("image_size"):
        return recipe.image_size
    if recipe.image_size:  # its row's, for the small pictures of the named sets
        if not isinstance(source, FolderLayout):
            return recipe.image_size
        usual = FROM_SCRATCH if _is_from_scratch(recipe) else pretrained.default_image_size(recipe.model)
        return max(recipe.image_size, min(usual, side()))
    backbone = recipe.backbone or recipe.model
    smallest = BACKBONES[backbone].smallest if backbone in BACKBONES else SMALLEST
    return max(smallest, min(pretrained.default_image_size(backbone), ENLARGED * side()))


def _is_from_scratch(recipe):
    return not (recipe.backbone or recipe.model in BACKBONES)


def _picture_size(recipe, side):
    # A model that does not resize takes the pictures as they are in memory.
    if not _takes(recipe, "image_size") or recipe.image_size <= SMALLEST:
        return recipe.image_size
    return min(recipe.image_size, max(SMALLEST, side()))


def _with_pictures(recipe, side):
    """The recipe for pictures of that size in memory; left out where it is the size inside the model."""
    if not _takes(recipe, "image_size") and side != recipe.image_size:
        if recipe.said("image_size"):
            raise ArgumentError(
                f"Expected image_size {side} for {recipe.label}, which takes pictures as the other models do. "
                f"Received: {recipe.image_size}. Leave it out, or give all models one --image-size."
            )
        recipe = dataclasses.replace(recipe, image_size=side)
    return dataclasses.replace(recipe, stored_size=None if side == recipe.image_size else side)


def _weights(backbone, named, side):
    """`(weights, tags)`: those of a backbone by name that can be had, read once for all that use them."""
    if backbone not in BACKBONES or named == "random":
        return named, {}
    try:
        pretrained.load_backbone(backbone, named or "imagenet", side)
        return named or "imagenet", {}
    except LabError as error:
        if named is not None or isinstance(error, ArgumentError):
            raise
    log.warning(
        f"{BACKBONES[backbone].build}'s ImageNet weights cannot be downloaded; using random ones, so expect a "
        "poor score (name --weights to choose)."
    )
    return "random", {"weights_stand_in_for": "imagenet"}


def _precise(recipe):
    """The recipe with the precisions that "auto" means on this machine, for this model."""
    frozen = recipe.frozen_precision
    if frozen == "auto":
        slow = not runtime.gpu_count() and pretrained.has_depthwise_convolutions(recipe.backbone or recipe.model)
        frozen = "float32" if slow and recipe.precision == "float32" else runtime.resolve_precision("auto")
    elif frozen:
        frozen = runtime.resolve_precision(frozen)
    precision, stored = runtime.resolve_precision(recipe.precision), recipe.feature_dtype
    if stored == "auto":
        stored = "float16" if (frozen or precision) == "mixed_bfloat16" else "float32"
    return dataclasses.replace(recipe, precision=precision, frozen_precision=frozen, feature_dtype=stored)
