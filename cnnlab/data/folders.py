"""Folders of pictures: from their layout to three parts of uint8 images."""

import hashlib
import os
from collections import Counter

import numpy as np

from cnnlab.data.duplicates import find_duplicates
from cnnlab.data.layouts import Layout
from cnnlab.data.rows import IN_MEMORY, MappedRows
from cnnlab.data.shards import decoded
from cnnlab.data.splits import limited_indices, stratified_split
from cnnlab.errors import ArgumentError, LabError
from cnnlab.names import shown

TEST_SHARE = 0.2  # of a folder that has no test set of its own
PARTS = ("train", "val", "test")


class Pictures:
    """The pictures of a layout that are used, decoded, with `labels` and `part` of each.

    Attributes:
        files: `(N,)` relative paths.
        labels: `(N,) int64`.
        part: `(N,)` of "train", "val" and "test".
        stored: `shards.Decoded`.
    """

    def __init__(self, files, labels, part, stored):
        self.files, self.labels, self.part, self.stored = files, labels, part, stored

    def positions(self, *parts):
        """Positions of the pictures of some parts, in order of class and name."""
        return np.flatnonzero(np.isin(self.part, parts))

    def without(self, positions):
        """Take some out of all parts."""
        self.part = self.part.copy()
        self.part[positions] = ""

    def rows(self, positions):
        """Pictures as `MappedRows`, with digests where all of them together are too large for memory."""
        large = self.stored.pixels.nbytes > IN_MEMORY
        return MappedRows([(self.stored.pixels, positions)], digests=self.stored.digests if large else None)

    def images(self, positions):
        """`(n, side, side, 3) uint8`: an array, or `MappedRows` where all of them together are too large for memory."""
        rows = self.rows(positions)
        return rows[:] if rows.digests is None else rows


def choose(layout: Layout, val_fraction, limit, seed, notes, left_out):
    """Which pictures are used, and for what; sentences and what is left out are added to `notes` and `left_out`.

    Returns:
        `(files, labels, part)`: arrays `(N,)` of relative paths, `int64` and "train", "val" or "test", in the order of
        the parts, classes and names.

    Raises:
        ArgumentError: there are too few for the splits or the limit.
    """
    names = layout.class_names
    numbers = {name: label for label, name in enumerate(names)}
    chosen = {}
    for part, pairs in layout.parts.items():
        files = np.array([file for file, _ in pairs], dtype=object)
        chosen[part] = files, np.array([numbers[name] for _, name in pairs], dtype=np.int64)

    def take(part, index):
        return tuple(column[index] for column in chosen[part])

    def hold_out(into, share, what):
        rest, held_out = stratified_split(chosen["train"][1], share, names, seed, what)
        chosen["train"], chosen[into] = take("train", rest), take("train", held_out)

    has_val = len(chosen["val"][0]) > 0
    if not len(chosen["test"][0]):
        hold_out("test", TEST_SHARE, "test split")
        where = "its training pictures" if has_val else "it"
        notes.append(f"a fifth of {where} is held out as the test set, as it has none")
    if has_val and not val_fraction:
        left_out["validation pictures, as val_fraction is 0"] = list(chosen["val"][0])
        chosen["val"] = take("val", slice(0))
    if limit is not None:
        labels = {part: labels for part, (_, labels) in chosen.items()}
        for part, index in limited_indices(labels, names, limit, seed).items():
            chosen[part] = take(part, index)
    if val_fraction and not has_val:
        hold_out("val", float(val_fraction), "validation split")
    part = np.concatenate([np.full(len(chosen[name][0]), name) for name in PARTS])
    return *(np.concatenate([chosen[name][i] for name in PARTS]) for i in (0, 1)), part


