"""Which pictures of a folder are for what, and of which class."""

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from cnnlab.data.class_folders import SPLIT_NAMES, layout_from_class_folders
from cnnlab.data.folder_scan import describe_left_out, scan_folder
from cnnlab.data.label_table import layout_from_label_table, read_table
from cnnlab.errors import ArgumentError
from cnnlab.utils.text import escape_control_characters


@dataclass
class FolderLayout:
    """The pictures of a folder that are used, with part and class.

    Attributes:
        top: the folder, absolute.
        files: `(N,)` relative paths, sorted.
        labels: `(N,) int64`, of the class names.
        part: `(N,)` of "train", "val" and "test".
        stamps: `(N, 3) int64`, as in `FolderScan`.
        class_names: numbers ordered as numbers.
        notes: what was taken for what.
        left_out: as in `FolderScan`.
    """

    top: str
    files: np.ndarray
    labels: np.ndarray
    part: np.ndarray
    stamps: np.ndarray
    class_names: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def rows(self, part) -> np.ndarray:
        """The positions of a part's pictures, in order of class and path."""
        rows = np.flatnonzero(self.part == part)
        return rows[np.argsort(self.labels[rows], kind="stable")]


def find_layout(folder, *, labels=None, class_names=None, skip_empty=False, for_audit=False) -> FolderLayout:
    """List a folder and find out what its pictures are for.

    Args:
        folder: with train/ and test/ and perhaps val/ (by any of their usual names), or with class folders only,
            perhaps all of it inside of one more folder.
        labels: a CSV file with a column of file names and one of labels, in place of class folders, and perhaps one
            "split" of train, val and test.
        class_names: a CSV file of the folders' names and what they mean, as ImageNet's ids need it.
        skip_empty: leave class folders without pictures out.
        for_audit: note what a training would lack, in place of an error.

    Raises:
        ArgumentError: there are not at least two classes, a class has no pictures, or what is meant is not clear.
    """
    listing = scan_folder(folder)
    where = escape_control_characters(folder)
    if not skip_empty:
        _expect_all_read(listing, where)
    found = (
        layout_from_label_table(listing, labels) if labels else layout_from_class_folders(listing, where, skip_empty)
    )
    names, label_numbers, part, notes = found
    used = label_numbers >= 0
    layout = FolderLayout(listing.top, listing.files[used], label_numbers[used], part[used], listing.stamps[used])
    layout.notes, layout.left_out = notes, listing.left_out
    _name_classes(layout, names, class_names)
    counts = {name: _counts(layout, name) for name in SPLIT_NAMES}
    if for_audit and layout.class_names:
        layout.notes.extend(_what_a_training_lacks(counts))
    else:
        _expect_trainable(layout, counts, where, labels)
    alike = Counter(name.casefold() for name in layout.class_names)
    if double := [name for name in layout.class_names if alike[name.casefold()] > 1]:
        layout.notes.append(f"classes that differ in upper and lower case only: {_first(double)}")
    return layout


def _counts(layout, part):
    """The names of the classes of a part, to how many pictures of it there are."""
    counts = np.bincount(layout.labels[layout.part == part], minlength=len(layout.class_names)).tolist()
    return {name: count for name, count in zip(layout.class_names, counts, strict=True) if count}


def _expect_all_read(listing, where):
    """A folder without permission may be a whole class."""
    for reason, paths in listing.left_out.items():
        if reason.startswith(("folders that cannot be read", "files that cannot be read")):
            raise ArgumentError(
                f"Expected to read all of '{where}'. Received: {len(paths):,} {reason}, the first one "
                f"{paths[0] or 'the folder itself'}. Give yourself permission, or leave them out with "
                "--skip-bad."
            )


def _what_a_training_lacks(counts):
    """A sentence for each reason why a folder cannot be trained on, or for what a training does first."""
    if len(counts["train"]) < 2:
        yield f"training pictures of {len(counts['train']) or 'no'} class, where a training needs two classes"
    for part in ("val", "test"):
        if extra := sorted(set(counts[part]) - set(counts["train"]), key=natural):
            yield f"classes in {part} that are not in train, which a training refuses: {_first(extra)}"
        if missing := [name for name in counts["train"] if counts[part] and name not in counts[part]]:
            yield f"no {part} pictures of {_first(missing)}"
    if not counts["test"]:
        yield "it has no test set, for which a training holds a fifth of it out"


