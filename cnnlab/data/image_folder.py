"""Load an image folder: decode the chosen pictures, and find and drop duplicates."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from cnnlab.data.choosing import Choice, choose_all_pictures, choose_pictures
from cnnlab.data.decoded_cache import FACTS_DTYPE, DecodedImages, decode_folder
from cnnlab.data.disk_rows import MappedRows, release_pages
from cnnlab.data.duplicates import Duplicates, find_duplicates
from cnnlab.data.folder_layout import FolderLayout
from cnnlab.data.perceptual_hash import difference_hash, find_near_duplicates
from cnnlab.data.pictures import Pictures, Positions
from cnnlab.data.splitting import Shares
from cnnlab.errors import ArgumentError, LabError

PICTURES_AT_ONCE = 1000  # that are hashed before their pages are released


@dataclass(frozen=True)
class LoadedFolder:
    """Hold the pictures of a folder, and what is reported about them."""

    pictures: Pictures  # decoded
    notes: list[str]  # sentences for the summary
    left_out: dict[str, list[str]]  # the relative paths that are not used, by reason
    duplicates: Duplicates  # pairs of pictures that are the same or nearly so
    apportioned: bool  # as in `HeldOut`


def load_folder(
    layout: FolderLayout,
    image_size: int,
    *,
    resize_mode: str,
    shares: Shares,
    limit: int | None,
    seed: int,
    skip_bad: bool,
    drop_duplicates: bool,
    for_audit: bool = False,
    recheck: bool = False,
) -> LoadedFolder:
    """Choose and decode the pictures of a layout, and find duplicates.

    Args:
        layout: of the folder.
        image_size: pixels a side of the images.
        shares: that are held out.
        resize_mode, limit, seed, skip_bad, drop_duplicates, for_audit, recheck: as in `load_dataset`.

    Raises:
        ArgumentError: there are too few pictures for the splits or the limit.
        LabError: pictures do not decode (all of them are named), or there is no room for the decoded ones.
    """

    def choose(bad: Collection[int]) -> Choice:
        if for_audit:
            return choose_all_pictures(layout, limit, seed)
        return choose_pictures(layout, shares, limit, seed, bad)

    decode = functools.partial(decode_folder, layout.root, side=image_size, resize_mode=resize_mode, recheck=recheck)
    choice, decoded, stored, bad = _choose_decodable(layout, decode, choose, skip_bad, for_audit)
    labels, splits = np.full(len(decoded), -1), np.full(len(decoded), "", choice.splits.dtype)
    places = np.searchsorted(decoded, choice.positions)
    labels[places], splits[places] = layout.labels[choice.positions], choice.splits
    pictures = Pictures(layout.files[decoded], labels, splits, stored)
    if for_audit:
        pictures.leave_out(np.searchsorted(decoded, list(bad)))
    notes = choice.notes
    left_out = {reason: list(paths) for reason, paths in layout.left_out.items()} | choice.left_out
    if bad:
        left_out["files without a picture that decodes"] = list(layout.files[list(bad)])
    duplicates = find_duplicates(pictures, within_splits=for_audit)
    if drop_duplicates and len(dropped := duplicates.to_drop()):
        left_out["duplicate pictures of the training set"] = list(pictures.files[dropped])
        _drop_duplicates(pictures, dropped, layout.class_names)
    if duplicates.pairs:
        notes.append(duplicates.sentence(drop_duplicates))
    if stored.grey_range:
        low, high = stored.grey_range
        notes.append(f"grey values beyond 8 bits, {low:g} to {high:g} here, become 0 to 255")
    return LoadedFolder(pictures, notes, left_out, duplicates, choice.apportioned)


def _choose_decodable(
    layout: FolderLayout,
    decode: Callable[..., DecodedImages],
    choose: Callable[[Collection[int]], Choice],
    skip_bad: bool,
    for_audit: bool,
) -> tuple[Choice, Positions, DecodedImages, dict[int, str]]:
    """Choose and decode pictures; choose again without those that do not decode, until all that are chosen do.

    Returns the last choice, the sorted positions in the layout that were decoded, their pixels, and the positions that
    do not decode with the reasons.
    """
    bad: dict[int, str] = {}
    decoded, stored = np.empty(0, np.int64), None
    while True:
        choice = choose(bad)
        if stored is None or not np.isin(choice.positions, decoded).all():
            # In one order whatever the split, so that another split finds the same decoded pictures.
            decoded = np.sort(choice.positions)
            stored = decode(layout.files[decoded], layout.stamps[decoded])
        failed = np.fromiter(stored.bad, np.int64)
        found = failed[np.isin(decoded[failed], choice.positions)].tolist()
        new = {int(decoded[i]): stored.bad[i] for i in found}
        bad |= new
        if not new or for_audit:
            return choice, decoded, stored, bad
        if not skip_bad:
            raise _undecodable(layout, new)


def _drop_duplicates(pictures: Pictures, dropped: Positions, class_names: Sequence[str]) -> None:
    """Remove duplicates from the training set, unless a class would lose all its training pictures."""
    before = set(pictures.labels[pictures.splits == "train"].tolist())
    pictures.leave_out(dropped)
    if lost := sorted(before - set(pictures.labels[pictures.splits == "train"].tolist())):
        raise ArgumentError(
            f"Expected training pictures of every class. Received duplicates only of: "
            f"{', '.join(class_names[int(label)] for label in lost)}. Add others, or leave drop_duplicates out."
        )


def pictures_of_arrays(
    arrays: Mapping[str, tuple[npt.NDArray[np.uint8] | MappedRows, npt.NDArray[np.int64]]],
    positions: Mapping[str, npt.NDArray[np.int64]],
    side: int,
) -> Pictures:
    """Make `Pictures` of arrays, which are named by their split and their position in it: "train/123".

    Args:
        arrays: `(images, labels)` of each split, `(N, H, H, 3) uint8` from `resize_images`, and `(N,) int64`.
        positions: `(N,)` of each split, positions in the whole split before a limit.
        side: pixels a side of the images before they were resized.
    """
    images = [one for one, _ in arrays.values()]
    if isinstance(images[0], MappedRows):  # the rows of all splits are those of one file, in the same order
        pixels = images[0].sources[0][0]
    else:
        pixels = np.concatenate([one[:] for one in images])
    known = np.zeros(len(pixels), FACTS_DTYPE)
    for i, image in enumerate(pixels):
        known["pixels"][i] = hashlib.sha256(image).digest()
        known["look"][i] = difference_hash(Image.fromarray(image))
        if i % PICTURES_AT_ONCE == 0:
            release_pages(pixels)
    known["size"], known["low"] = side, np.nan
    files = [f"{split}/{position}" for split, given in positions.items() for position in given]
    labels = np.concatenate([labels for _, labels in arrays.values()])
    splits = np.repeat(list(arrays), [len(labels) for _, labels in arrays.values()])
    stored = DecodedImages(pixels, known, {}, find_near_duplicates(pixels, known["look"]))
    return Pictures(np.array(files, dtype=object), labels, splits, stored)


def _undecodable(layout: FolderLayout, bad: Mapping[int, str]) -> LabError:
    named = [f"{os.path.join(layout.root, layout.files[position])} ({reason})" for position, reason in bad.items()]
    one = len(named) == 1
    received = f"{'one that does' if one else f'{len(named):,} that do'} not decode: {'; '.join(named)}"
    return LabError(
        f"Expected all pictures of '{layout.root}' to decode. Received {received}. Repair or remove "
        f"{'it' if one else 'them'}, or leave {'it' if one else 'them'} out with skip_bad."
    )


def folder_source(layout: FolderLayout) -> str:
    """Return a name for the folder's content that stays when it is moved: a hash of its files' paths and sizes."""
    listing = hashlib.sha256()
    for file, size in zip(layout.files, layout.stamps[:, 0], strict=True):
        listing.update(os.fsencode(f"{file}\0{size}\n"))
    return f"folder/{listing.hexdigest()[:12]}"
