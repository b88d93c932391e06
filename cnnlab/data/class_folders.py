"""Pictures in folders that are their classes: train/val/test, by any of their usual names, or class folders only."""

import os
import re

import numpy as np

from cnnlab.data.folder_scan import FolderScan, describe_left_out
from cnnlab.errors import ArgumentError
from cnnlab.utils.text import escape_control_characters

SPLIT_NAMES = {
    "train": {"train", "training", "trainset", "trainingset"},
    "val": {"val", "valid", "validation", "validate", "dev", "valset"},
    "test": {"test", "testing", "tests", "testset", "eval", "evaluation"},
}
NAMES = {"train": "training", "val": "validation", "test": "test"}
OUTSIDE = "pictures outside of class folders"
NO_CLASSES = {"images", "imgs", "pictures", "unknown", "unlabelled", "unlabeled"}  # where they are alone


def layout_from_class_folders(listing: FolderScan, where, skip_empty):
    """What the pictures of a listing are for, by the names of the folders that they are in.

    Args:
        where: the folder, for messages.
        skip_empty: leave class folders without pictures out.

    Returns:
        `(names, labels, part, notes)`: the names of the classes; of each file of the listing which of them it is, and
        "train", "val", "test", or -1 and "" where it is not used; and what was taken for what. What is left out is
        counted in the listing.

    Raises:
        ArgumentError: what is meant is not clear, or a class has no pictures.
    """
    # A file of each folder stands for all that are in it.
    stand_for_all = listing.files[np.sort(np.unique(listing.inside, return_index=True)[1])].tolist()
    paths, prefix = _unwrapped(stand_for_all)
    notes = [f"the pictures are inside of {escape_control_characters(prefix)}"] if prefix else []
    by_child, flat = _by_first(paths)
    if (around := _wrapper_among(by_child, where)) and not _parts_among(by_child, where):
        for child in by_child:
            if child != around:
                reason = escape_control_characters(f"in {child}/, beside {around}/ with its parts")
                _leave_out(listing, reason, by_child[child], prefix)
        _leave_out(listing, OUTSIDE, flat, prefix)
        prefix += around + os.sep
        notes = [f"the pictures are inside of {escape_control_characters(prefix)}"]
        by_child, flat = _by_first([path[len(around) + 1 :] for path in by_child[around]])
    found = _parts_among(by_child, where)
    if found:
        _leave_others_out(listing, by_child, found, prefix)
    else:
        unlabelled = _unlabelled_among(by_child, where)
        for child in unlabelled:
            _leave_unlabelled(listing, child, by_child[child], prefix)
        found = {"train": ("", [path for child in by_child if child not in unlabelled for path in by_child[child]])}
    _leave_out(listing, OUTSIDE, flat, prefix)
    by_folder, used, classes = {}, [], set()
    for part, (child, inside) in sorted(found.items(), key=lambda one: list(SPLIT_NAMES).index(one[0])):
        below = os.path.join(child, "") if child else ""
        # Not into a folder that is a class: it may hold all of its pictures in one folder.
        short, wrapper = _unwrapped([path.removeprefix(below) for path in inside], classes)
        before = prefix + below + wrapper
        named = {path.split(os.sep)[0] for path in short if os.sep in path}
        if (classes and not named & classes and len(named) == 1 and split_of_folder(min(named))) or named <= NO_CLASSES:
            _leave_unlabelled(listing, child, [path.removeprefix(below) for path in inside], prefix + below)
            continue
        used.append(before)
        _leave_out(listing, OUTSIDE, [path for path in short if os.sep not in path], before)
        by_folder |= {os.path.dirname(before + path): (part, path.split(os.sep)[0]) for path in short if os.sep in path}
        classes |= named
        if child and (part == "val" or before != os.path.join(part, "")):
            notes.append(f"{escape_control_characters(before)} is the {NAMES[part]} set")
        if deep := sorted({path.split(os.sep)[0] for path in short if path.count(os.sep) > 1}):
            example = next(path for path in short if path.count(os.sep) > 1 and path.startswith(deep[0] + os.sep))
            inner = escape_control_characters(os.path.dirname(example).partition(os.sep)[2])
            notes.append(
                f"folders inside of a class belong to it, such as {inner}/ to {escape_control_characters(deep[0])}"
            )
    _expect_no_empty_class(listing, stand_for_all, used, where, skip_empty)
    names = sorted({name for _, name in by_folder.values()})
    numbers = {name: number for number, name in enumerate(names)}
    of_folder = [by_folder.get(folder, ("", None)) for folder in listing.folders]
    labels = np.array([numbers.get(name, -1) for _, name in of_folder], np.int64)
    part = np.array([part for part, _ in of_folder], "U5")
    return names, labels[listing.inside], part[listing.inside], notes


def _by_first(paths):
    """`{folder: its paths}`, and the paths that are in none."""
    by_child = {}
    for path in paths:
        child, below, _ = path.partition(os.sep)
        by_child.setdefault(child if below else "", []).append(path)
    return by_child, by_child.pop("", [])


