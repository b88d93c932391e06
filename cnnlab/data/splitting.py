"""Seeded stratified splits and subsets of a data set, and the digest of its images and labels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import train_test_split

from cnnlab.data.disk_rows import MappedRows
from cnnlab.errors import ArgumentError

Positions = npt.NDArray[np.int64]
Name = TypeVar("Name", bound=str)


def stratified_split(
    labels: npt.NDArray[np.int64], held_out: int | float, class_names: Sequence[str], seed: int, what: str
) -> tuple[Positions, Positions]:
    """Split the positions of labels in two, stratified by class and seeded.

    Each class is on both sides, except a class with a single image, which stays in the rest.

    Args:
        labels: `(N,)` integers.
        held_out: how many images are held out, or which share of them; at least one a class.
        class_names: of the labels, for the error message.
        what: a name for the split, for the error message.

    Returns:
        `(rest, held_out)`, sorted positions.

    Raises:
        ArgumentError: there are too few images to have every class on both sides.
    """
    count = held_out if isinstance(held_out, int) else max(round(held_out * len(labels)), len(class_names))
    by_class = np.bincount(labels, minlength=len(class_names))
    shared = np.flatnonzero(by_class[labels] > 1)  # positions of the classes that can be on both sides
    classes = int((by_class > 1).sum())
    if count < classes or len(shared) - count < classes or not classes:
        smallest = int(by_class.argmin())
        raise ArgumentError(
            f"Expected at least one image of each of the {len(class_names)} classes on both sides of the {what}. "
            f"Received: {count} of {len(labels)} images, the smallest class, '{class_names[smallest]}', having "
            f"{by_class[smallest]}. Use more images or another share."
        )
    _, drawn = train_test_split(shared, test_size=count, stratify=labels[shared], random_state=seed)
    chosen = _with_every_class(labels, np.asarray(drawn), by_class, seed)
    return np.setdiff1d(np.arange(len(labels)), chosen), np.sort(chosen)


def _with_every_class(labels: npt.NDArray[np.int64], chosen: Positions, by_class: Positions, seed: int) -> Positions:
    """Add or remove positions so that every class of two or more images is on both sides, which rounding may miss."""
    counts, order = np.bincount(labels[chosen], minlength=len(by_class)), np.random.default_rng(seed)
    for label in np.flatnonzero((by_class > 1) & (counts == 0)):
        chosen = np.append(chosen, order.choice(np.flatnonzero(labels == label)))
    for label in np.flatnonzero((by_class > 1) & (counts == by_class)):
        chosen = np.setdiff1d(chosen, order.choice(np.flatnonzero(labels == label)))
    return chosen


def stratified_subset(
    labels: Mapping[Name, npt.NDArray[np.int64]], class_names: Sequence[str], limit: int | None, seed: int
) -> dict[Name, Positions]:
    """Choose at most `limit` training images, stratified by class, and images of the other splits in proportion.

    Args:
        labels: those of each split by its name, "train" among them.
        limit: of training images; `None` for all.

    Returns:
        The sorted positions that are chosen of each split, by its name.

    Raises:
        ArgumentError: the limit leaves less than one training image for each class.
    """
    if limit is not None and limit < len(class_names):
        raise ArgumentError(
            f"Expected limit to be at least {len(class_names)}, an image for each class. Received: {limit}."
        )
    [train] = [given for split, given in labels.items() if split == "train"]
    share = 1.0 if limit is None else min(1.0, limit / len(train))
    chosen = {}
    for split, given in labels.items():
        count = max(round(share * len(given)), len(class_names))
        if len(given) - count >= len(class_names):
            index = stratified_split(given, count, class_names, seed, f"limit of {limit} images")[1]
        else:  # nearly all of them: a stratified split has no room for the rest
            index = np.sort(np.random.default_rng(seed).permutation(len(given))[:count])
        chosen[split] = _with_single_images(given, index)
    return chosen


def _with_single_images(labels: npt.NDArray[np.int64], index: Positions) -> Positions:
    """Include every class that has a single image, in exchange for an image of the class with the most."""
    for label in np.setdiff1d(labels, labels[index]):
        largest = np.flatnonzero(labels[index] == np.bincount(labels[index]).argmax())
        index = np.append(np.delete(index, largest[-1]), np.flatnonzero(labels == label)[0])
    return np.sort(index)


def dataset_digest(class_names: Sequence[str], *arrays: npt.NDArray[Any] | MappedRows, by_row: bool = True) -> str:
    """Return the sha256 of a data set or a split of it: of its class names, images (or their originals) and labels.

    Args:
        by_row: whether `MappedRows` whose row digests are known count by these, as reading their pixels takes long.
    """
    digest = hashlib.sha256("\0".join(class_names).encode())
    for array in arrays:
        digest.update(f"{array.shape}{array.dtype}".encode())
        if not isinstance(array, MappedRows):
            digest.update(np.ascontiguousarray(array).data)
        elif by_row and (known := array.digests) is not None:
            digest.update(known.data)
        else:
            for start in range(0, len(array), 1000):
                digest.update(array[start : start + 1000].data)
    return digest.hexdigest()
