"""Resolve a recipe: load its data, fill in image sizes, pre-trained weights and dtype policies, and build the model.

`Recipe.with_defaults` fills in the defaults that need neither data nor machine.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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
from cnnlab.recipe import DATA_FIELDS, SMALLEST, Recipe, ResolvedRecipe, RunOptions, custom_arguments
from cnnlab.tracking import logged_models as stored_models
from cnnlab.training import build, multi_device, runtime
from cnnlab.training.model_contract import remember_recipe
from cnnlab.utils.log import log

if TYPE_CHECKING:
    import keras

ENLARGED = 3  # times, at most, that pictures are enlarged where the recipe gives no size
FROM_SCRATCH = 64  # pixels a side at which networks without a usual size see the pictures of a folder


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A recipe for data that are loaded.

    Attributes:
        asked: what was asked for, with what the data and the machine decide; the model's defaults are open.
        recipe: what is really used.
        tags: say what stands in for something else.
    """

    asked: Recipe
    recipe: ResolvedRecipe
    tags: dict[str, str]


Loaded = tuple[ImageDataset, Prepared]


def prepare(
    recipes: Sequence[Recipe],
    for_audit: bool = False,
    quiet: bool = False,
    options: RunOptions | None = None,
) -> list[Loaded]:
    """Load the data that recipes ask for, once at each size, and find out for each what it is really trained with.

    Files get their full paths, so that a run can be repeated from another folder, sizes and precisions their values,
    and a backbone of the registry its version. ImageNet weights that nobody named and that cannot be downloaded become
    random ones, with a warning.

    Args:
        recipes: whose data are the same; all get the data fields of the first.
        for_audit: as in `load_dataset`.
        quiet: say nothing of the data, as another process has said it.
        options: how the job is carried out.

    Returns:
        For each recipe its data set, and what it is trained with.

    Raises:
        ArgumentError: a model cannot be built for these images.
        LabError: data, weights or a backbone cannot be had.
    """
    say, options = (lambda line: None) if quiet else log.info, options or RunOptions()
    same_data = {name: getattr(recipes[0], name) for name in DATA_FIELDS}
    recipes = [_located(dataclasses.replace(recipe, **same_data)) for recipe in recipes]
    batch_sizes = dict.fromkeys(recipe.with_defaults().batch_size for recipe in recipes)
    shared = {size: len(multi_device.devices_for(size, options.devices)) for size in batch_sizes}  # or it refuses
    source = _locate(recipes[0], for_audit)
    if isinstance(source, FolderLayout):
        recipes = [dataclasses.replace(recipe, resize_mode=recipe.resize_mode or "crop") for recipe in recipes]
    side = functools.cache(
        lambda: largest_image_side(source, recipes[0].resize_mode or "crop")
    )  # reads the files only when called
    shrunk = {recipe.label for recipe in recipes if not recipe.image_size and _is_from_scratch(recipe)}
    recipes = [_with_sizes(recipe, source, side) for recipe in recipes]
    for used in (recipe.with_defaults() for recipe in recipes):
        smallest = crop_side(used.image_size or 0) if used.progressive_resizing else used.image_size
        find_model(used.model).check(smallest, **used.factory_arguments())
    by_size = {recipe.data_arguments()["image_size"]: recipe for recipe in recipes}
    datasets = {size: load_for(one, source, for_audit, options.recheck) for size, one in by_size.items()}
    say("\n".join(dict.fromkeys(line for one in datasets.values() if one.summary for line in one.summary.lines)))
    loaded = [datasets[recipe.data_arguments()["image_size"]] for recipe in recipes]
    for label in sorted(shrunk if isinstance(source, FolderLayout) and side() > FROM_SCRATCH else ()):
        say(f"{label}: sees a folder's pictures at {FROM_SCRATCH} x {FROM_SCRATCH} pixels; set image_size for more.")
    weights_of = functools.cache(_weights)  # of several seeds once
    prepared = [_prepared(recipe, dataset, weights_of) for recipe, dataset in zip(recipes, loaded, strict=True)]
    for size, number in shared.items():
        if number:
            say(f"Batches of {size} pictures are shared by {number} devices.")
        elif options.devices == "auto" and (gpus := runtime.gpu_count()) > 1:
            say(f"Batches of {size} pictures cannot be shared equally by {gpus} GPUs; training on one.")
    for label, features in dict.fromkeys((one.recipe.label, one.tags.get("features")) for one in prepared):
        if features:
            say(f"{label}: features are {features}.")
    for label, size, stored_size in dict.fromkeys((one.label, one.image_size, one.stored_size) for one in recipes):
        if size and stored_size:
            done = "enlarged" if size > stored_size else "shrunk"
            say(f"{label}: pictures of {stored_size} pixels a side are {done} to {size} inside the model.")
    return list(zip(loaded, prepared, strict=True))