def _wrapper_among(by_child, where):
    """The one folder that holds train, val or test with class folders in them, beside others that do not."""
    holding = []
    for child, paths in by_child.items():
        inside, _ = _by_first([path[len(child) + 1 :] for path in paths])
        parts = {split_of_folder(name) for name, below in inside.items() if split_of_folder(name)}
        if len(parts) > 1 and "train" in parts:
            holding.append((child, any(not _is_flat(below) for name, below in inside.items() if split_of_folder(name))))
    if len(holding) > 1:
        raise ArgumentError(
            f"Expected '{where}' to hold train/ and test/ with class folders in them. Received: "
            f"{' and '.join(child + '/' for child, _ in holding[:2])} with a train folder each. Name the one to "
            "use, or sort the pictures into train/CLASS/ and test/CLASS/."
        )
    return next((child for child, deep in holding if deep), None)


def split_of_folder(name, loosely=False):
    """The part that a folder's name stands for, in any case: "Training", and loosely "seg_train", "test-images"."""
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word]
    for part, names in SPLIT_NAMES.items():
        if "".join(words) in names or (loosely and words and (words[0] in names or words[-1] in names)):
            return part
    return None


def _unwrapped(paths, classes=()):
    """Paths without the folders that all of them are in together, above their class folders; and those folders."""
    prefix = ""
    while paths:
        first = {path.split(os.sep)[0] for path in paths}
        if len(first) > 1 or min(path.count(os.sep) for path in paths) < 2 or split_of_folder(min(first)):
            break
        if first & set(classes):
            break
        [folder] = first
        prefix += folder + os.sep
        paths = [path[len(folder) + 1 :] for path in paths]
    return paths, prefix


def _is_flat(paths):
    return all(path.count(os.sep) == 1 for path in paths)


def _parts_among(by_child, where):
    """`{part: (folder, its paths)}` where folders of parts hold class folders; empty where there are only classes."""
    for loosely in (False, True):
        found = {}
        for child, paths in by_child.items():
            part = split_of_folder(child, loosely)
            if part and not _is_flat(paths):
                found.setdefault(part, []).append(child)
        # One folder with a name that only holds the word may be a class of its own: "train_station".
        if len(found) > loosely:
            break
    else:
        return {}
    for part, folders in found.items():
        if len(folders) > 1:
            raise ArgumentError(
                f"Expected one folder of {NAMES[part]} pictures in '{where}'. Received: "
                f"{' and '.join(child + '/' for child in folders)}. Move one of them away."
            )
    others = [child for child in by_child if not split_of_folder(child, loosely=True)]
    if "train" not in found or (len(found) == 1 and others):
        received = ", ".join(escape_control_characters(child) + "/" for child in list(by_child)[:6])
        raise ArgumentError(
            f"Expected '{where}' to hold train/ and test/, or class folders only. Received: {received}. "
            "Put the training pictures into train/, or name the one folder to use."
        )
    return {part: (child, by_child[child]) for part, [child] in found.items()}


def _unlabelled_among(by_child, where):
    """Folders of val or test pictures without classes, beside class folders."""
    flat = {child: part for child in by_child if (part := split_of_folder(child)) and _is_flat(by_child[child])}
    # A class may be called "train", as in CIFAR-100; not where nothing else is there.
    if "train" in flat.values() and len(by_child) - len(flat) < 2:
        child = next(child for child, part in flat.items() if part == "train")
        raise ArgumentError(
            f"Expected class folders inside of the {child}/ of '{where}'. Received: pictures without class "
            "folders. Sort them into class folders, or name a CSV file of their labels with --labels."
        )
    return [child for child, part in flat.items() if part != "train"]


def _leave_others_out(listing, by_child, found, prefix):
    """What lies beside the folders of the parts."""
    taken = {child for child, _ in found.values()}
    for child, paths in by_child.items():
        if child in taken:
            continue
        if split_of_folder(child, loosely=True):
            _leave_unlabelled(listing, child, paths, prefix)
        else:
            _leave_out(
                listing, f"in {escape_control_characters(child)}/, which is neither train, val nor test", paths, prefix
            )


def _leave_unlabelled(listing, child, paths, prefix):
    _leave_out(listing, f"in {escape_control_characters(child)}/ without labels", paths, prefix)


def _leave_out(listing, reason, paths, prefix):
    folders = listing.numbers(os.path.dirname(prefix + path) for path in paths)
    for path in listing.files[np.isin(listing.inside, folders)]:
        listing.leave_out(reason, path)


def _expect_no_empty_class(listing, stand_for_all, used, where, skip_empty):
    """A class folder without pictures is an error that names it: its class would be missing without a word."""
    full = {before + path[len(before) :].split(os.sep)[0] for before in used for path in stand_for_all}
    empty = [
        folder
        for folder in listing.folders
        for before in used
        if folder
        and folder.startswith(before)
        and os.sep not in folder[len(before) :]
        and not split_of_folder(folder[len(before) :])
        and folder not in full
    ]
    for folder in empty:
        if skip_empty:
            listing.leave_out("class folders without pictures", folder)
            continue
        lost = {
            reason: held
            for reason, paths in listing.left_out.items()
            if (held := [path for path in paths if path.startswith(folder + os.sep)])
        }
        raise ArgumentError(
            f"Expected pictures in every class folder of '{where}'. Received: {folder}/ without any that can be "
            f"read ({describe_left_out(lost) or 'it is empty'}). Convert them (.heic is read after pip install "
            "'cnnlab[heic]'), move the folder away, or leave it out with --skip-bad."
        )
