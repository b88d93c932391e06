"""Pictures that are there more than once: the same pixels, or nearly the same look."""

from dataclasses import dataclass

import numpy as np

from cnnlab.data.class_folders import SPLIT_NAMES
from cnnlab.utils.text import csv_line

COLUMNS = ("kind", "first", "first_part", "first_class", "second", "second_part", "second_class")


@dataclass(frozen=True)
class DuplicatePair:
    """Two positions of the same picture: of the same pixels, or `near`."""

    first: int
    second: int
    near: bool


@dataclass(frozen=True)
class Duplicates:
    """Pairs of pictures that are one, each with a picture of another part, or of the same part."""

    pictures: object
    pairs: list[DuplicatePair]
    part: np.ndarray  # as it was when they were found

    def between_splits(self, near=None):
        """Pairs of a training picture and one of another part, or of validation and test."""
        part = self.part
        return [p for p in self.pairs if part[p.first] != part[p.second] and near in (None, p.near)]

    def mislabelled(self):
        """Pairs of the same pixels under two labels."""
        labels = self.pictures.labels
        return [p for p in self.pairs if not p.near and labels[p.first] != labels[p.second]]

    def sentence(self, dropped=False) -> str:
        """What was found, counted; `dropped` where they are kept out of training."""
        said = []
        for near, what in ((False, "the same"), (True, "nearly the same")):
            if pairs := self.between_splits(near):
                kinds = {}
                for p in pairs:
                    parts = sorted({str(self.part[p.first]), str(self.part[p.second])}, key=list(SPLIT_NAMES).index)
                    kinds.setdefault(" and in ".join(parts), set()).add(p.second)
                for where, found in kinds.items():
                    said.append(
                        f"{_pictures(len(found))} of {what} look in {where}"
                        if near
                        else f"{_pictures(len(found))} in {where}, pixel by pixel"
                    )
        if pairs := self.mislabelled():
            said.append(f"{_pictures(len({p.second for p in pairs}))} under two labels")
        for near, how in ((False, "twice"), (True, "of nearly the same look as another")):
            if inside := {p.second for p in self.pairs if p.near == near and self.part[p.first] == self.part[p.second]}:
                said.append(f"{_pictures(len(inside))} {how} in one part")
        kept_out = "kept out of training" if dropped else "--drop-duplicates keeps them out of training"
        return f"duplicates: {'; '.join(said)} (duplicates.csv; {kept_out})"

    def table(self, class_names) -> str:
        """All pairs as CSV."""
        lines = [csv_line(COLUMNS)]
        files, part, labels = self.pictures.files, self.part, self.pictures.labels
        for p in self.pairs:
            row = ["near" if p.near else "same"]
            for i in (p.first, p.second):
                row += [files[i], part[i], class_names[labels[i]]]
            lines.append(csv_line(row))
        return "".join(lines)

    def to_drop(self):
        """Positions of training pictures that are in another part too, that come again, or that have two labels."""
        dropped, part = set(), self.part
        twice = {i for p in self.mislabelled() for i in (p.first, p.second)}
        for p in self.pairs:
            for one, other in ((p.first, p.second), (p.second, p.first)):
                if part[one] == "train" and part[other] != "train":
                    dropped.add(one)
            if not p.near and part[p.first] == part[p.second] == "train":
                dropped.add(p.second)
        dropped |= {i for i in twice if part[i] == "train"}
        return np.array(sorted(dropped), int)


def _pictures(count):
    return "1 picture" if count == 1 else f"{count:,} pictures"


def find_duplicates(pictures, everywhere=False) -> Duplicates:
    """Pairs of the same pixels, and of nearly the same look between two parts, or `everywhere`; those with two labels
    first, then the same pixels, then those across parts.

    Args:
        pictures: a `folders.Pictures`.
    """
    used = pictures.positions("train", "val", "test")
    digests, part = pictures.stored.digests, pictures.splits
    _, first, which = np.unique(digests[used], return_index=True, return_inverse=True)
    first = first[which]  # where the same pixels were first
    again = first != np.arange(len(used))
    pairs = [DuplicatePair(*pair, False) for pair in np.stack([used[first[again]], used[again]], axis=1).tolist()]
    near = pictures.stored.near
    one, other = near.T
    counts = (part[one] != "") & (part[other] != "") & (digests[one] != digests[other])
    if not everywhere:
        counts &= part[one] != part[other]
    pairs += [DuplicatePair(first, second, True) for first, second in near[counts].tolist()]
    labels = pictures.labels
    pairs.sort(key=lambda p: (labels[p.first] == labels[p.second], p.near, part[p.first] == part[p.second]))
    return Duplicates(pictures, pairs, pictures.splits)
