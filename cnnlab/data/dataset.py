"""`load_dataset` loads an image data set, built-in or from a folder, as an `ImageDataset` of three splits.

Images are uint8 arrays of one size, labels integers; a seeded stratified share of the training set becomes the
validation set. Digests tell one data set from another.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnlab.data.image_dataset import ImageDataset, Part, digests_of, make_splits
from cnnlab.errors import ArgumentError, LabError
from cnnlab.utils.argument_types import convert_arguments
from cnnlab.utils.environment import read_variable
from cnnlab.utils.log import log

if TYPE_CHECKING:  # the command line asks for names only, and answers without NumPy
    from cnnlab.data.folder_layout import FolderLayout
    from cnnlab.data.splitting import Shares

# Arguments of `locate_dataset` that are fields of the recipe.
LAYOUT_OPTIONS = ("labels", "image_column", "label_column", "split_column", "fold", "class_names", "skip_bad")


def locate_dataset(
    name_or_folder: str | os.PathLike[str] | None = None,
    *,
    labels: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    fold: str | None = None,
    class_names: str | None = None,
    skip_bad: bool = False,
    for_audit: bool = False,
) -> str | FolderLayout | None:
    """Find out which data set is meant, before any of its pictures are read.

    Args:
        name_or_folder: as in `load_dataset`.
        labels, class_names: CSV files, as in `find_layout`.
        image_column, label_column, split_column, fold: what is said by hand of the columns of `labels`, as in
            `TableOptions`.
        skip_bad: whether class folders without pictures are left out.
        for_audit: as in `load_dataset`.

    Returns:
        The name of a built-in set, `None` for the default one, or the layout of a folder.

    Raises:
        ArgumentError: an unknown name, a missing folder or one that is not understood.
    """
    from cnnlab.data import builtin_sets

    columns = {"image": image_column, "label": label_column, "split": split_column, "fold": fold}
    columns = {name: value for name, value in columns.items() if value is not None}
    if columns and not labels:
        option = next(name for name in columns)
        option = option if option == "fold" else f"{option}_column"
        raise ArgumentError(f"Expected labels, a CSV file, with {option}. Received: none. Leave {option} out.")
    if name_or_folder is not None and builtin_sets.is_folder(str(name_or_folder)):
        from cnnlab.data.folder_layout import find_layout
        from cnnlab.data.table_columns import TableOptions

        options: dict[str, Any] = {"labels": labels, "columns": TableOptions(**columns), "class_names": class_names}
        return find_layout(str(name_or_folder), **options, skip_empty=skip_bad, for_audit=for_audit)
    if labels or class_names:
        raise ArgumentError(
            f"Expected labels and class_names with a folder of pictures. Received: {name_or_folder or 'no dataset'}. "
            "Leave them out."
        )
    return None if name_or_folder is None else str(name_or_folder)


@convert_arguments
def load_dataset(
    name_or_folder: str | os.PathLike[str] | FolderLayout | None = None,
    *,
    image_size: int = 32,
    val_fraction: float = 0.1,
    limit: int | None = None,
    seed: int = 0,
    resize_mode: str = "crop",
    labels: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    fold: str | None = None,
    class_names: str | None = None,
    skip_bad: bool = False,
    drop_duplicates: bool = False,
    test_fraction: float | None = None,
    hold_out_every_class: bool = False,
    for_audit: bool = False,
    recheck: bool | None = None,
) -> ImageDataset:
    """Load an image data set by name or from a folder.

    Args:
        name_or_folder: "cifar10", "cifar100", "mnist", "fashion_mnist" (through `keras.datasets`), "digits" (from
            scikit-learn), or a folder with `train/<class>/*`, `test/<class>/*` and perhaps `val/<class>/*`, or with
            class folders only; or what `locate_dataset` returns. `None` is "cifar10", or "digits" with a warning where
            that cannot be downloaded.
        image_size: pixels a side of the images; grey pictures become RGB.
        val_fraction: share of the training set that is held out for validation, stratified, where a folder has no
            val/; with 0 the test set is the validation set too.
        limit: use at most this many training images, and test images in proportion, both stratified.
        seed: of the splits.
        resize_mode: how a picture of a folder becomes a square: "crop", "pad" or "stretch".
        labels, class_names: CSV files, as in `find_layout`.
        image_column, label_column: columns of `labels`, by name or number, that hold the file names and the labels.
        split_column: the column of `labels` that tells train, val and test; "none" leaves such columns aside.
        fold: the fold, of a column of folds, that is the validation set.
        skip_bad: whether files that do not decode, and class folders without pictures, are left out.
        drop_duplicates: whether training pictures that are in another split too, come again, or have two labels are
            left out.
        test_fraction: share of a folder's pictures that is held out as the test set, stratified, where it has none;
            0.2 by default.
        hold_out_every_class: whether a picture of each class is held out, also where that is more than the fractions
            say; else these are kept, and small classes may be trained only.
        for_audit: whether all pictures are loaded, none held out for validation or test; duplicates within the splits
            are found too, and what a training would lack is a note in place of an error.
        recheck: whether the files of a folder are compared with their stored pictures byte by byte, not by name, size
            and time only; `$CNNLAB_RECHECK` by default.

    Raises:
        ArgumentError: an unknown name, a missing or unusable folder, a split or limit too small for the classes.
        LabError: pictures that do not decode, or data that was named and cannot be downloaded.

    Example:
        digits = cnnlab.load_dataset("digits", image_size=8)
        print(digits.train.images.shape, len(digits.val))  # (1294, 8, 8, 3) 144
    """
    from cnnlab.data import builtin_sets
    from cnnlab.data.splitting import Shares

    if not 0 <= val_fraction < 1:
        raise ArgumentError(f"Expected val_fraction to be at least 0 and below 1. Received: {val_fraction}.")
    if image_size < 1:
        raise ArgumentError(f"Expected image_size to be a whole number above 0. Received: {image_size!r}.")
    if not 0 <= seed < 2**32:
        raise ArgumentError(f"Expected seed to be a whole number from 0 to {2**32 - 1}. Received: {seed!r}.")
    if test_fraction is not None and not (0 < test_fraction < 1):
        raise ArgumentError(f"Expected test_fraction to be above 0 and below 1. Received: {test_fraction}.")
    shares = Shares(val_fraction, test_fraction, hold_out_every_class)
    if recheck is None:
        recheck = bool(read_variable("CNNLAB_RECHECK"))
    source = name_or_folder
    if source is None or isinstance(source, (str, os.PathLike)):
        layout: dict[str, Any] = {"labels": labels, "class_names": class_names, "skip_bad": skip_bad, "fold": fold}
        layout |= {"image_column": image_column, "label_column": label_column, "split_column": split_column}
        source = locate_dataset(source, **layout, for_audit=for_audit)
    if source is not None and not isinstance(source, str):
        decoding: dict[str, Any] = {"resize_mode": resize_mode, "skip_bad": skip_bad}
        decoding |= {"drop_duplicates": drop_duplicates, "for_audit": for_audit, "recheck": recheck}
        return _from_folder(source, image_size, shares, limit, seed, decoding)
    name = source or builtin_sets.DEFAULT_DATASET
    try:
        return _from_name(name, image_size, shares, limit, seed, for_audit, recheck)
    except LabError as error:
        if source is not None or isinstance(error, ArgumentError):
            raise
    fallback = builtin_sets.FALLBACK_DATASET
    log.warning(f"{name} cannot be downloaded; using the embedded {fallback} instead (name a dataset to choose).")
    return replace(_from_name(fallback, image_size, shares, limit, seed, for_audit, recheck), stands_in_for=name)


def _from_name(
    name: str, image_size: int, shares: Shares, limit: int | None, seed: int, for_audit: bool, recheck: bool
) -> ImageDataset:
    """Load a built-in set, and hold out a validation set."""
    from cnnlab.data import builtin_sets, image_folder
    from cnnlab.data.duplicates import find_duplicates
    from cnnlab.data.resizing import resize_images
    from cnnlab.data.splitting import hold_out
    from cnnlab.data.summary import DatasetSummary, describe_dataset

    source, loaded = builtin_sets.load_builtin_set(name, limit=limit, seed=seed)
    class_names = builtin_sets.BUILTIN_SETS[name].classes
    resized = resize_images([split.images for split in loaded.values()], image_size, name, recheck)
    splits = {
        split: Part(images, one.images, one.labels)
        for (split, one), images in zip(loaded.items(), resized, strict=True)
    }
    # Of the pixels, wherever they are: runs from before they were stored on the disk have the same digest.
    digests = digests_of(class_names, splits["train"], splits["test"], by_row=False)
    pictures, tables, pairs, notes, apportioned = None, {}, (), [], False
    if shares.test is not None:
        notes.append("test_fraction is not used, as there is a test set")
    if Path(name).is_dir():
        notes.append(f"a folder of that name is here too; the dataset ./{name} is the folder")
    if for_audit:
        positions = {split: one.positions for split, one in loaded.items()}
        arrays = {split: (part.images, part.labels) for split, part in splits.items()}
        pictures = image_folder.pictures_of_arrays(arrays, positions, builtin_sets.BUILTIN_SETS[name].side)
        duplicates = find_duplicates(pictures, within_splits=True)
        tables, pairs = {"duplicates.csv": duplicates.table(class_names)}, tuple(duplicates.pairs)
        notes += [duplicates.sentence()] if pairs else []
    elif shares.val:
        train, every_class = splits["train"], shares.every_class
        held = hold_out(train.labels, shares.val, class_names, seed, "validation split", every_class=every_class)
        notes += [] if held.is_kept else [held.describe("are held out for validation", "val_fraction")]
        splits |= {"train": train.select(held.rest), "val": train.select(held.positions)}
        apportioned = held.apportioned
    counts = {split: len(part.labels) for split, part in splits.items()}
    lines = describe_dataset(name, class_names, counts, image_size, notes=notes)
    summary = DatasetSummary(lines, tables=tables, duplicates=pairs)
    return ImageDataset(
        name,
        source,
        class_names,
        *make_splits(class_names, splits, by_row=False),
        *digests,
        summary=summary,
        pictures=pictures,
        apportioned=apportioned,
    )


def _from_folder(
    layout: FolderLayout,
    image_size: int,
    shares: Shares,
    limit: int | None,
    seed: int,
    decoding: dict[str, Any],
) -> ImageDataset:
    """Load the pictures of a folder.

    Args:
        decoding: the further arguments of `load_folder`.
    """
    from cnnlab.data import image_folder
    from cnnlab.data.class_folders import SPLITS
    from cnnlab.data.summary import DatasetSummary, describe_dataset
    from cnnlab.utils.text import escape_control_characters

    loaded = image_folder.load_folder(layout, image_size, shares=shares, limit=limit, seed=seed, **decoding)
    pictures, duplicates = loaded.pictures, loaded.duplicates
    name, class_names = escape_control_characters(os.path.basename(layout.root)) or "root", layout.class_names
    files = pictures.stored.file_digests
    splits = {}
    for split in SPLITS:
        positions = pictures.positions(split)
        if split != "val" or len(positions):
            splits[split] = Part(pictures.images(positions), files[positions], pictures.labels[positions])
    whole = [
        Part(pictures.rows(positions), files[positions], pictures.labels[positions])
        for positions in (pictures.positions("train", "val"), pictures.positions("test"))
    ]
    lines = describe_dataset(
        name,
        class_names,
        {split: len(part.labels) for split, part in splits.items()},
        image_size,
        labels=splits["train"].labels,
        sizes=pictures.stored.sizes[pictures.positions(*SPLITS)],
        resize_mode=decoding["resize_mode"],
        notes=loaded.notes,
        left_out=loaded.left_out,
    )
    tables = {"duplicates.csv": duplicates.table(class_names)} if duplicates.pairs or decoding["for_audit"] else {}
    return ImageDataset(
        name,
        image_folder.folder_source(layout),
        class_names,
        *make_splits(class_names, splits),
        *digests_of(class_names, *whole),
        summary=DatasetSummary(lines, loaded.left_out, tables, tuple(duplicates.pairs)),
        resize_mode=decoding["resize_mode"],
        grey_range=pictures.stored.grey_range,
        pictures=pictures,
        apportioned=loaded.apportioned,
    )
