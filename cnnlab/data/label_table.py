"""Assign pictures to classes and splits by a CSV file of file names and labels."""

from __future__ import annotations

import itertools
import os
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from cnnlab.data.class_folders import split_of_folder
from cnnlab.data.folder_scan import Assignment, FolderScan
from cnnlab.data.table_columns import TableOptions, choose_columns
from cnnlab.data.table_file import read_rows
from cnnlab.data.table_labels import classes_of_labels
from cnnlab.errors import ArgumentError
from cnnlab.utils.text import escape_control_characters

ABSOLUTE = re.compile(r"/|[a-z]:/|[a-z]+://", re.IGNORECASE)


def assign_by_label_table(scan: FolderScan, table: str, options: TableOptions | None = None) -> Assignment:
    """Assign the pictures of a scan to classes and splits by a CSV file.

    The file's names may be paths or bare names, with or without their ending.

    Args:
        scan: of the folder; what is left out is recorded in it.
        table: path of the CSV file.
        options: what is said by hand of its columns.

    Raises:
        ArgumentError: the file is not understood, or contradicts itself.
    """
    rows, pictures = read_rows(table), NamedPictures(scan)
    columns = choose_columns(rows, table, pictures, options or TableOptions())
    csv_name, other_case = os.path.basename(table), 0
    spellings: dict[str, int] = {}  # of labels, with their numbers
    told: dict[tuple[str, ...], str] = {}  # the split that values tell
    numbers = np.full(len(scan.files), -1)  # of the labels; -1 where no row names the file
    splits = np.full(len(scan.files), "", "U5")
    differing: list[tuple[int, int, str, int]] = []  # rows of pictures that a row before names otherwise
    body = itertools.islice(rows, columns.has_header, None)
    for row_number, row in enumerate(body, start=1 + columns.has_header):
        files = pictures.find(row[columns.image])
        if not files:
            scan.leave_out(f"rows of {csv_name} without a picture", row[columns.image].strip())
            continue
        if len(files) > 1:
            raise ArgumentError(
                f"Expected each file name of '{table}' to be one picture of '{scan.root}'. Received: "
                f"'{row[columns.image].strip()}', which is {scan.files[files[0]]} and {scan.files[files[1]]}. Write "
                "their folders too."
            )
        [file], label = files, spellings.setdefault(row[columns.label].strip(), len(spellings))
        values = tuple(row[column] for column in columns.splits.columns)
        if (split := told.get(values)) is None:
            split = told[values] = columns.splits.split_of(values)
        if numbers[file] < 0:
            numbers[file], splits[file] = label, split
            other_case += pictures.in_another_case
        elif (numbers[file], splits[file]) != (label, split):
            differing.append((file, label, split, row_number))
    counted = np.bincount(numbers[numbers >= 0], minlength=len(spellings)).tolist()
    by_label, notes = classes_of_labels(dict(zip(spellings, counted, strict=True)), table)
    classes = list(by_label.values())
    for file, label, split, row_number in differing:
        before, now = (classes[numbers[file]], str(splits[file])), (classes[label], split)
        if before != now:
            _refuse_contradiction(table, scan.files[file], before, now, row_number)
    notes = [f"labels are those of {table}", *columns.describe(), *notes]
    if not columns.splits.columns:
        notes += _folders_of_splits(scan.files[numbers >= 0])
    if other_case:
        notes.append(f"{other_case:,} names of {csv_name} are the files' in another case")
    return _assignment(scan, csv_name, numbers, splits, by_label, notes)


def _assignment(
    scan: FolderScan,
    csv_name: str,
    numbers: npt.NDArray[np.int64],
    splits: npt.NDArray[np.str_],
    classes: Mapping[str, str],
    notes: list[str],
) -> Assignment:
    """Make the assignment of labels and splits, leaving out the pictures that lack one.

    Args:
        numbers: `(N,)` positions of the pictures' labels in `classes`, -1 without one.
        splits: `(N,)`, "" without one.
        classes: the class of each label, "" for one that is missing.
    """
    for number, (label, name) in enumerate(classes.items()):
        if not name:
            written = f", but '{escape_control_characters(label)}'" if label else ""
            for file in scan.files[numbers == number]:
                scan.leave_out(f"pictures that {csv_name} gives without a label{written}", file)
    names = list(dict.fromkeys(name for name in classes.values() if name))
    order = {name: number for number, name in enumerate(names)}
    labels = np.array([*(order.get(name, -1) for name in classes.values()), -1], np.int64)[numbers]
    for file in scan.files[(labels >= 0) & (splits == "")]:
        scan.leave_out(f"pictures that {csv_name} gives without train, val or test as their split", file)
    for file in scan.files[numbers < 0]:
        scan.leave_out(f"pictures that {csv_name} does not name", file)
    used = (labels >= 0) & (splits != "")
    return Assignment(names, np.where(used, labels, -1), np.where(used, splits, ""), notes)


