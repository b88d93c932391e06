"""Folders of pictures: from their layout to three parts of uint8 images."""

import hashlib
import os

import numpy as np
from PIL import Image

from cnnlab.data.class_folders import SPLIT_NAMES
from cnnlab.data.decoded_cache import KNOWN, Decoded, decoded
from cnnlab.data.disk_rows import IN_MEMORY, MappedRows, forget
from cnnlab.data.duplicates import find_duplicates
from cnnlab.data.folder_layout import FolderLayout
from cnnlab.data.parallel_decoding import difference_hash
from cnnlab.data.perceptual_hash import find_near_duplicates
from cnnlab.data.splitting import stratified_split, stratified_subset
from cnnlab.errors import ArgumentError, LabError
from cnnlab.utils.text import escape_control_characters

FORGOTTEN = 1000  # pictures, after which their pages are taken out of the process
TEST_SHARE = 0.2  # of a folder that has no test set of its own


class Pictures:
    """The pictures of a layout that are used, decoded, with `labels` and `splits`.

    Attributes:
        files: `(N,)` relative paths, sorted.
        labels: `(N,) int64`.
        splits: `(N,)` of "train", "val" and "test", or "" of pictures that are not used.
        stored: `shards.Decoded`.
    """

    def __init__(self, files, labels, splits, stored):
        self.files, self.labels, self.splits, self.stored = files, labels, splits, stored

    def positions(self, *parts):
        """Positions of the pictures of some parts, in order of class and name."""
        return np.flatnonzero(np.isin(self.splits, parts))

    def without(self, positions):
        """Take some out of all parts."""
        self.splits = self.splits.copy()
        self.splits[positions] = ""

    def rows(self, positions):
        """Pictures as `MappedRows`, with digests where all of them together are too large for memory."""
        large = self.stored.pixels.nbytes > IN_MEMORY
        return MappedRows([(self.stored.pixels, positions)], digests=self.stored.digests if large else None)

    def images(self, positions):
        """`(n, side, side, 3) uint8`: an array, or `MappedRows` where all of them together are too large for memory."""
        rows = self.rows(positions)
        return rows[:] if rows.stored_digests is None else rows


def choose(layout: FolderLayout, val_fraction, limit, seed, bad=()):
    """Which pictures are used, and for what.

    Args:
        bad: positions in the layout that are not to be used.

    Returns:
        `(rows, part, notes, left_out)`: arrays `(N,)` of positions in the layout, and of "train", "val" or "test", in
        the order of the parts, classes and names; sentences; and reasons to paths.

    Raises:
        ArgumentError: there are too few for the splits or the limit.
    """
    names, notes, left_out = layout.class_names, list(layout.notes), {}
    there = {part: layout.rows(part) for part in SPLIT_NAMES}
    chosen = {part: rows[~np.isin(rows, list(bad))] for part, rows in there.items()}
    for part, rows in chosen.items():
        if len(there[part]) and not len(rows):
            raise ArgumentError(f"Expected {part} pictures. Received none that decode. Add some.")
    trained = set(layout.labels[chosen["train"]].tolist())
    if empty := [name for label, name in enumerate(names) if label not in trained]:
        raise ArgumentError(
            f"Expected training pictures of every class. Received none that decode of: {', '.join(empty)}. Add some, "
            "or move the class away."
        )

    def hold_out(into, share, what):
        train = chosen["train"]
        rest, held_out = stratified_split(layout.labels[train], share, names, seed, what)
        chosen["train"], chosen[into] = train[rest], train[held_out]

    has_val, own = len(chosen["val"]) > 0, {part for part, rows in there.items() if len(rows)}
    if "test" not in own:
        hold_out("test", TEST_SHARE, "test split")
        where = "its training pictures" if has_val else "it"
        notes.append(f"a fifth of {where} is held out as the test set, as it has none")
    if has_val and not val_fraction:
        left_out["validation pictures, as val_fraction is 0"] = list(layout.files[chosen["val"]])
        chosen["val"] = chosen["val"][:0]
    if limit is not None:
        labels = {part: layout.labels[rows] for part, rows in chosen.items()}
        for part, index in stratified_subset(labels, names, limit, seed).items():
            if len(beyond := np.delete(chosen[part], index)):
                left_out.setdefault("pictures beyond the limit", []).extend(layout.files[beyond])
            chosen[part] = chosen[part][index]
    if val_fraction and not has_val:
        hold_out("val", float(val_fraction), "validation split")
    notes.extend(_missing(names, {part: layout.labels[rows] for part, rows in chosen.items()}, own))
    return *_in_a_row(chosen), notes, left_out


def choose_all_images(layout: FolderLayout, limit, seed):
    """As `choose`, with every picture in the part where it lies; of a limit, each part has its share, by chance."""
    rows = {part: layout.rows(part) for part in SPLIT_NAMES}
    share = min(1, limit / max(1, len(rows["train"]))) if limit else 1
    for part, there in rows.items():
        order = np.random.default_rng(seed).permutation(len(there))
        rows[part] = there[np.sort(order[: int(np.ceil(share * len(order)))])]
    return *_in_a_row(rows), list(layout.notes), {}