def _prepared(recipe: Recipe, dataset: ImageDataset, weights_of: Callable) -> Prepared:
    """Decide the class weights, the pre-trained weights and the precisions of a recipe whose sizes are known."""
    named = (recipe.backbone or recipe.model) if _takes(recipe, "weights") else None
    weights, tags = weights_of(named, recipe.weights, recipe.image_size)
    if named and named not in BACKBONES:
        tags = {**tags, "features": pretrained.describe_features(named)}
    class_weights = read_class_weights(recipe.with_defaults().class_weights, dataset.class_names)
    asked = _precise(dataclasses.replace(recipe, class_weights=class_weights, weights=weights))
    return Prepared(asked, asked.with_defaults(), tags)


def _locate(recipe: Recipe, for_audit: bool = False) -> str | FolderLayout | None:
    """Find the data that a recipe names, without reading them."""
    given = {name: getattr(recipe, name) for name in data.LAYOUT_OPTIONS}
    return data.locate_dataset(recipe.dataset, **given, for_audit=for_audit)


def load_for(
    recipe: Recipe,
    source: str | FolderLayout | None = None,
    for_audit: bool = False,
    recheck: bool | None = None,
) -> ImageDataset:
    """Load the data set that a recipe asks for; `source` is what `data.locate_dataset` gave for it."""
    given = {**recipe.data_arguments(), **({"name_or_folder": source} if source else {})}
    return load_dataset(**given, for_audit=for_audit, recheck=recheck)


def build_model(recipe: Recipe, dataset: ImageDataset, options: RunOptions | None = None) -> "keras.Model":
    """Build the recipe's model for the dataset's image shape and classes, with the weights seeded, and compile it.

    Args:
        recipe: says which model.
        dataset: gives the images' shape and the classes.
        options: say on how many devices it will be trained.

    Returns:
        A compiled `keras.Model`: `(N, H, W, 3) uint8, 0..255` to `(N, num_classes) float32` probabilities.

    Raises:
        ArgumentError: there is no such model, or it cannot be built for these images.
        LabError: its weights cannot be had.

    Example:
        dataset = cnnlab.load_dataset("digits", limit=150)
        model = cnnlab.build_model(cnnlab.Recipe(model="cnn", filters=(8, 8)), dataset)
        print(model.predict(dataset.test.images).shape)  # (37, 10)
    """
    model = build.build_model(_located(recipe), dataset, (options or RunOptions()).devices)
    remember_recipe(model, recipe)
    return model


def _located(recipe: Recipe) -> Recipe:
    """Name files by their full paths, and a model of the registry by its version."""
    model = custom_model.absolute_name(recipe.model) if custom_model.is_custom(recipe.model) else recipe.model
    backbone = recipe.backbone
    if backbone and backbone.startswith(pretrained.REGISTERED) and not pretrained.is_downloaded(backbone):
        backbone, file = stored_models.fetch(backbone)
        pretrained.add_downloaded_model(backbone, file)
    elif backbone and backbone.startswith(pretrained.HUB):
        preset = backbone.removeprefix(pretrained.HUB)
        backbone = f"{pretrained.HUB}{_full_path(preset, ())}"
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