def _folders_of_splits(files: npt.NDArray[np.object_]) -> list[str]:
    """Say, in a list of at most one sentence, that pictures lie in folders of splits, which the table does not tell."""
    folders = sorted({file.partition(os.sep)[0] for file in files if os.sep in file})
    named = [folder for folder in folders if split_of_folder(folder)]
    if len(set(map(split_of_folder, named))) < 2:
        return []
    listed = escape_control_characters(" and ".join(f"{folder}/" for folder in named))
    return [f"pictures of {listed} are not kept apart, for which the table needs a column called split"]


def _refuse_contradiction(
    table: str, file: str, before: tuple[str, str], now: tuple[str, str], row_number: int
) -> NoReturn:
    first, second = (
        " of ".join(filter(None, (escape_control_characters(label), split))) for label, split in (before, now)
    )
    raise ArgumentError(
        f"Expected one label and one split for each picture in '{table}'. Received for {file}: {first} and, in row "
        f"{row_number}, {second}. Remove one of the rows."
    )


class NamedPictures:
    """Finds the pictures of a scan by names, with or without folder and ending.

    Attributes:
        root: the folder.
        in_another_case: whether the last name that was found is the file's in another case only.
    """

    def __init__(self, scan: FolderScan) -> None:
        self.root, self.in_another_case = scan.root, False
        self._files, self._root_name = scan.files, os.path.basename(scan.root)
        self._by_stem = _by_stem(scan.files)

    def find(self, value: str) -> list[int]:
        """Return the positions of the files that a value of a table may mean."""
        name = _one_form(value.strip().replace("\\", "/").removeprefix("./"))
        files = self._find(name, str)
        self.in_another_case = not files and bool(files := self._find(name, str.casefold))
        return files

    def _find(self, name: str, form: Callable[[str], str]) -> list[int]:
        """Return the positions of the files that a name may mean.

        Args:
            name: with a folder it means a file in that folder, which may be the root itself; of a full path, the first
                folders may be those of another machine.
            form: applied to the names before they are compared, such as `str.casefold`.
        """
        name, root_name = form(name), form(self._root_name)
        below_root = name.partition(f"{root_name}/")[2] if f"/{root_name}/" in f"/{name}" else ""
        ends = re.split("/", name)[1:] if ABSOLUTE.match(name) else []
        for candidate in (name, below_root):
            found = self._matching(candidate, form)
            if found:
                return sorted(position for position in found if found[position]) or sorted(found)
        for start in range(len(ends)):
            found = self._matching("/".join(ends[start:]), form)
            if whole := sorted(position for position in found if found[position]):
                return whole
        return []

    def _matching(self, name: str, form: Callable[[str], str]) -> dict[int, bool]:
        """Return the files that have a name, and whether it is their whole path from the root, but for the ending."""
        found = {}
        for key in {name.casefold(), os.path.splitext(name)[0].casefold()}:
            positions = self._by_stem.get(key, [])
            for position in [positions] if isinstance(positions, int) else positions:
                path = form(_one_form(self._files[position]))
                whole = path, os.path.splitext(path)[0]
                if name in (*whole, *map(os.path.basename, whole)):
                    found[position] = name in whole
        return found


def _one_form(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _by_stem(files: npt.NDArray[np.object_]) -> dict[str, int | list[int]]:
    """Index files by their paths without ending, and by their names alone, in one Unicode form and case.

    Returns:
        The position of the file, or the positions of several; a list for each of hundreds of thousands takes memory.
    """
    by_stem: dict[str, int | list[int]] = {}
    for position, file in enumerate(files):
        stem = _one_form(os.path.splitext(file)[0]).casefold()
        for key in {stem, os.path.basename(stem)}:
            before = by_stem.setdefault(key, position)
            if isinstance(before, list):
                before.append(position)
            elif before != position:
                by_stem[key] = [before, position]
    return by_stem
