"""Pictures that are there more than once: the same pixels, or nearly the same look."""

from dataclasses import dataclass

import numpy as np

from cnnlab.data.rows import forget
from cnnlab.names import csv_line

HASH_BITS = 64
NEAR = 3  # bits in which the hashes of two pictures may differ
BANDS = 4  # of the hash, one more than NEAR: two hashes that are near agree in one of them
ALIKE = 0.98  # correlation of grey pixels, above which two pictures with near hashes are the same
CROWD = 200  # pictures with one band in common, above which it says nothing (plain skies)
COLUMNS = ("kind", "first", "first_part", "first_class", "second", "second_part", "second_class")


@dataclass(frozen=True)
class Pair:
    """Two positions of the same picture: of the same pixels, or `near`."""

    first: int
    second: int
    near: bool


@dataclass(frozen=True)
class Duplicates:
    """Pairs of pictures that are one, each with a picture of another part, or of the same part."""

    pictures: object
    pairs: list[Pair]

    def between_parts(self, near=None):
        """Pairs of a training picture and one of another part, or of validation and test."""
        part = self.pictures.part
        return [p for p in self.pairs if part[p.first] != part[p.second] and near in (None, p.near)]

    def mislabelled(self):
        """Pairs of the same pixels under two labels."""
        labels = self.pictures.labels
        return [p for p in self.pairs if not p.near and labels[p.first] != labels[p.second]]

    def sentences(self):
        """What was found, counted."""
        said = []
        for near, what in ((False, "the same"), (True, "nearly the same")):
            if pairs := self.between_parts(near):
                kinds = {}
                for p in pairs:
                    parts = sorted({str(self.pictures.part[p.first]), str(self.pictures.part[p.second])}, key=_ORDER)
                    kinds.setdefault(" and in ".join(parts), set()).add(p.second)
                for where, found in kinds.items():
                    said.append(
                        f"{_pictures(len(found))} of {what} look in {where}"
                        if near
                        else f"{_pictures(len(found))} in {where}, pixel by pixel"
                    )
        if pairs := self.mislabelled():
            said.append(f"{_pictures(len({p.second for p in pairs}))} under two labels")
        inside = {
            p.second for p in self.pairs if not p.near and self.pictures.part[p.first] == self.pictures.part[p.second]
        }
        if inside:
            said.append(f"{_pictures(len(inside))} twice in one part")
        return [f"duplicates: {'; '.join(said)} (duplicates.csv; --drop-duplicates keeps them out of training)"]

    def table(self, class_names) -> str:
        """All pairs as CSV."""
        lines = [csv_line(COLUMNS)]
        files, part, labels = self.pictures.files, self.pictures.part, self.pictures.labels
        for p in self.pairs:
            row = ["near" if p.near else "same"]
            for i in (p.first, p.second):
                row += [files[i], part[i], class_names[labels[i]]]
            lines.append(csv_line(row))
        return "".join(lines)

    def to_drop(self):
        """Positions of training pictures that are in another part too, that come again, or that have two labels."""
        dropped, part = set(), self.pictures.part
        twice = {i for p in self.mislabelled() for i in (p.first, p.second)}
        for p in self.pairs:
            for one, other in ((p.first, p.second), (p.second, p.first)):
                if part[one] == "train" and part[other] != "train":
                    dropped.add(one)
            if not p.near and part[p.first] == part[p.second] == "train":
                dropped.add(p.second)
        dropped |= {i for i in twice if part[i] == "train"}
        return np.array(sorted(dropped), int)


def _ORDER(part):
    return ("train", "val", "test").index(part)


def _pictures(count):
    return "1 picture" if count == 1 else f"{count:,} pictures"


def find_duplicates(pictures, everywhere=False) -> Duplicates:
    """Pairs of the same pixels, and of nearly the same look between two parts, or `everywhere`.

    The look is the difference hash of the library ImageHash (64 bits, of neighbouring brightnesses); two pictures whose
    hashes differ in at most 3 bits are compared pixel by pixel.

    Args:
        pictures: a `folders.Pictures`.
    """
    used = pictures.positions("train", "val", "test")
    digests, looks = pictures.stored.digests, pictures.stored.looks
    pairs, same = [], {}
    for i in used:
        first = same.setdefault(digests[i], i)
        if first != i:
            pairs.append(Pair(int(first), int(i), False))
    unique = np.array(sorted(same.values()), int)
    pairs += [Pair(a, b, True) for a, b in _near(pictures, unique, looks[unique], everywhere)]
    return Duplicates(pictures, pairs)


def _near(pictures, positions, looks, everywhere):
    """Pairs of positions whose looks differ in a few bits, and whose pixels are alike."""
    part, width, found = np.unique(pictures.part, return_inverse=True)[1], HASH_BITS // BANDS, []
    for band in range(BANDS):
        keys = (looks >> np.uint64(band * width)) & np.uint64(2**width - 1)
        crowd = np.bincount(keys.astype(int), minlength=2**width)[keys.astype(int)]
        order = np.flatnonzero((crowd > 1) & (crowd <= CROWD))
        order = order[np.argsort(keys[order], kind="stable")]
        for shift in range(1, CROWD):
            a, b = order[:-shift], order[shift:]
            together = keys[a] == keys[b]
            if not together.any():
                break
            a, b = a[together], b[together]
            near = np.bitwise_count(looks[a] ^ looks[b]) <= NEAR
            found.append(np.sort(np.stack([positions[a[near]], positions[b[near]]], axis=1), axis=1))
    if not found:
        return
    pairs = np.unique(np.concatenate(found), axis=0)
    if not everywhere:
        pairs = pairs[part[pairs[:, 0]] != part[pairs[:, 1]]]
    for one, other in pairs.tolist():
        alike = _alike(pictures.stored.pixels[one], pictures.stored.pixels[other])
        forget(pictures.stored.pixels)
        if alike:
            yield one, other


def _alike(one, other):
    a, b = (pixels.mean(axis=2).ravel() for pixels in (one, other))
    a, b = a - a.mean(), b - b.mean()
    size = np.linalg.norm(a) * np.linalg.norm(b)
    return size > 0 and float(a @ b) / size > ALIKE