def _expect_trainable(layout, counts, where, labels):
    train = counts["train"]
    if len(train) < 2:
        received = f"only '{next(iter(train))}'" if train else "none"
        two = "at least two class folders with pictures, or train/ and test/ with those"
        two = "pictures of at least two classes" if labels else two
        advice = f"Look into '{labels}'." if labels else "Pictures that are listed in a file need --labels FILE.csv."
        left = f" Left out: {escape_control_characters(describe_left_out(layout.left_out))}." if layout.left_out else ""
        raise ArgumentError(f"Expected '{where}' to hold {two}. Received: {received}.{left} {advice}")
    for part in ("val", "test"):
        if extra := sorted(set(counts[part]) - set(train), key=natural):
            raise ArgumentError(
                f"Expected every class of the {part} pictures of '{where}' to be in train too. Received: "
                f"{_spelled(extra[0], train)}{_and_more(extra[1:])} in {part} only. Add training images of it, rename "
                "or remove it."
            )


def natural(name):
    """A key to sort names by, with the numbers in them as numbers: 1, 2, 10."""
    parts = [part for part in re.split(r"(\d+)", name) if part]
    # By length and digits, as a number of thousands of digits is no int.
    return [
        (0, len(part.lstrip("0")), part.lstrip("0"), part) if part.isdecimal() else (1, 0, part, "") for part in parts
    ]


def _name_classes(layout, given, class_names):
    """Give classes their names for people: one Unicode form, what cannot be shown escaped, ids by a file's names.

    Args:
        given: the names that the labels of the layout are numbers of.
    """
    meanings = {}
    if class_names:
        rows, _ = read_table(class_names)
        for row in rows:
            name, meaning = row[0].strip(), row[1].strip()
            if meaning and meanings.setdefault(name, meaning) != meaning:
                raise ArgumentError(
                    f"Expected one name for each class in '{class_names}'. Received for {name}: "
                    f"'{meanings[name]}' and '{meaning}'. Remove one of the rows."
                )
    there = np.unique(layout.labels)
    numbers, given = dict(zip(given, range(len(given)), strict=True)), {given[number] for number in there}
    one_form = {name: unicodedata.normalize("NFC", meanings.get(name, name)) for name in given}
    called = {name: escape_control_characters(text) for name, text in one_form.items()}
    if len(set(called.values())) < len(set(one_form.values())):
        alike = Counter(map(escape_control_characters, set(one_form.values()))).most_common(1)[0][0]
        raise ArgumentError(
            f"Expected class names that differ where control characters are written out. Received twice: {alike}. "
            "Rename one of the folders."
        )
    layout.class_names = tuple(sorted(set(called.values()), key=natural))
    order = {name: label for label, name in enumerate(layout.class_names)}
    label_of = np.full(len(numbers), -1)
    for name, one in called.items():
        label_of[numbers[name]] = order[one]
    layout.labels = label_of[layout.labels]
    spelled = {}
    for name, one in called.items():
        spelled.setdefault(one, set()).add(name)
    for name, spellings in spelled.items():
        if len(spellings) > 1 and not meanings:
            layout.notes.append(f"'{name}' is written in {len(spellings)} Unicode forms, which are one class")
    if meanings and (unnamed := sorted(given - set(meanings), key=natural)):
        layout.notes.append(f"classes that {class_names} has no name for: {_first(unnamed)}")
    if meanings and len(spelled) < len(given):
        double = next(sorted(spellings) for spellings in spelled.values() if len(spellings) > 1)
        raise ArgumentError(
            f"Expected a name of its own for each class in '{class_names}'. Received the same one for "
            f"{' and '.join(double)}. Give them different names."
        )


def _spelled(name, others):
    near = next((other for other in others if other.casefold() == name.casefold()), None)
    return f"'{name}'" + (f" (train has '{near}')" if near else "")


def _and_more(names):
    return f" and {len(names)} more" if names else ""


def _first(names, count=10):
    listed = ", ".join(map(escape_control_characters, names[:count]))
    return listed + (f" and {len(names) - count:,} more" if len(names) > count else "")
