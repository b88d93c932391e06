"""Find the layout of an image folder: which pictures are used, of which class and in which split.

`find_layout` scans the folder, assigns classes and splits by class folders or by a CSV file, names the classes, and
checks that a model can be trained on what is there.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cnnlab.data.class_folders import SPLITS, SplitName, assign_by_class_folders
from cnnlab.data.folder_scan import FolderScan, describe_left_out, scan_folder
from cnnlab.data.label_table import assign_by_label_table
from cnnlab.data.table_columns import TableOptions, has_known_names
from cnnlab.data.table_file import read_rows
from cnnlab.errors import ArgumentError
from cnnlab.utils.text import escape_control_characters, list_first


@dataclass
class FolderLayout:
    """Hold the pictures of a folder that are used, with the split and the class of each."""

    root: str  # the folder, absolute
    files: npt.NDArray[np.object_]  # `(N,)` relative paths, sorted
    labels: npt.NDArray[np.int64]  # `(N,) int64`, positions in the class names
    splits: npt.NDArray[np.str_]  # `(N,)` of "train", "val" and "test"
    stamps: npt.NDArray[np.int64]  # `(N, 3) int64`, as in `FolderScan`
    class_names: tuple[str, ...] = ()  # sorted, numbers in them as numbers
    notes: list[str] = field(default_factory=list)  # sentences on how the folder was understood
    left_out: dict[str, list[str]] = field(default_factory=dict)  # the relative paths that are not used, by reason

    def positions(self, split: SplitName) -> npt.NDArray[np.int64]:
        """Return the positions of a split's pictures, in order of class and path."""
        positions = np.flatnonzero(self.splits == split)
        return positions[np.argsort(self.labels[positions], kind="stable")]


def find_layout(
    folder: str,
    *,
    labels: str | None = None,
    columns: TableOptions | None = None,
    class_names: str | None = None,
    skip_empty: bool = False,
    for_audit: bool = False,
) -> FolderLayout:
    """Scan a folder and find the class and the split of each picture in it.

    Args:
        folder: with train/ and test/ and perhaps val/ (by any of their usual names), or with class folders only,
            perhaps all of it inside of one more folder.
        labels: a CSV file with a column of file names and one of labels, in place of class folders, and perhaps one
            that tells training, validation and test.
        columns: what is said by hand of the columns of that file.
        class_names: a CSV file of the folders' names and what they mean, as ImageNet's ids need it.
        skip_empty: whether class folders without pictures are left out.
        for_audit: whether what a training would lack is a note, in place of an error.

    Raises:
        ArgumentError: there are not at least two classes, a class has no pictures, or what is meant is not clear.
    """
    scan = scan_folder(folder)
    where = escape_control_characters(folder)
    if not skip_empty:
        _expect_all_readable(scan, where)
    given = assign_by_label_table(scan, labels, columns) if labels else assign_by_class_folders(scan, where, skip_empty)
    used = given.labels >= 0
    layout = FolderLayout(scan.root, scan.files[used], given.labels[used], given.splits[used], scan.stamps[used])
    layout.notes, layout.left_out = given.notes, scan.left_out
    _name_classes(layout, given.class_names, class_names)
    counts: dict[str, dict[str, int]] = {}  # of each split, without classes that have no pictures in it
    for split in SPLITS:
        numbers = np.bincount(layout.labels[layout.splits == split], minlength=len(layout.class_names)).tolist()
        counts[split] = {name: count for name, count in zip(layout.class_names, numbers, strict=True) if count}
    if for_audit and layout.class_names:
        layout.notes.extend(_obstacles_to_training(counts))
    else:
        _expect_trainable(layout, counts, where, labels)
    same_but_case = Counter(name.casefold() for name in layout.class_names)
    if double := [name for name in layout.class_names if same_but_case[name.casefold()] > 1]:
        layout.notes.append(f"classes that differ in upper and lower case only: {list_first(double)}")
    return layout


Counts = Mapping[str, Mapping[str, int]]  # pictures of each split, by class


def _expect_all_readable(scan: FolderScan, where: str) -> None:
    """Raise `ArgumentError` where a folder or file cannot be read, as it may be a whole class."""
    for reason, paths in scan.left_out.items():
        if reason.startswith(("folders that cannot be read", "files that cannot be read")):
            raise ArgumentError(
                f"Expected to read all of '{where}'. Received: {len(paths):,} {reason}, the first one "
                f"{paths[0] or 'the folder itself'}. Give yourself permission, or leave them out with skip_bad."
            )