def _in_a_row(by_part):
    """Positions by part as one array, and their parts as another."""
    lengths = [len(rows) for rows in by_part.values()]
    return np.concatenate(list(by_part.values())), np.repeat(list(by_part), lengths)


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


def load_pictures(
    layout, image_size, *, resize_mode, val_fraction, limit, seed, skip_bad, drop_duplicates, for_audit=False
):
    """Choose and decode the pictures of a layout; `for_audit` as in `load_dataset`.

    Returns:
        `(Pictures, notes, left_out, duplicates)`: what is said of them, reasons to paths, and `Duplicates`.

    Raises:
        ArgumentError: as `choose`.
        LabError: a picture does not decode (all of them are named), or there is no room for them.
    """
    bad, there, stored = {}, np.empty(0, np.int64), None
    while True:
        chosen = choose_all_images(layout, limit, seed) if for_audit else choose(layout, val_fraction, limit, seed, bad)
        rows, part, notes, left_out = chosen
        if stored is None or not np.isin(rows, there).all():
            # In one order whatever the split, so that another one finds the same decoded pictures.
            there = np.sort(rows)
            stored = decoded(layout.top, layout.files[there], layout.stamps[there], image_size, resize_mode)
        failed = np.fromiter(stored.bad, np.int64)
        found = {int(there[i]): stored.bad[i] for i in failed[np.isin(there[failed], rows)].tolist()}
        bad |= found
        if not found or for_audit:
            break
        if not skip_bad:
            raise _undecodable(layout, found)
    row_labels, row_part = np.full(len(there), -1), np.full(len(there), "", part.dtype)
    places = np.searchsorted(there, rows)
    row_labels[places], row_part[places] = layout.labels[rows], part
    pictures = Pictures(layout.files[there], row_labels, row_part, stored)
    if for_audit:
        pictures.without(np.searchsorted(there, list(bad)))
    left_out = {reason: list(paths) for reason, paths in layout.left_out.items()} | left_out
    if bad:
        left_out["files without a picture that decodes"] = list(layout.files[list(bad)])
    duplicates = find_duplicates(pictures, everywhere=for_audit)
    dropped = duplicates.to_drop() if drop_duplicates else ()
    if len(dropped):
        pictures.without(dropped)
        left_out["duplicate pictures of the training set"] = list(pictures.files[dropped])
        if lost := sorted(set(row_labels[row_part == "train"]) - set(pictures.labels[pictures.splits == "train"])):
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


def pictures_of_arrays(parts, positions, side) -> Pictures:
    """Pictures that have no files, which are called by their part and their position in it: `train/123`.

    Args:
        parts: name to images `(N, H, H, 3) uint8`, which `resize_images` gave, and labels `(N,) int64`.
        positions: name to `(N,)`, where they are in the whole part.
        side: of the pictures before they were brought to that size.
    """
    given = [images for images, _ in parts.values()]
    # Rows on the disk are all those of one file, part behind part.
    pixels = given[0].sources[0][0] if isinstance(given[0], MappedRows) else np.concatenate(given)
    known = np.zeros(len(pixels), KNOWN)
    for i, image in enumerate(pixels):
        known["pixels"][i], known["look"][i] = hashlib.sha256(image).digest(), difference_hash(Image.fromarray(image))
        if i % FORGOTTEN == 0:
            forget(pixels)
    known["size"], known["low"] = side, np.nan
    files = [f"{part}/{position}" for part, there in positions.items() for position in there]
    labels = np.concatenate([labels for _, labels in parts.values()])
    part = np.repeat(list(parts), [len(labels) for _, labels in parts.values()])
    stored = Decoded(pixels, known, {}, find_near_duplicates(pixels, known["look"]))
    return Pictures(np.array(files, dtype=object), labels, part, stored)


def _undecodable(layout, bad):
    named = [
        f"{escape_control_characters(os.path.join(layout.top, layout.files[row]))} ({reason})"
        for row, reason in bad.items()
    ]
    one = len(named) == 1
    received = f"{'one that does' if one else f'{len(named):,} that do'} not decode: {'; '.join(named)}"
    return LabError(
        f"Expected all pictures of '{layout.top}' to decode. Received {received}. Repair or remove "
        f"{'it' if one else 'them'}, or leave {'it' if one else 'them'} out with --skip-bad."
    )


def folder_source(layout: FolderLayout) -> str:
    """A name for the folder's content that survives moving it: a hash of its files' relative names and sizes."""
    listing = hashlib.sha256()
    for file, size in zip(layout.files, layout.stamps[:, 0], strict=True):
        listing.update(os.fsencode(f"{file}\0{size}\n"))
    return f"folder/{listing.hexdigest()[:12]}"
