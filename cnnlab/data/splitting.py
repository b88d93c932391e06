"""Seeded stratified splits, the choice that a limit makes, and digests of what came out."""

import hashlib

import numpy as np
from sklearn.model_selection import train_test_split

from cnnlab.data.disk_rows import MappedRows
from cnnlab.errors import ArgumentError


def stratified_split(labels, part, class_names, seed, what):
    """Indices `(rest, part)` of a seeded stratified split; `part` is a number or a share, at least one a class.

    Each class is on both sides, but one with a single image, which is in the rest.

    Raises:
        ArgumentError: there are too few images for that.
    """
    count = part if isinstance(part, int) else max(round(part * len(labels)), len(class_names))
    by_class = np.bincount(labels, minlength=len(class_names))
    shared = np.flatnonzero(by_class[labels] > 1)  # positions
    classes = int((by_class > 1).sum())
    if count < classes or len(shared) - count < classes or not classes:
        smallest = int(by_class.argmin())
        raise ArgumentError(
            f"Expected at least one image of each of the {len(class_names)} classes on both sides of the {what}. "
            f"Received: {count} of {len(labels)} images, the smallest class, '{class_names[smallest]}', having "
            f"{by_class[smallest]}. Use more images or another share."
        )
    _, chosen = train_test_split(shared, test_size=count, stratify=labels[shared], random_state=seed)
    chosen = _with_every_class(labels, chosen, by_class, seed)
    return np.setdiff1d(np.arange(len(labels)), chosen), np.sort(chosen)


def _with_every_class(labels, chosen, by_class, seed):
    """A choice that has some, not all, of every class of two or more images: rounding may leave rare ones out."""
    counts, order = np.bincount(labels[chosen], minlength=len(by_class)), np.random.default_rng(seed)
    for label in np.flatnonzero((by_class > 1) & (counts == 0)):
        chosen = np.append(chosen, order.choice(np.flatnonzero(labels == label)))
    for label in np.flatnonzero((by_class > 1) & (counts == by_class)):
        chosen = np.setdiff1d(chosen, order.choice(np.flatnonzero(labels == label)))
    return chosen


def stratified_subset(labels, class_names, limit, seed) -> dict:
    """Indices of a stratified choice of at most `limit` training images, and of those of other parts in proportion.

    Args:
        labels: part to its labels; "train" is one.

    Raises:
        ArgumentError: the limit leaves less than one training image for each class.
    """
    if limit is not None and limit < len(class_names):
        raise ArgumentError(
            f"Expected limit to be at least {len(class_names)}, an image for each class. Received: {limit}."
        )
    share = 1.0 if limit is None else min(1.0, limit / len(labels["train"]))
    chosen = {}
    for part, given in labels.items():
        count = max(round(share * len(given)), len(class_names))
        if len(given) - count >= len(class_names):
            index = stratified_split(given, count, class_names, seed, f"limit of {limit} images")[1]
        else:  # all but a few: a stratified split has no room for the rest
            index = np.sort(np.random.default_rng(seed).permutation(len(given))[:count])
        chosen[part] = _with_single_images(given, index)
    return chosen


def _with_single_images(labels, index):
    """A choice in which a class of a single image is, in the place of one of the largest class."""
    for label in np.setdiff1d(labels, labels[index]):
        largest = np.flatnonzero(labels[index] == np.bincount(labels[index]).argmax())
        index = np.append(np.delete(index, largest[-1]), np.flatnonzero(labels == label)[0])
    return np.sort(index)


def dataset_digest(class_names, *arrays, by_row=True) -> str:
    """sha256 of a data set or a part of it: its class names, and its images and labels.

    Args:
        by_row: of `MappedRows` whose digests are known these are taken, as their pixels would take long to read.
    """
    digest = hashlib.sha256("\0".join(class_names).encode())
    for array in arrays:
        digest.update(f"{array.shape}{array.dtype}".encode())
        if not isinstance(array, MappedRows):
            digest.update(np.ascontiguousarray(array))
        elif by_row and (known := array.digests) is not None:
            digest.update(known)
        else:
            for start in range(0, len(array), 1000):
                digest.update(array[start : start + 1000])
    return digest.hexdigest()