def _obstacles_to_training(counts: Counts) -> Iterator[str]:
    """Yield a sentence for each reason why a model cannot be trained on a folder, or for what a training does first."""
    if len(counts["train"]) < 2:
        yield f"training pictures of {len(counts['train']) or 'no'} class, where a training needs two classes"
    for split in SPLITS[1:]:
        if extra := sorted(set(counts[split]) - set(counts["train"]), key=natural):
            yield f"classes in {split} that are not in train, which a training refuses: {list_first(extra)}"
        if missing := [name for name in counts["train"] if counts[split] and name not in counts[split]]:
            yield f"no {split} pictures of {list_first(missing)}"
    if not counts["test"]:
        yield "it has no test set, for which a training holds a fifth of it out, or test_fraction"


def _expect_trainable(layout: FolderLayout, counts: Counts, where: str, labels: str | None) -> None:
    """Raise `ArgumentError` where there are fewer than two classes, or classes without training pictures."""
    train = counts["train"]
    if len(train) < 2:
        received = f"only '{next(iter(train))}'" if train else "none"
        two = "at least two class folders with pictures, or train/ and test/ with those"
        two = "pictures of at least two classes" if labels else two
        advice = f"Look into '{labels}'." if labels else "Pictures that are listed in a CSV file need it as labels."
        left = f" Left out: {escape_control_characters(describe_left_out(layout.left_out))}." if layout.left_out else ""
        raise ArgumentError(f"Expected '{where}' to hold {two}. Received: {received}.{left} {advice}")
    for split in SPLITS[1:]:
        if extra := sorted(set(counts[split]) - set(train), key=natural):
            similar = next((name for name in train if name.casefold() == extra[0].casefold()), None)
            received = f"'{extra[0]}'" + (f" (train has '{similar}')" if similar else "")
            received += f" and {len(extra) - 1} more" if len(extra) > 1 else ""
            raise ArgumentError(
                f"Expected every class of the {split} pictures of '{where}' to be in train too. Received: {received} "
                f"in {split} only. Add training images of it, rename or remove it."
            )


def natural(name: str) -> list[tuple[int, int, str, str]]:
    """Return a key to sort names by, with the numbers in them as numbers: 1, 2, 10."""
    parts = [part for part in re.split(r"(\d+)", name) if part]
    # By length and digits, as a number of thousands of digits is no int.
    return [
        (0, len(part.lstrip("0")), part.lstrip("0"), part) if part.isdecimal() else (1, 0, part, "") for part in parts
    ]


def _name_classes(layout: FolderLayout, given: Sequence[str], names_file: str | None) -> None:
    """Set the class names of a layout, and number its labels by them.

    Names get one Unicode form, characters that cannot be shown are escaped, and ids are replaced by the names that a
    file has for them. Folders whose names are the same then are one class.

    Args:
        given: the names that the labels of the layout are positions in.
        names_file: a CSV file of such names and what they mean.
    """
    meanings = _read_meanings(names_file, given) if names_file else {}
    used = {given[int(number)] for number in np.unique(layout.labels)}
    one_form = {name: unicodedata.normalize("NFC", meanings.get(name, name)) for name in used}
    shown = {name: escape_control_characters(text) for name, text in one_form.items()}
    if len(set(shown.values())) < len(set(one_form.values())):
        twice = Counter(map(escape_control_characters, set(one_form.values()))).most_common(1)[0][0]
        raise ArgumentError(
            f"Expected class names that differ where control characters are written out. Received twice: {twice}. "
            "Rename one of the folders."
        )
    layout.class_names = tuple(sorted(set(shown.values()), key=natural))
    order = {name: label for label, name in enumerate(layout.class_names)}
    layout.labels = np.array([order.get(shown.get(name, ""), -1) for name in given], np.int64)[layout.labels]
    spellings: dict[str, set[str]] = {}
    for name, text in shown.items():
        spellings.setdefault(text, set()).add(name)
    several = {text: names for text, names in spellings.items() if len(names) > 1}
    if not meanings:
        for text, names in several.items():
            layout.notes.append(f"'{text}' is written in {len(names)} Unicode forms, which are one class")
        return
    if unnamed := sorted(used - set(meanings), key=natural):
        layout.notes.append(f"classes that {names_file} has no name for: {list_first(unnamed)}")
    if several:
        raise ArgumentError(
            f"Expected a name of its own for each class in '{names_file}'. Received the same one for "
            f"{' and '.join(sorted(next(iter(several.values()))))}. Give them different names."
        )


def _read_meanings(names_file: str, classes: Sequence[str]) -> dict[str, str]:
    """Read a CSV file of classes and their names, leaving out rows without a name, and a header."""
    meanings: dict[str, str] = {}
    rows = read_rows(names_file)
    for row in rows[has_known_names(rows[0]) and rows[0][0].strip() not in classes :]:
        name, meaning = row[0].strip(), row[1].strip()
        if meaning and meanings.setdefault(name, meaning) != meaning:
            raise ArgumentError(
                f"Expected one name for each class in '{names_file}'. Received for {name}: '{meanings[name]}' and "
                f"'{meaning}'. Remove one of the rows."
            )
    return meanings
