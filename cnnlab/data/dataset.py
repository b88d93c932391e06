"""Image sets: by name or from a folder, as uint8 arrays in three parts, with class names and digests."""

import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cnnlab.errors import ArgumentError, LabError
from cnnlab.utils.log import log

if TYPE_CHECKING:  # the command line asks for names only, and answers without NumPy
    import numpy as np

    from cnnlab.data.summary import DatasetSummary


@dataclass(frozen=True)
class Split:
    """The training, validation or test images.

    Attributes:
        images: `(N, stored_size, stored_size, 3) uint8`, `MappedRows` where they are too large for memory.
        labels: `(N,) int64`.
        digest: sha256 of the class names, the images and the labels.
    """

    images: "np.ndarray" = field(repr=False)
    labels: "np.ndarray" = field(repr=False)
    digest: str

    def __len__(self):
        return len(self.labels)


@dataclass(frozen=True)
class ImageDataset:
    """Images and labels in three parts, with what is needed to tell one data set from another.

    Attributes:
        name: short name; a folder's own name.
        source: what the data is, whatever part of it is used: "keras.datasets/cifar10", "sklearn/digits", or
            "folder/" and a hash of the files' names and sizes. Runs with different sources never share an experiment.
        class_names: the class of each label, in label order.
        train, val, test: `Split`s; with `val_fraction=0` the validation part is the test part itself.
        digest: sha256 of class names, images and labels of the training set before the validation split, and of the
            test set, so that it does not change with `val_fraction`.
        stands_in_for: the name of the data set that could not be had, when this is its embedded stand-in.
        summary: what was found, taken for what, and left out.
        resize_mode, grey_range: of a folder, how its pictures were decoded, as `decode_image` takes it.
        pictures: of a folder, or where every picture is taken as it is found: all of them, as `folders.Pictures`.
    """

    name: str
    source: str
    class_names: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    digest: str
    stands_in_for: str | None = None
    summary: "DatasetSummary | None" = None
    resize_mode: str | None = None
    grey_range: tuple[float, float] | None = None
    pictures: object = field(default=None, repr=False)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(stored_size, stored_size, 3)`."""
        return self.train.images.shape[1:]

    @property
    def val_is_test(self) -> bool:
        """Whether the validation part is the test set itself."""
        return self.val is self.test


def locate_dataset(name_or_folder=None, *, labels=None, class_names=None, skip_bad=False, for_audit=False):
    """Look what data is meant, before any of it is read: a name, or the `FolderLayout` of a folder.

    Args:
        name_or_folder: as in `load_dataset`.
        labels, class_names: CSV files, as in `layouts.find_layout`.
        skip_bad: leave class folders without pictures out.
        for_audit: as in `load_dataset`.

    Raises:
        ArgumentError: an unknown name, a missing folder or one that is not understood.
    """
    from cnnlab.data import builtin_sets

    if name_or_folder is not None and builtin_sets.is_folder(str(name_or_folder)):
        from cnnlab.data.folder_layout import find_layout

        how = {"skip_empty": skip_bad, "for_audit": for_audit}
        return find_layout(name_or_folder, labels=labels, class_names=class_names, **how)
    if labels or class_names:
        raise ArgumentError(
            f"Expected labels and class_names with a folder of pictures. Received: {name_or_folder or 'no dataset'}. "
            "Leave them out."
        )
    return name_or_folder


def load_dataset(
    name_or_folder=None,
    *,
    image_size=32,
    val_fraction=0.1,
    limit=None,
    seed=0,
    resize_mode="crop",
    labels=None,
    class_names=None,
    skip_bad=False,
    drop_duplicates=False,
    for_audit=False,
) -> ImageDataset:
    """Load an image set by name or from a folder.

    Args:
        name_or_folder: "cifar10", "cifar100", "mnist", "fashion_mnist" (through `keras.datasets`), "digits" (from
            scikit-learn), or a folder with `train/<class>/*`, `test/<class>/*` and perhaps `val/<class>/*`, or with
            class folders only, of which a seeded stratified fifth becomes the test set; or what `locate_dataset`
            returns. `None` is "cifar10", or "digits" with a warning where that cannot be downloaded.
        image_size: pixels a side that images are brought to; grey images become RGB.
        val_fraction: share of the training set held out, stratified, where a folder has no val/; 0 validates on the
            test set.
        limit: use at most this many training images, and test images in proportion, both stratified.
        seed: of the splits.
        resize_mode: how a picture of a folder becomes a square: "crop", "pad" or "stretch".
        labels, class_names: CSV files, as in `locate_dataset`.
        skip_bad: leave files that do not decode out, and class folders without pictures.
        drop_duplicates: keep training pictures that are in another part too, come again, or have two labels out.
        for_audit: all pictures for an audit, none held out for validation or test; duplicates are looked for inside the
            parts too, and what a training would lack is a note in place of an error.

    Raises:
        ArgumentError: an unknown name, a missing or unusable folder, a split or limit too small for the classes.
        LabError: pictures that do not decode, or data that was named and cannot be downloaded.
    """
    from cnnlab.data import builtin_sets

    if not isinstance(val_fraction, (int, float)) or not 0 <= val_fraction < 1:
        raise ArgumentError(f"Expected val_fraction to be at least 0 and below 1. Received: {val_fraction}.")
    if not isinstance(image_size, int) or image_size < 1:
        raise ArgumentError(f"Expected image_size to be a whole number above 0. Received: {image_size!r}.")
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ArgumentError(f"Expected seed to be a whole number from 0 to {2**32 - 1}. Received: {seed!r}.")
    source = name_or_folder
    if source is None or isinstance(source, (str, os.PathLike)):
        source = locate_dataset(source, labels=labels, class_names=class_names, skip_bad=skip_bad, for_audit=for_audit)
    if source is not None and not isinstance(source, str):
        how = {
            "resize_mode": resize_mode,
            "skip_bad": skip_bad,
            "drop_duplicates": drop_duplicates,
            "for_audit": for_audit,
        }
        return _from_folder(source, image_size, val_fraction, limit, seed, how)
    name = source or builtin_sets.DEFAULT_DATASET
    try:
        return _from_name(name, image_size, val_fraction, limit, seed, for_audit)
    except LabError as error:
        if source is not None or isinstance(error, ArgumentError):
            raise
    log.warning(
        f"{name} cannot be downloaded; using the embedded {builtin_sets.FALLBACK_DATASET} instead (name --dataset to "
        "choose)."
    )
    return replace(
        _from_name(builtin_sets.FALLBACK_DATASET, image_size, val_fraction, limit, seed, for_audit), stands_in_for=name
    )


def _from_name(name, image_size, val_fraction, limit, seed, for_audit):
    from cnnlab.data import builtin_sets, image_folder
    from cnnlab.data.disk_rows import MappedRows
    from cnnlab.data.duplicates import find_duplicates
    from cnnlab.data.resizing import resize_images
    from cnnlab.data.splitting import dataset_digest, stratified_split
    from cnnlab.data.summary import DatasetSummary, describe

    name, source, class_names, *given = builtin_sets.load_builtin_set(name, limit=limit, seed=seed)
    images = resize_images([images for images, _, _ in given], image_size, name)
    parts = {
        part: (images, labels) for part, images, (_, labels, _) in zip(("train", "test"), images, given, strict=True)
    }
    class_names = tuple(class_names)
    # By the pixels, wherever they are, so that runs of before they were stored are known to be on the same.
    digest = dataset_digest(class_names, *parts["train"], *parts["test"], by_row=False)
    pictures, tables, pairs = None, {}, ()
    notes = []
    if builtin_sets.has_folder_of_same_name(name):
        notes.append(f"a folder of that name is here too; --dataset ./{name} is the folder")
    if for_audit:
        positions = dict(zip(parts, (positions for _, _, positions in given), strict=True))
        pictures = image_folder.pictures_of_arrays(parts, positions, builtin_sets.BUILTIN_SETS[name].side)
        duplicates = find_duplicates(pictures, everywhere=True)
        tables, pairs = {"duplicates.csv": duplicates.table(class_names)}, tuple(duplicates.pairs)
        notes += [duplicates.sentence()] if pairs else []
    elif val_fraction:
        images, labels = parts["train"]
        rest, held_out = stratified_split(labels, float(val_fraction), class_names, seed, "validation split")
        take = images.only if isinstance(images, MappedRows) else images.__getitem__
        parts |= {"train": (take(rest), labels[rest]), "val": (take(held_out), labels[held_out])}
    counts = {part: len(labels) for part, (_, labels) in parts.items()}
    lines = describe(name, class_names, counts, image_size, notes=notes)
    summary = DatasetSummary(lines, tables=tables, duplicates=pairs)
    return _dataset(name, source, class_names, parts, digest, summary, pictures, by_row=False)


def _from_folder(layout, image_size, val_fraction, limit, seed, how):
    from cnnlab.data import image_folder
    from cnnlab.data.splitting import dataset_digest
    from cnnlab.data.summary import DatasetSummary, describe
    from cnnlab.utils.text import escape_control_characters

    pictures, notes, left_out, duplicates = image_folder.load_pictures(
        layout, image_size, val_fraction=val_fraction, limit=limit, seed=seed, **how
    )
    name, class_names = escape_control_characters(os.path.basename(layout.top)) or "root", layout.class_names
    parts, whole = {}, []
    for part in ("train", "val", "test"):
        positions = pictures.positions(part)
        if part != "val" or len(positions):
            parts[part] = (pictures.images(positions), pictures.labels[positions])
    for positions in (pictures.positions("train", "val"), pictures.positions("test")):
        whole += [pictures.rows(positions), pictures.labels[positions]]
    counts = {part: len(labels) for part, (_, labels) in parts.items()}
    used = pictures.positions("train", "val", "test")
    words = {"labels": parts["train"][1], "sizes": pictures.stored.sizes[used], "resize_mode": how["resize_mode"]}
    words["left_out"] = left_out
    lines = describe(name, class_names, counts, image_size, notes=notes, **words)
    tables = {"duplicates.csv": duplicates.table(class_names)} if duplicates.pairs or how["for_audit"] else {}
    summary = DatasetSummary(lines, left_out, tables, tuple(duplicates.pairs))
    dataset = _dataset(
        name,
        image_folder.folder_source(layout),
        class_names,
        parts,
        dataset_digest(class_names, *whole),
        summary,
        pictures,
    )
    return replace(dataset, resize_mode=how["resize_mode"], grey_range=pictures.stored.grey_range)


def _dataset(name, source, class_names, parts, digest, summary, pictures=None, by_row=True):
    from cnnlab.data.splitting import dataset_digest

    made = {
        part: Split(images, labels, dataset_digest(class_names, images, labels, by_row=by_row))
        for part, (images, labels) in parts.items()
    }
    made.setdefault("val", made["test"])
    return ImageDataset(name, source, class_names, **made, digest=digest, summary=summary, pictures=pictures)