def load_pictures(layout, image_size, *, fit, val_fraction, limit, seed, skip_bad, drop_duplicates):
    """Choose and decode the pictures of a layout.

    Returns:
        `(Pictures, notes, left_out, duplicates)`: what is said of them, reasons to paths, and `Duplicates`.

    Raises:
        ArgumentError: as `choose`.
        LabError: a picture does not decode (all of them are named), or there is no room for them.
    """
    notes, left_out = list(layout.notes), {reason: list(paths) for reason, paths in layout.left_out.items()}
    files, labels, part = choose(layout, val_fraction, limit, seed, notes, left_out)
    # In one order whatever the split, so that another one finds the same decoded pictures.
    order = np.argsort(files, kind="stable")
    stored = decoded(layout.top, files[order], layout.stamps, image_size, fit)
    pictures = Pictures(files[order], labels[order], part[order], stored)
    if stored.bad:
        left_out["files without a picture that decodes"] = _without_bad(layout, pictures, skip_bad)
    duplicates = find_duplicates(pictures)
    if duplicates.pairs:
        notes.extend(duplicates.sentences())
    if drop_duplicates and len(dropped := duplicates.to_drop()):
        pictures.without(dropped)
        left_out["duplicate pictures of the training set"] = list(pictures.files[dropped])
    _expect_training_pictures(layout, pictures)
    if stored.grey_range:
        low, high = stored.grey_range
        notes.append(f"grey values of 16 bits, {low:g} to {high:g} here, become 0 to 255")
    notes.extend(_missing(layout, pictures))
    return pictures, notes, left_out, duplicates


def _without_bad(layout, pictures, skip_bad):
    """Take the pictures that do not decode out, or raise; their files."""
    bad = pictures.stored.bad
    if not skip_bad:
        named = [f"{shown(os.path.join(layout.top, pictures.files[i]))} ({reason})" for i, reason in bad.items()]
        one = len(named) == 1
        received = f"{'one that does' if one else f'{len(named):,} that do'} not decode: {'; '.join(named)}"
        raise LabError(
            f"Expected all pictures of '{shown(layout.top)}' to decode. Received {received}. Repair or remove "
            f"{'it' if one else 'them'}, or leave {'it' if one else 'them'} out with --skip-bad."
        )
    positions = np.fromiter(bad, int)
    pictures.without(positions)
    return list(pictures.files[positions])


def _expect_training_pictures(layout, pictures):
    counts = np.bincount(pictures.labels[pictures.positions("train")], minlength=len(layout.class_names))
    if empty := [name for name, count in zip(layout.class_names, counts, strict=True) if not count]:
        raise ArgumentError(
            f"Expected training pictures of every class. Received none that are left of: {', '.join(empty)}. Add some, "
            "or move the class away."
        )
    for part in ("val", "test"):
        if not len(pictures.positions(part)) and part in set(pictures.part):
            raise ArgumentError(f"Expected {part} pictures. Received none that decode. Add some.")


def _missing(layout, pictures):
    """A sentence for each rare class that a part has no picture of."""
    of_training = Counter(pictures.labels.tolist())
    without = {}
    for part, what in (("val", "validation"), ("test", "test")):
        labels = set(pictures.labels[pictures.positions(part)].tolist())
        # Said of a layout's own parts already.
        if labels and not layout.parts[part]:
            for label in set(range(len(layout.class_names))) - labels:
                without.setdefault(label, []).append(what)
    for label, parts in sorted(without.items()):
        count = of_training[label]
        pictures_ = "one picture, which is" if count == 1 else f"{count} pictures, none of which is"
        where = "for training" if count == 1 else f"for {' or '.join(parts)}"
        yield f"'{layout.class_names[label]}' has {pictures_} {where}"


def source_of(layout: Layout) -> str:
    """A name for the folder's content that survives moving it: a hash of its files' relative names and sizes."""
    listing = hashlib.sha256()
    for file in layout.files:
        listing.update(os.fsencode(f"{file}\0{layout.stamps[file][0]}\n"))
    return f"folder/{listing.hexdigest()[:12]}"
