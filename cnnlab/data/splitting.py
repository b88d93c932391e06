"""Seeded stratified splits and subsets of a data set, and the digest of its images and labels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import train_test_split

from cnnlab.data.disk_rows import MappedRows
from cnnlab.errors import ArgumentError

Positions = npt.NDArray[np.int64]
Name = TypeVar("Name", bound=str)
TEST_SHARE = 0.2  # of data without a test set of their own


@dataclass(frozen=True)
class Shares:
    """Say which shares of the training images are held out where the data have no such split of their own."""

    val: float = 0.1  # for validation, of what is left after the test set; 0 for none
    test: float | None = None  # for the test set; `None` for `TEST_SHARE`
    every_class: bool = False  # whether each class has an image in both, although that may be more than the shares say


@dataclass(frozen=True)
class HeldOut:
    """Hold the sorted positions of the images that stay for training and of those that are held out."""

    rest: Positions  # of those that stay
    positions: Positions  # of those that are held out
    share: float  # of the images that was to be held out
    apportioned: bool = False  # whether that was kept at the price that a class may have no image held out

    def describe(self, purpose: str, option: str) -> str:
        """Say how many images are held out, and why where that is another share than was asked for."""
        total = len(self.positions) + len(self.rest)
        text = f"{len(self.positions):,} of {total:,} pictures ({len(self.positions) / total:.0%}) {purpose}"
        if self.is_kept:
            return text
        more = len(self.positions) > self.share * total
        why = "so that each class has one" if more else "as small classes stay for training"
        return f"{text}, where {option} is {self.share:g}, {why}"

    @property
    def is_kept(self) -> bool:
        """Tell whether the share is kept: within one image, or one percentage point of all."""
        total = len(self.positions) + len(self.rest)
        return abs(len(self.positions) - round(self.share * total)) <= max(1, 0.01 * total)


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


def hold_out(
    labels: npt.NDArray[np.int64],
    share: float,
    class_names: Sequence[str],
    seed: int,
    what: str,
    *,
    every_class: bool = False,
    away: Positions | int = 0,
    whole_share: float | None = None,
) -> HeldOut:
    """Hold a share of the images out, stratified by class and seeded.

    Each class has an image on both sides, as in `stratified_split`, unless the share would be missed by more than one
    image and one percentage point, or rounding would take more than half of a class away from training. Then the share
    is divided among the classes by largest remainders, so that small classes may have no image held out.

    Args:
        labels: `(N,)` integers.
        share: of the images that is held out.
        class_names, seed, what: as in `stratified_split`.
        every_class: whether each class has an image on both sides in any case.
        away: `(C,)`, images of each class that were held out before.
        whole_share: of all images, with those that were held out before; by default `share`.

    Raises:
        ArgumentError: no class has an image that can be held out.
    """
    by_class = np.bincount(labels, minlength=len(class_names))
    whole, whole_share = by_class + away, whole_share or share
    most = whole // 2 if whole_share <= 0.5 else np.ceil(whole * whole_share - 1e-9).astype(int)
    room = np.clip(most - away, 0, np.maximum(by_class - 1, 0))
    if not room.any():  # others were held out before, up to half of each class
        room = np.maximum(by_class - 1, 0)
    try:
        rest, held_out = stratified_split(labels, float(share), class_names, seed, what)
    except ArgumentError:
        if every_class or not room.any():
            raise
    else:
        is_balanced = (np.bincount(labels[held_out], minlength=len(room)) <= room).all()
        held = HeldOut(rest, held_out, share)
        if every_class or (is_balanced and held.is_kept):
            return held
    counts = _largest_remainders(by_class * share, max(1, round(share * len(labels))), room, seed)
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    drawn = [shuffled[labels[shuffled] == label][:count] for label, count in enumerate(counts) if count]
    positions = np.sort(np.concatenate(drawn))
    return HeldOut(np.setdiff1d(np.arange(len(labels)), positions), positions, share, apportioned=True)


def _largest_remainders(quotas: npt.NDArray[np.floating], total: int, room: Positions, seed: int) -> Positions:
    """Round the quotas of classes to whole numbers of this total, none above its room; equal remainders are drawn."""
    counts = np.minimum(np.floor(quotas + 1e-9).astype(int), room)
    order = np.random.default_rng(seed).permutation(len(quotas))
    while (missing := total - counts.sum()) > 0 and (counts < room).any():
        open_classes = order[counts[order] < room[order]]
        remainders = (quotas - counts)[open_classes]
        counts[open_classes[np.argsort(-remainders, kind="stable")[:missing]]] += 1
    return counts


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
