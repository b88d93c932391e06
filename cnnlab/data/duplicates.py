"""Find duplicate pictures of a data set: pairs with the same pixels, and pairs that look nearly the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cnnlab.data.class_folders import SPLITS
from cnnlab.data.pictures import Pictures
from cnnlab.utils.text import csv_line

COLUMNS = ("kind", "first", "first_part", "first_class", "second", "second_part", "second_class")


@dataclass(frozen=True)
class DuplicatePair:
    """Two positions in a data set of the same picture."""

    first: int
    second: int
    near: bool  # whether they only look nearly the same, rather than have the same pixels


@dataclass(frozen=True)
class Duplicates:
    """Hold the pairs of duplicate pictures of a data set."""

    pictures: Pictures
    pairs: list[DuplicatePair]
    splits: npt.NDArray[np.str_]  # `(N,)`, the splits of the pictures when the pairs were found

    def mislabelled(self) -> list[DuplicatePair]:
        """Return the pairs of the same pixels under two labels."""
        labels = self.pictures.labels
        return [p for p in self.pairs if not p.near and labels[p.first] != labels[p.second]]

    def sentence(self, dropped: bool = False) -> str:
        """Describe the pairs with their numbers; `dropped` says whether duplicates are kept out of training."""
        described = []
        for near, what in ((False, "the same"), (True, "nearly the same")):
            by_splits: dict[str, set[int]] = {}
            for p in self.pairs:
                splits = sorted({str(self.splits[p.first]), str(self.splits[p.second])}, key=SPLITS.index)
                if p.near == near and len(splits) > 1:
                    by_splits.setdefault(" and in ".join(splits), set()).add(p.second)
            for where, found in by_splits.items():
                how = f"of {what} look in {where}" if near else f"in {where}, pixel by pixel"
                described.append(f"{_count(found)} {how}")
        if pairs := self.mislabelled():
            described.append(f"{_count({p.second for p in pairs})} under two labels")
        for near, how in ((False, "twice"), (True, "of nearly the same look as another")):
            inside = {p.second for p in self.pairs if p.near == near and self.splits[p.first] == self.splits[p.second]}
            if inside:
                described.append(f"{_count(inside)} {how} in one split")
        kept_out = "kept out of training" if dropped else "drop_duplicates keeps them out of training"
        return f"duplicates: {'; '.join(described)} (duplicates.csv; {kept_out})"

    def table(self, class_names: Sequence[str]) -> str:
        """Return all pairs as CSV."""
        lines = [csv_line(COLUMNS)]
        files, splits, labels = self.pictures.files, self.splits, self.pictures.labels
        for p in self.pairs:
            row = ["near" if p.near else "same"]
            for i in (p.first, p.second):
                row += [files[i], splits[i], class_names[labels[i]]]
            lines.append(csv_line(row))
        return "".join(lines)

    def to_drop(self) -> npt.NDArray[np.int64]:
        """Return the positions of training pictures that are in another split too, come again, or have two labels."""
        splits = self.splits
        dropped = {i for p in self.mislabelled() for i in (p.first, p.second) if splits[i] == "train"}
        for p in self.pairs:
            for one, other in ((p.first, p.second), (p.second, p.first)):
                if splits[one] == "train" and splits[other] != "train":
                    dropped.add(one)
            if not p.near and splits[p.first] == splits[p.second] == "train":
                dropped.add(p.second)
        return np.array(sorted(dropped), int)


def _count(pictures: set[int]) -> str:
    return "1 picture" if len(pictures) == 1 else f"{len(pictures):,} pictures"


def find_duplicates(pictures: Pictures, within_splits: bool = False) -> Duplicates:
    """Find pairs of the same pixels, and pairs of nearly the same look across two splits, or also `within_splits`.

    Pairs with two labels come first, then those of the same pixels, then those across splits.
    """
    used = pictures.positions(*SPLITS)
    digests, splits = pictures.stored.digests, pictures.splits
    _, first, which = np.unique(digests[used], return_index=True, return_inverse=True)
    first = first[which]  # where the same pixels were first
    again = first != np.arange(len(used))
    same = np.stack([used[first[again]], used[again]], axis=1)  # (M, 2)
    pairs = [DuplicatePair(one, other, False) for one, other in same.tolist()]
    near = pictures.stored.near_duplicates
    one, other = near.T
    counts = (splits[one] != "") & (splits[other] != "") & (digests[one] != digests[other])
    if not within_splits:
        counts &= splits[one] != splits[other]
    pairs += [DuplicatePair(one, other, True) for one, other in near[counts].tolist()]
    labels = pictures.labels
    pairs.sort(key=lambda p: (labels[p.first] == labels[p.second], p.near, splits[p.first] == splits[p.second]))
    return Duplicates(pictures, pairs, splits)
