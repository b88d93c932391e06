"""Seeded stratified splits, the choice that a limit makes, and digests of what came out."""

import hashlib

import numpy as np
from sklearn.model_selection import train_test_split

from cnnlab.errors import ArgumentError


def stratified_split(labels, part, class_names, seed, what):
    """Indices `(rest, part)` of a seeded stratified split; `part` is a number or a share, at least one a class.

    Raises:
        ArgumentError: a class would be missing from one side.
    """
    count = part if isinstance(part, int) else max(round(part * len(labels)), len(class_names))
    smallest = int(np.bincount(labels, minlength=len(class_names)).min())
    if smallest < 2 or count < len(class_names) or len(labels) - count < len(class_names):
        raise ArgumentError(
            f"Expected at least one image of each of the {len(class_names)} classes on both sides of the {what}. "
            f"Received: {count} of {len(labels)} images, the smallest class having {smallest}. "
            "Use more images or another share."
        )
    rest, chosen = train_test_split(np.arange(len(labels)), test_size=count, stratify=labels, random_state=seed)
    return np.sort(rest), np.sort(chosen)


def limited_indices(train_labels, test_labels, class_names, limit, seed):
    """Indices of a stratified choice of at most `limit` training images, and of test images in proportion.

    Raises:
        ArgumentError: the limit leaves less than one training image for each class.
    """
    if limit is not None and limit < len(class_names):
        raise ArgumentError(
            f"Expected limit to be at least {len(class_names)}, an image for each class. Received: {limit}."
        )
    share = 1.0 if limit is None else min(1.0, limit / len(train_labels))
    chosen = []
    for labels in (train_labels, test_labels):
        count = max(round(share * len(labels)), len(class_names))
        if len(labels) - count >= len(class_names):
            chosen.append(stratified_split(labels, count, class_names, seed, f"limit of {limit} images")[1])
        else:  # all but a few: a stratified split has no room for the rest
            order = np.random.default_rng(seed).permutation(len(labels))
            chosen.append(np.sort(order[:count]))
    return chosen


def digest_of(class_names, *arrays) -> str:
    """sha256 of a data set or a part of it: its class names, and its images and labels."""
    digest = hashlib.sha256("\0".join(class_names).encode())
    for array in arrays:
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()
