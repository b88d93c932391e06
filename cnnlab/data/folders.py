"""Folders of pictures: listing the classes, and reading them to uint8 arrays of one size."""

import hashlib
import os
from pathlib import Path

import numpy as np

from cnnlab.data.parallel import decode_files
from cnnlab.data.splits import limited_indices, stratified_split
from cnnlab.errors import ArgumentError

EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"))
FORMATS = ", ".join(sorted(extension[1:] for extension in EXTENSIONS))
TEST_SHARE = 0.2  # of a folder that has no test set of its own


def load_folder(folder, image_size, *, limit=None, seed=0):
    """Read `train/<class>/*` and `test/<class>/*`, or class folders only.

    Returns:
        `(name, source, class_names, (train_images, train_labels), (test_images, test_labels))`, images
        `(N, image_size, image_size, 3) uint8`, labels `(N,) int64`.

    Raises:
        ArgumentError: the folder is empty, has one class, or the test set has classes that the training set lacks.
        LabError: an image does not decode (the message names the file).
    """
    folder = Path(folder).resolve()
    parts = {p.name for p in folder.iterdir() if p.is_dir()}
    if {"train", "test"} <= parts:
        train, test = _list_classes(folder / "train"), _list_classes(folder / "test")
        if extra := sorted(set(test) - set(train)):
            raise ArgumentError(
                f"Expected every class of '{folder / 'test'}' to be in train too. "
                f"Received: {', '.join(extra)} in test only. Add training images of it or remove it."
            )
        class_names = sorted(train)
        train_files, train_labels = _flatten(train, class_names)
        test_files, test_labels = _flatten(test, class_names)
    elif "train" in parts:
        raise ArgumentError(
            f"Expected '{folder}' to hold train/ and test/, or class folders only. Received: train/ without test/. "
            f"Add test/, or pass '{folder / 'train'}' to have a test set split off."
        )
    else:
        classes = _list_classes(folder)
        class_names = sorted(classes)
        files, labels = _flatten(classes, class_names)
        rest, chosen = stratified_split(labels, TEST_SHARE, class_names, seed, "test split")
        train_files, train_labels = files[rest], labels[rest]
        test_files, test_labels = files[chosen], labels[chosen]

    source = _source(folder, train_files, test_files)
    train_index, test_index = limited_indices(train_labels, test_labels, class_names, limit, seed)
    train_files, train_labels = train_files[train_index], train_labels[train_index]
    test_files, test_labels = test_files[test_index], test_labels[test_index]
    # Two arrays: a view into a common one would keep all of it in memory.
    train_images, test_images = decode_files(train_files, image_size), decode_files(test_files, image_size)
    return folder.name, source, class_names, (train_images, train_labels), (test_images, test_labels)


def pictures_below(folder):
    """Paths, as texts, in a folder and its subfolders that claim to be pictures, in no order, without hidden files."""
    for parent, _, names in os.walk(folder):
        for name in names:
            if os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith("."):
                yield os.path.join(parent, name)


def _list_classes(folder):
    """Class name to its sorted image files; hidden files and files that claim to be no image are left out."""
    classes = {}
    for child in sorted(folder.iterdir()):
        if child.is_dir() and not child.name.startswith("."):
            files = sorted(pictures_below(child))
            if files:
                classes[child.name] = files
    if len(classes) < 2:
        received = f"only '{next(iter(classes))}'" if classes else "none"
        raise ArgumentError(
            f"Expected '{folder}' to hold at least two class folders with images ({FORMATS}). Received: {received}."
        )
    return classes


def _flatten(classes, class_names):
    files = np.array([file for name in class_names for file in classes.get(name, ())], dtype=object)
    labels = [label for label, name in enumerate(class_names) for _ in classes.get(name, ())]
    return files, np.array(labels, dtype=np.int64)


def _source(folder, train_files, test_files):
    """A name for the folder's content that survives moving it: a hash of the relative names and sizes of its files."""
    listing, top = hashlib.sha256(), len(os.path.join(folder, ""))
    for file in sorted([*train_files, *test_files]):  # texts, as a Path a file takes longer than decoding does
        listing.update(f"{file[top:]}\0{os.stat(file).st_size}\n".encode())
    return f"folder/{listing.hexdigest()[:12]}"
