"""Load an image folder: choose the pictures of each split, decode them, and find and drop duplicates."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from cnnlab.data.class_folders import SPLITS
from cnnlab.data.decoded_cache import FACTS_DTYPE, DecodedImages, decode_folder
from cnnlab.data.disk_rows import MappedRows, release_pages
from cnnlab.data.duplicates import Duplicates, find_duplicates
from cnnlab.data.folder_layout import FolderLayout
from cnnlab.data.perceptual_hash import difference_hash, find_near_duplicates
from cnnlab.data.pictures import Pictures, Positions
from cnnlab.data.splitting import stratified_split, stratified_subset
from cnnlab.errors import ArgumentError, LabError

PICTURES_AT_ONCE = 1000  # that are hashed before their pages are released
TEST_SHARE = 0.2  # of a folder that has no test set of its own


@dataclass(frozen=True)
class Choice:
    """Say which pictures of a layout are used, and in which split."""

    positions: Positions  # `(N,)` in the layout, in the order of the splits, classes and paths
    splits: npt.NDArray[np.str_]  # `(N,)` of "train", "val" and "test"
    notes: list[str]  # sentences on how they were chosen
    left_out: dict[str, list[str]]  # the relative paths that are not used, by reason


@dataclass(frozen=True)
class LoadedFolder:
    """Hold the pictures of a folder, and what is reported about them."""

    pictures: Pictures  # decoded
    notes: list[str]  # sentences for the summary
    left_out: dict[str, list[str]]  # the relative paths that are not used, by reason
    duplicates: Duplicates  # pairs of pictures that are the same or nearly so


def choose_pictures(
    layout: FolderLayout, val_fraction: float, limit: int | None, seed: int, bad: Collection[int] = ()
) -> Choice:
    """Choose the pictures of each split, holding out a test and a validation set where the folder has none.

    Args:
        layout: of the folder.
        val_fraction: share of the training pictures that is held out for validation; 0 for none.
        limit: of training pictures, and of the others in proportion; `None` for all.
        seed: of the splits.
        bad: positions in the layout that are not to be used.

    Raises:
        ArgumentError: there are too few pictures for the splits or the limit.
    """
    names, notes = layout.class_names, list(layout.notes)
    left_out: dict[str, list[str]] = {}
    given: dict[str, Positions] = {split: layout.positions(split) for split in SPLITS}
    chosen = {split: positions[~np.isin(positions, list(bad))] for split, positions in given.items()}
    _expect_pictures(layout, given, chosen)

    def hold_out(into: str, share: float, what: str) -> None:
        train = chosen["train"]
        rest, held_out = stratified_split(layout.labels[train], share, names, seed, what)
        chosen["train"], chosen[into] = train[rest], train[held_out]

    has_val, in_folder = len(chosen["val"]) > 0, {split for split, positions in given.items() if len(positions)}
    if "test" not in in_folder:
        hold_out("test", TEST_SHARE, "test split")
        where = "its training pictures" if has_val else "it"
        notes.append(f"a fifth of {where} is held out as the test set, as it has none")
    if has_val and not val_fraction:
        left_out["validation pictures, as val_fraction is 0"] = list(layout.files[chosen["val"]])
        chosen["val"] = chosen["val"][:0]
    if limit is not None:
        labels = {split: layout.labels[positions] for split, positions in chosen.items()}
        for split, index in stratified_subset(labels, names, limit, seed).items():
            if len(beyond := np.delete(chosen[split], index)):
                left_out.setdefault("pictures beyond the limit", []).extend(layout.files[beyond])
            chosen[split] = chosen[split][index]
    if val_fraction and not has_val:
        hold_out("val", float(val_fraction), "validation split")
    labels = {split: layout.labels[positions] for split, positions in chosen.items()}
    notes.extend(_missing_classes(names, labels, in_folder))
    return Choice(*_concatenate(chosen), notes, left_out)


def _expect_pictures(layout: FolderLayout, given: Mapping[str, Positions], chosen: Mapping[str, Positions]) -> None:
    """Raise `ArgumentError` where none of the pictures of a split, or of a class for training, decodes."""
    for split, positions in chosen.items():
        if len(given[split]) and not len(positions):
            raise ArgumentError(f"Expected {split} pictures. Received none that decode. Add some.")
    trained = set(layout.labels[chosen["train"]].tolist())
    if empty := [name for label, name in enumerate(layout.class_names) if label not in trained]:
        raise ArgumentError(
            f"Expected training pictures of every class. Received none that decode of: {', '.join(empty)}. Add some, "
            "or move the class away."
        )


def choose_all_pictures(layout: FolderLayout, limit: int | None, seed: int) -> Choice:
    """Choose every picture, in the split where it lies; of a limit, each split has its share, drawn at random."""
    positions = {split: layout.positions(split) for split in SPLITS}
    share = min(1, limit / max(1, len(positions["train"]))) if limit else 1
    for split, given in positions.items():
        order = np.random.default_rng(seed).permutation(len(given))
        positions[split] = given[np.sort(order[: int(np.ceil(share * len(order)))])]
    return Choice(*_concatenate(positions), list(layout.notes), {})


def _concatenate(by_split: Mapping[str, Positions]) -> tuple[Positions, npt.NDArray[np.str_]]:
    """Return the positions of all splits as one array, and the split of each as another."""
    lengths = [len(positions) for positions in by_split.values()]
    return np.concatenate(list(by_split.values())), np.repeat(list(by_split), lengths)


def _missing_classes(
    names: Sequence[str], labels: Mapping[str, npt.NDArray[np.int64]], in_folder: Collection[str]
) -> Iterator[str]:
    """Yield sentences on the classes that a split has no picture of.

    Args:
        labels: of the pictures of each split.
        in_folder: the splits that the folder has itself; the others were held out.
    """
    without: dict[int, list[str]] = {}
    for split, what in (("val", "validation"), ("test", "test")):
        for label in sorted(set(range(len(names))) - set(labels[split].tolist())) if len(labels[split]) else ():
            if split in in_folder:
                yield f"no {what} pictures of {names[label]}"
            else:
                without.setdefault(label, []).append(what)
    for label, splits in without.items():
        count = sum(int((given == label).sum()) for given in labels.values())
        pictures = "one picture, which is" if count == 1 else f"{count} pictures, none of which is"
        yield f"'{names[label]}' has {pictures} for {'training' if count == 1 else ' or '.join(splits)}"


def load_folder(
    layout: FolderLayout,
    image_size: int,
    *,
    resize_mode: str,
    val_fraction: float,
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
        resize_mode, val_fraction, limit, seed, skip_bad, drop_duplicates, for_audit, recheck: as in
            `load_dataset`.

    Raises:
        ArgumentError: there are too few pictures for the splits or the limit.
        LabError: pictures do not decode (all of them are named), or there is no room for the decoded ones.
    """

    def choose(bad: Collection[int]) -> Choice:
        if for_audit:
            return choose_all_pictures(layout, limit, seed)
        return choose_pictures(layout, val_fraction, limit, seed, bad)

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
    return LoadedFolder(pictures, notes, left_out, duplicates)


def _choose_decodable(
    layout: FolderLayout,
    decode: Callable[..., DecodedImages],
    choose: Callable[[Collection[int]], Choice],
    skip_bad: bool,
    for_audit: bool,
) -> tuple[Choice, Positions, DecodedImages, dict[int, str]]:
    """Choose and decode pictures; choose again without those that do not decode, until all that are chosen do.

    Returns:
        `(choice, decoded, stored, bad)`: the last choice, the sorted positions in the layout that were decoded, their
        pixels, and the positions that do not decode with the reasons.
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
