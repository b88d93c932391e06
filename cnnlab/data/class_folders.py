"""Assign pictures to classes and splits by their folders: train/CLASS/*, val/CLASS/*, test/CLASS/*, or CLASS/* only.

The split folders may have any of their usual names ("training", "dev", "seg_test"), and all of it may lie inside of
further folders.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from cnnlab.data.folder_scan import Assignment, FolderScan, describe_left_out
from cnnlab.errors import ArgumentError
from cnnlab.utils.text import escape_control_characters

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
FOLDER_NAMES: dict[SplitName, set[str]] = {
    "train": {"train", "training", "trainset", "trainingset"},
    "val": {"val", "valid", "validation", "validate", "dev", "valset"},
    "test": {"test", "testing", "tests", "testset", "eval", "evaluation"},
}
SPLIT_WORDS: dict[str, str] = {"train": "training", "val": "validation", "test": "test"}
OUTSIDE = "pictures outside of class folders"
NO_CLASSES = {"images", "imgs", "pictures", "unknown", "unlabelled", "unlabeled"}  # no class where they are alone

Paths = list[str]


@dataclass
class _Tree:
    """Hold one path of each folder with pictures, sorted by the topmost folder.

    Attributes:
        prefix: the folders that all of them are in, with a separator behind each.
        by_child: the paths below each topmost folder, relative to the prefix.
        flat: the paths that are in no further folder.
        notes: sentences on how the folder was understood.
    """

    prefix: str
    by_child: dict[str, Paths]
    flat: Paths
    notes: list[str] = field(default_factory=list)


def assign_by_class_folders(scan: FolderScan, where: str, skip_empty: bool) -> Assignment:
    """Assign the pictures of a scan to classes and splits by the names of the folders that they are in.

    Args:
        scan: of the folder; what is left out is recorded in it.
        where: the folder, for messages.
        skip_empty: whether class folders without pictures are left out; else they are an error.

    Raises:
        ArgumentError: what is meant is not clear, or a class has no pictures.
    """
    # A file of each folder stands for all that are in it.
    one_of_each = scan.files[np.sort(np.unique(scan.folder_of, return_index=True)[1])].tolist()
    tree = _strip_wrappers(scan, one_of_each, where)
    split_folders = _split_folders(tree.by_child, where)
    if split_folders:
        _leave_out_others(scan, tree, {child for child, _ in split_folders.values()})
    else:
        unlabelled = _unlabelled_splits(tree.by_child, where)
        for child in unlabelled:
            _leave_out_unlabelled(scan, child, tree.by_child[child], tree.prefix)
        labelled = [path for child, paths in tree.by_child.items() if child not in unlabelled for path in paths]
        split_folders = {"train": ("", labelled)}
    _leave_out(scan, OUTSIDE, tree.flat, tree.prefix)
    by_folder: dict[str, tuple[str, str]] = {}  # folder to its split and class
    roots: list[str] = []  # folders that hold class folders
    for split in SPLITS:
        if split not in split_folders:
            continue
        child, paths = split_folders[split]
        classes = {name for _, name in by_folder.values()}
        root = _add_split(scan, split, child, paths, tree, classes, by_folder)
        roots += [] if root is None else [root]
    _expect_no_empty_class(scan, one_of_each, roots, where, skip_empty)
    names = sorted({name for _, name in by_folder.values()})
    numbers = {name: number for number, name in enumerate(names)}
    of_folder = [by_folder.get(folder, ("", "")) for folder in scan.folders]
    labels = np.array([numbers.get(name, -1) for _, name in of_folder], np.int64)
    splits = np.array([split for split, _ in of_folder], "U5")
    return Assignment(names, labels[scan.folder_of], splits[scan.folder_of], tree.notes)


def _add_split(
    scan: FolderScan,
    split: SplitName,
    child: str,
    paths: Paths,
    tree: _Tree,
    classes: Collection[str],
    by_folder: dict[str, tuple[str, str]],
) -> str | None:
    """Add the class folders of one split to `by_folder`, and sentences on them to the notes of the tree.

    Args:
        child: the split's folder, "" where class folders are at the top.
        paths: of pictures below it.
        classes: of the splits before.

    Returns:
        The folder that holds the class folders, or `None` where the pictures have no labels.
    """
    below = os.path.join(child, "") if child else ""
    inside = [path.removeprefix(below) for path in paths]
    # Not into a folder that is a class: it may hold all of its pictures in one folder.
    short, wrapper = _strip_common_folders(inside, classes)
    root = tree.prefix + below + wrapper
    names = {path.split(os.sep)[0] for path in short if os.sep in path}
    is_split = len(names) == 1 and bool(split_of_folder(min(names)))
    if (classes and not names & set(classes) and is_split) or names <= NO_CLASSES:
        _leave_out_unlabelled(scan, child, inside, tree.prefix + below)
        return None
    _leave_out(scan, OUTSIDE, [path for path in short if os.sep not in path], root)
    by_folder |= {os.path.dirname(root + path): (split, path.split(os.sep)[0]) for path in short if os.sep in path}
    if child and (split == "val" or root != os.path.join(split, "")):
        tree.notes.append(f"{escape_control_characters(root)} is the {SPLIT_WORDS[split]} set")
    if deep := sorted({path.split(os.sep)[0] for path in short if path.count(os.sep) > 1}):
        example = next(path for path in short if path.count(os.sep) > 1 and path.startswith(deep[0] + os.sep))
        inner = escape_control_characters(os.path.dirname(example).partition(os.sep)[2])
        tree.notes.append(
            f"folders inside of a class belong to it, such as {inner}/ to {escape_control_characters(deep[0])}"
        )
    return root


def _strip_wrappers(scan: FolderScan, paths: Paths, where: str) -> _Tree:
    """Find the folder that holds the split or class folders, leaving out what lies beside it."""
    paths, prefix = _strip_common_folders(paths)
    tree = _Tree(prefix, *_by_topmost_folder(paths))
    wrapper = _wrapper_among(tree.by_child, where)
    if wrapper and not _split_folders(tree.by_child, where):
        for child in tree.by_child:
            if child != wrapper:
                reason = escape_control_characters(f"in {child}/, beside {wrapper}/ with its splits")
                _leave_out(scan, reason, tree.by_child[child], prefix)
        _leave_out(scan, OUTSIDE, tree.flat, prefix)
        below = [path[len(wrapper) + 1 :] for path in tree.by_child[wrapper]]
        tree = _Tree(prefix + wrapper + os.sep, *_by_topmost_folder(below))
    if tree.prefix:
        tree.notes.append(f"the pictures are inside of {escape_control_characters(tree.prefix)}")
    return tree


def _by_topmost_folder(paths: Paths) -> tuple[dict[str, Paths], Paths]:
    """Return the paths below each topmost folder, and the paths that are in none."""
    by_child: dict[str, Paths] = {}
    for path in paths:
        child, below, _ = path.partition(os.sep)
        by_child.setdefault(child if below else "", []).append(path)
    return by_child, by_child.pop("", [])


def _wrapper_among(by_child: Mapping[str, Paths], where: str) -> str | None:
    """Find the one folder that holds train, val or test with class folders in them, beside others that do not."""
    holding = []
    for child, paths in by_child.items():
        inside, _ = _by_topmost_folder([path[len(child) + 1 :] for path in paths])
        splits = {split_of_folder(name) for name in inside if split_of_folder(name)}
        if len(splits) > 1 and "train" in splits:
            holding.append((child, any(not _is_flat(below) for name, below in inside.items() if split_of_folder(name))))
    if len(holding) > 1:
        raise ArgumentError(
            f"Expected '{where}' to hold train/ and test/ with class folders in them. Received: "
            f"{' and '.join(child + '/' for child, _ in holding[:2])} with a train folder each. Name the one to use, "
            "or sort the pictures into train/CLASS/ and test/CLASS/."
        )
    return next((child for child, deep in holding if deep), None)


def split_of_folder(name: str, loosely: bool = False) -> SplitName | None:
    """Return the split that a folder's name stands for, such as "Training", whatever its case.

    Args:
        loosely: whether a name that begins or ends with the word counts too: "seg_train", "test-images".
    """
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word]
    for split, names in FOLDER_NAMES.items():
        if "".join(words) in names or (loosely and words and (words[0] in names or words[-1] in names)):
            return split
    return None


def _strip_common_folders(paths: Paths, classes: Collection[str] = ()) -> tuple[Paths, str]:
    """Return paths without the folders above their class folders that all of them are in, and those folders."""
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


def _is_flat(paths: Paths) -> bool:
    return all(path.count(os.sep) == 1 for path in paths)


def _split_folders(by_child: Mapping[str, Paths], where: str) -> dict[SplitName, tuple[str, Paths]]:
    """Find the folders of splits that hold class folders, with their paths; empty where there are only classes."""
    found: dict[SplitName, list[str]] = {}
    for loosely in (False, True):
        found = {}
        for child, paths in by_child.items():
            split = split_of_folder(child, loosely)
            if split and not _is_flat(paths):
                found.setdefault(split, []).append(child)
        # One folder with a name that only contains the word may be a class: "train_station".
        if len(found) > loosely:
            break
    else:
        return {}
    for split, folders in found.items():
        if len(folders) > 1:
            raise ArgumentError(
                f"Expected one folder of {SPLIT_WORDS[split]} pictures in '{where}'. Received: "
                f"{' and '.join(child + '/' for child in folders)}. Move one of them away."
            )
    others = [child for child in by_child if not split_of_folder(child, loosely=True)]
    if "train" not in found or (len(found) == 1 and others):
        received = ", ".join(child + "/" for child in list(by_child)[:6])
        raise ArgumentError(
            f"Expected '{where}' to hold train/ and test/, or class folders only. Received: {received}. "
            "Put the training pictures into train/, or name the one folder to use."
        )
    return {split: (child, by_child[child]) for split, [child] in found.items()}


def _unlabelled_splits(by_child: Mapping[str, Paths], where: str) -> list[str]:
    """Find folders of validation or test pictures that have no class folders, beside class folders."""
    flat = {child: split for child in by_child if (split := split_of_folder(child)) and _is_flat(by_child[child])}
    # A class may be called "train", as in CIFAR-100; not where there is nothing else.
    if "train" in flat.values() and len(by_child) - len(flat) < 2:
        child = next(child for child, split in flat.items() if split == "train")
        raise ArgumentError(
            f"Expected class folders inside of the {child}/ of '{where}'. Received: pictures without class folders. "
            "Sort them into class folders, or name a CSV file of their labels as labels."
        )
    return [child for child, split in flat.items() if split != "train"]


def _leave_out_others(scan: FolderScan, tree: _Tree, used: Collection[str]) -> None:
    """Leave out the folders that lie beside those of the splits."""
    for child, paths in tree.by_child.items():
        if child in used:
            continue
        if split_of_folder(child, loosely=True):
            _leave_out_unlabelled(scan, child, paths, tree.prefix)
        else:
            reason = f"in {escape_control_characters(child)}/, which is neither train, val nor test"
            _leave_out(scan, reason, paths, tree.prefix)


def _leave_out_unlabelled(scan: FolderScan, child: str, paths: Paths, prefix: str) -> None:
    _leave_out(scan, f"in {escape_control_characters(child)}/ without labels", paths, prefix)


def _leave_out(scan: FolderScan, reason: str, paths: Paths, prefix: str) -> None:
    scan.leave_out_folders(reason, (os.path.dirname(prefix + path) for path in paths))


def _expect_no_empty_class(
    scan: FolderScan, one_of_each: Paths, roots: Sequence[str], where: str, skip_empty: bool
) -> None:
    """Raise `ArgumentError` for a class folder without pictures, as its class would be missing without a notice."""
    full = {root + path[len(root) :].split(os.sep)[0] for root in roots for path in one_of_each}
    empty = [
        folder
        for folder in scan.folders
        for root in roots
        if folder
        and folder.startswith(root)
        and os.sep not in folder[len(root) :]
        and not split_of_folder(folder[len(root) :])
        and folder not in full
    ]
    for folder in empty:
        if skip_empty:
            scan.leave_out("class folders without pictures", folder)
            continue
        lost = {
            reason: held
            for reason, paths in scan.left_out.items()
            if (held := [path for path in paths if path.startswith(folder + os.sep)])
        }
        raise ArgumentError(
            f"Expected pictures in every class folder of '{where}'. Received: {folder}/ without any that can be read "
            f"({describe_left_out(lost) or 'it is empty'}). Convert them (.heic is read after pip install "
            "'cnnlab[heic]'), move the folder away, or leave it out with skip_bad."
        )
