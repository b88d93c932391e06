"""Folders of pictures: from their layout to three parts of uint8 images."""

import hashlib
import os

import numpy as np
from PIL import Image

from cnnlab.data.class_folders import PARTS
from cnnlab.data.duplicates import find_duplicates
from cnnlab.data.layouts import Layout
from cnnlab.data.looks import near_pairs
from cnnlab.data.parallel import look_of
from cnnlab.data.rows import IN_MEMORY, MappedRows
from cnnlab.data.shards import KNOWN, Decoded, decoded
from cnnlab.data.splits import limited_indices, stratified_split
from cnnlab.errors import ArgumentError, LabError
from cnnlab.names import shown

TEST_SHARE = 0.2  # of a folder that has no test set of its own


class Pictures:
    """The pictures of a layout that are used, decoded, with `labels` and `part` of each.

    Attributes:
        files: `(N,)` relative paths, sorted.
        labels: `(N,) int64`.
        part: `(N,)` of "train", "val" and "test", or "" of pictures that are not used.
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


def choose(layout: Layout, val_fraction, limit, seed, bad=()):
    """Which pictures are used, and for what.

    Args:
        bad: files that are not to be used.

    Returns:
        `(files, labels, part, notes, left_out)`: arrays `(N,)` of relative paths, `int64` and "train", "val" or "test",
        in the order of the parts, classes and names; sentences; and reasons to paths.

    Raises:
        ArgumentError: there are too few for the splits or the limit.
    """
    names, notes, left_out = layout.class_names, list(layout.notes), {}
    numbers = {name: label for label, name in enumerate(names)}
    chosen = {}
    for part, pairs in layout.parts.items():
        good = [(file, numbers[name]) for file, name in pairs if file not in bad]
        if pairs and not good:
            raise ArgumentError(f"Expected {part} pictures. Received none that decode. Add some.")
        files = np.array([file for file, _ in good], dtype=object)
        chosen[part] = files, np.array([label for _, label in good], dtype=np.int64)
    trained = set(chosen["train"][1].tolist())
    if empty := [name for label, name in enumerate(names) if label not in trained]:
        raise ArgumentError(
            f"Expected training pictures of every class. Received none that decode of: {', '.join(empty)}. Add some, "
            "or move the class away."
        )

    def take(part, index):
        return tuple(column[index] for column in chosen[part])

    def hold_out(into, share, what):
        rest, held_out = stratified_split(chosen["train"][1], share, names, seed, what)
        chosen["train"], chosen[into] = take("train", rest), take("train", held_out)

    has_val, own = len(chosen["val"][0]) > 0, {part for part, pairs in layout.parts.items() if pairs}
    if "test" not in own:
        hold_out("test", TEST_SHARE, "test split")
        where = "its training pictures" if has_val else "it"
        notes.append(f"a fifth of {where} is held out as the test set, as it has none")
    if has_val and not val_fraction:
        left_out["validation pictures, as val_fraction is 0"] = list(chosen["val"][0])
        chosen["val"] = take("val", slice(0))
    if limit is not None:
        labels = {part: labels for part, (_, labels) in chosen.items()}
        for part, index in limited_indices(labels, names, limit, seed).items():
            if beyond := list(np.delete(chosen[part][0], index)):
                left_out.setdefault("pictures beyond the limit", []).extend(beyond)
            chosen[part] = take(part, index)
    if val_fraction and not has_val:
        hold_out("val", float(val_fraction), "validation split")
    notes.extend(_missing(names, {part: labels for part, (_, labels) in chosen.items()}, own))
    part = np.concatenate([np.full(len(chosen[name][0]), name) for name in PARTS])
    return *(np.concatenate([chosen[name][i] for name in PARTS]) for i in (0, 1)), part, notes, left_out


def all_of(layout: Layout, limit, seed):
    """As `choose`, with every picture in the part where it lies; of a limit, each part has its share, by chance."""
    numbers = {name: label for label, name in enumerate(layout.class_names)}
    share = min(1, limit / max(1, len(layout.parts["train"]))) if limit else 1
    columns = []
    for name in PARTS:
        pairs = layout.parts[name]
        order = np.random.default_rng(seed).permutation(len(pairs))
        columns += [(*pairs[i], name) for i in np.sort(order[: int(np.ceil(share * len(order)))])]
    files = np.array([file for file, _, _ in columns], dtype=object)
    labels = np.array([numbers[name] for _, name, _ in columns], dtype=np.int64)
    return files, labels, np.array([part for _, _, part in columns], "U5"), list(layout.notes), {}


def _missing(names, labels, own):
    """Sentences on the classes that a part has no picture of; `own` are the parts that the folder has itself."""
    without = {}
    for part, what in (("val", "validation"), ("test", "test")):
        for label in sorted(set(range(len(names))) - set(labels[part].tolist())) if len(labels[part]) else ():
            if part in own:
                yield f"no {what} pictures of {names[label]}"
            else:
                without.setdefault(label, []).append(what)
    for label, parts in without.items():
        count = sum(int((given == label).sum()) for given in labels.values())
        pictures = "one picture, which is" if count == 1 else f"{count} pictures, none of which is"
        yield f"'{names[label]}' has {pictures} for {'training' if count == 1 else ' or '.join(parts)}"


def load_pictures(layout, image_size, *, fit, val_fraction, limit, seed, skip_bad, drop_duplicates, as_found=False):
    """Choose and decode the pictures of a layout; `as_found` as in `load_dataset`.

    Returns:
        `(Pictures, notes, left_out, duplicates)`: what is said of them, reasons to paths, and `Duplicates`.

    Raises:
        ArgumentError: as `choose`.
        LabError: a picture does not decode (all of them are named), or there is no room for them.
    """
    bad, decoded_files, stored = {}, np.empty(0, object), None
    while True:
        chosen = all_of(layout, limit, seed) if as_found else choose(layout, val_fraction, limit, seed, bad)
        files, labels, part, notes, left_out = chosen
        wanted = set(files)
        if stored is None or not wanted <= set(decoded_files):
            # In one order whatever the split, so that another one finds the same decoded pictures.
            decoded_files = np.unique(files)
            stored = decoded(layout.top, decoded_files, layout.stamps, image_size, fit)
        found = {decoded_files[i]: reason for i, reason in stored.bad.items() if decoded_files[i] in wanted}
        if not found or as_found:
            bad |= found
            break
        if not skip_bad:
            raise _undecodable(layout, found)
        bad |= found
    rows = np.searchsorted(decoded_files, files)
    row_labels, row_part = np.full(len(decoded_files), -1), np.full(len(decoded_files), "", part.dtype)
    row_labels[rows], row_part[rows] = labels, part
    pictures = Pictures(decoded_files, row_labels, row_part, stored)
    if as_found:
        pictures.without(np.flatnonzero(np.isin(decoded_files, list(bad))))
    left_out = {reason: list(paths) for reason, paths in layout.left_out.items()} | left_out
    if bad:
        left_out["files without a picture that decodes"] = list(bad)
    duplicates = find_duplicates(pictures, everywhere=as_found)
    dropped = duplicates.to_drop() if drop_duplicates else ()
    if len(dropped):
        pictures.without(dropped)
        left_out["duplicate pictures of the training set"] = list(pictures.files[dropped])
        if lost := sorted(set(labels[part == "train"]) - set(pictures.labels[pictures.part == "train"])):
            raise ArgumentError(
                f"Expected training pictures of every class. Received duplicates only of: "
                f"{', '.join(layout.class_names[label] for label in lost)}. Add others, or leave --drop-duplicates out."
            )
    if duplicates.pairs:
        notes.append(duplicates.sentence(drop_duplicates))
    if stored.grey_range:
        low, high = stored.grey_range
        notes.append(f"grey values beyond 8 bits, {low:g} to {high:g} here, become 0 to 255")
    return pictures, notes, left_out, duplicates


def pictures_of_arrays(parts, side) -> Pictures:
    """Pictures that have no files, which are called by their part and their position in it: `train/123`.

    Args:
        parts: name to images `(N, H, H, 3) uint8`, labels `(N,) int64`, and positions `(N,)`.
        side: of the pictures before they were brought to that size.
    """
    pixels = np.concatenate([images for images, _, _ in parts.values()])
    known = np.zeros(len(pixels), KNOWN)
    known["pixels"] = [hashlib.sha256(image).digest() for image in pixels]
    known["look"] = [look_of(Image.fromarray(image)) for image in pixels]
    known["size"], known["low"] = side, np.nan
    files = [f"{part}/{position}" for part, (_, _, positions) in parts.items() for position in positions]
    labels = np.concatenate([labels for _, labels, _ in parts.values()])
    part = np.concatenate([np.full(len(labels), part) for part, (_, labels, _) in parts.items()])
    stored = Decoded(pixels, known, {}, near_pairs(pixels, known["look"]))
    return Pictures(np.array(files, dtype=object), labels, part, stored)


def _undecodable(layout, bad):
    named = [f"{shown(os.path.join(layout.top, file))} ({reason})" for file, reason in bad.items()]
    one = len(named) == 1
    received = f"{'one that does' if one else f'{len(named):,} that do'} not decode: {'; '.join(named)}"
    return LabError(
        f"Expected all pictures of '{shown(layout.top)}' to decode. Received {received}. Repair or remove "
        f"{'it' if one else 'them'}, or leave {'it' if one else 'them'} out with --skip-bad."
    )


def source_of(layout: Layout) -> str:
    """A name for the folder's content that survives moving it: a hash of its files' relative names and sizes."""
    listing = hashlib.sha256()
    for file in layout.files:
        listing.update(os.fsencode(f"{file}\0{layout.stamps[file][0]}\n"))
    return f"folder/{listing.hexdigest()[:12]}"