def _arguments(recipe: Recipe) -> tuple[str, ...]:
    """Give all arguments of a function of the user's, also those left to its defaults, so that the run holds them."""
    given = recipe.with_defaults().factory_arguments()
    further = custom_arguments(recipe.model)
    values = {name: given.get(name, default) for name, default in further.items()}
    return tuple(f"{name}={value}" for name, value in values.items() if value is not None)


def _full_path(value: str | None, names: Collection[str]) -> str | None:
    return value if value is None or value in names or not Path(value).exists() else str(Path(value).resolve())


def _takes(recipe: Recipe, argument: str) -> bool:
    return not custom_model.is_custom(recipe.model) and argument in find_model(recipe.model).arguments


def _image_size(recipe: Recipe, source: object, side: Callable[[], int]) -> int:
    """Choose the pixels a side inside the model."""
    if recipe.image_size:
        return recipe.image_size
    if usual := recipe.with_defaults().image_size:  # its row's, for the small pictures of the named sets
        if not isinstance(source, FolderLayout):
            return usual
        largest = FROM_SCRATCH if _is_from_scratch(recipe) else pretrained.default_image_size(recipe.model)
        return max(usual, min(largest, side()))
    backbone = recipe.backbone or recipe.model
    smallest = BACKBONES[backbone].smallest if backbone in BACKBONES else SMALLEST
    return max(smallest, min(pretrained.default_image_size(backbone), ENLARGED * side()))


def _is_from_scratch(recipe: Recipe) -> bool:
    return not (recipe.backbone or recipe.model in BACKBONES)


def _stored_size(recipe: Recipe, image_size: int, side: Callable[[], int]) -> int:
    """Choose the pixels a side of the pictures in memory, for one model."""
    # A model that does not resize takes the pictures as they are in memory.
    if not _takes(recipe, "image_size") or image_size <= SMALLEST:
        return image_size
    return min(image_size, max(SMALLEST, side()))


def _with_sizes(recipe: Recipe, source: object, side: Callable[[], int]) -> Recipe:
    """Set the sizes of a recipe; that of the pictures in memory is left out where it is the model's."""
    image_size = _image_size(recipe, source, side)
    stored_size = recipe.stored_size or _stored_size(recipe, image_size, side)
    if not _takes(recipe, "image_size") and stored_size != image_size:
        if recipe.image_size:
            raise ArgumentError(
                f"Expected image_size {stored_size} for {recipe.label}, which takes pictures as they are stored. "
                f"Received: {image_size}. Leave image_size or stored_size out."
            )
        image_size = stored_size
    return dataclasses.replace(
        recipe, image_size=image_size, stored_size=None if stored_size == image_size else stored_size
    )


def _weights(backbone: str | None, named: str | None, side: int) -> tuple[str | None, dict[str, str]]:
    """Choose the weights of a backbone by name that can be had, which are read once for all that use them.

    Returns:
        The weights' name and the tags of a run.
    """
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
        "poor score (name weights to choose)."
    )
    return "random", {"weights_stand_in_for": "imagenet"}


def _precise(recipe: Recipe) -> Recipe:
    """Set the precisions that "auto" means on this machine, for this model."""
    used = recipe.with_defaults()
    precision, frozen, stored = runtime.resolve_precision(used.precision), used.frozen_precision, used.feature_dtype
    if frozen == "auto":
        slow = not runtime.gpu_count() and pretrained.has_depthwise_convolutions(recipe.backbone or recipe.model)
        frozen = "float32" if slow and used.precision == "float32" else runtime.resolve_precision("auto")
    elif frozen:
        frozen = runtime.resolve_precision(frozen)
    if stored == "auto":
        stored = "float16" if (frozen or precision) == "mixed_bfloat16" else "float32"
    return dataclasses.replace(recipe, precision=precision, frozen_precision=frozen, feature_dtype=stored)
