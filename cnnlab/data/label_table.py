"""Assign pictures to classes and splits by a CSV file of file names and labels, and read such files."""

from __future__ import annotations

import csv
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from cnnlab.data.class_folders import split_of_folder
from cnnlab.data.folder_scan import Assignment, FolderScan
from cnnlab.errors import ArgumentError
from cnnlab.utils.text import escape_control_characters

# Names of columns, in the order in which they are looked for.
FILE_COLUMNS = ("file", "filename", "file_name", "image", "image_id", "image_name", "path", "filepath", "id", "name")
LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "class_name", "breed", "species", "y")
SPLIT_COLUMNS = ("split", "part", "set", "subset")


def assign_by_label_table(scan: FolderScan, table: str) -> Assignment:
    """Assign the pictures of a scan to classes and splits by a CSV file.

    The file's names may be paths or bare names, with or without their ending.

    Args:
        scan: of the folder; what is left out is recorded in it.
        table: path of the CSV file.

    Raises:
        ArgumentError: the file is not understood, or contradicts itself.
    """
    by_stem, root_name = _by_stem(scan.files), os.path.basename(scan.root)

    def find(name: str, form: Callable[[str], str] = str) -> list[int]:
        return _matching_files(name, scan.files, by_stem, root_name, form)

    rows, columns = read_table(table, lambda row: not any(find(_clean(cell)) for cell in row))
    name_column = _column(columns, FILE_COLUMNS, 0, table, "file names")
    label_column = _column(columns, LABEL_COLUMNS, 1, table, "labels", not_this=name_column)
    split_column = next((columns.index(name) for name in SPLIT_COLUMNS if name in columns), None)
    csv_name, other_case = os.path.basename(table), 0
    names = {"": 0}  # of the classes, with their numbers; 0 where a row has no label
    numbers = np.full(len(scan.files), -1)  # of the classes; -1 where no row names the file
    splits = np.full(len(scan.files), "", "U5")
    for row_number, row in enumerate(rows, start=2 if columns else 1):
        name, label = _clean(row[name_column]), row[label_column].strip()
        split = "train" if split_column is None else split_of_folder(row[split_column]) or ""
        files = find(name)
        if not files and (files := find(name, str.casefold)):
            other_case += 1
        if not files:
            scan.leave_out(f"rows of {csv_name} without a picture", name)
            continue
        if len(files) > 1:
            raise ArgumentError(
                f"Expected each file name of '{table}' to be one picture of '{scan.root}'. Received: '{name}', which "
                f"is {scan.files[files[0]]} and {scan.files[files[1]]}. Write their folders too."
            )
        [file] = files
        is_new = numbers[file] < 0
        if is_new:
            numbers[file], splits[file] = names.setdefault(label, len(names)), split
        if not label or not split:
            what = "a label" if not label else "train, val or test as their split"
            scan.leave_out(f"pictures that {csv_name} gives without {what}", scan.files[file])
        elif not is_new and (numbers[file], splits[file]) != (names.get(label), split):
            before = list(names)[numbers[file]], str(splits[file])
            _refuse_contradiction(table, scan.files[file], before, (label, split), row_number)
    for file in scan.files[numbers < 0]:
        scan.leave_out(f"pictures that {csv_name} does not name", file)
    notes = [f"labels are those of {table}"]
    if other_case:
        notes.append(f"{other_case:,} names of {csv_name} are the files' in another case")
    used = (numbers > 0) & (splits != "")
    return Assignment(list(names)[1:], np.where(used, numbers - 1, -1), np.where(used, splits, ""), notes)


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


def _clean(cell: str) -> str:
    return _one_form(cell.strip().replace("\\", "/").removeprefix("./"))


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


def _matching_files(
    name: str,
    files: npt.NDArray[np.object_],
    by_stem: dict[str, int | list[int]],
    root_name: str,
    form: Callable[[str], str],
) -> list[int]:
    """Return the positions of the files that a row's name may mean, with or without folder and ending.

    Args:
        name: as in the row; with a folder it means a file in that folder, which may be the root itself.
        form: applied to the names before they are compared, such as `str.casefold`.
    """
    name, root_name = form(name), form(root_name)
    below_root = name.partition(f"{root_name}/")[2] if f"/{root_name}/" in f"/{name}" else ""
    for candidate in (name, below_root):
        found = {}
        for key in {candidate.casefold(), os.path.splitext(candidate)[0].casefold()}:
            positions = by_stem.get(key, [])
            for position in [positions] if isinstance(positions, int) else positions:
                path = form(_one_form(files[position]))
                whole = path, os.path.splitext(path)[0]
                if candidate in (*whole, *map(os.path.basename, whole)):
                    found[position] = candidate in whole
        if found:
            return sorted(position for position in found if found[position]) or sorted(found)
    return []


def read_table(
    file: str, may_be_header: Callable[[list[str]], bool] = lambda row: True
) -> tuple[list[list[str]], list[str]]:
    """Read a CSV file whose values are separated by commas, semicolons or tabs.

    Args:
        file: its path.
        may_be_header: says of the first row whether it may hold the names of the columns.

    Returns:
        `(rows, columns)`: the rows without the header, and the lower-case names of the columns, if it has any.

    Raises:
        ArgumentError: the file cannot be read, is empty, or a row has fewer columns than the others.
    """
    try:
        with open(file, encoding="utf-8-sig", newline="") as opened:
            text = opened.read()
        delimiter = max(",;\t", key=text.partition("\n")[0].count)
        rows = [row for row in csv.reader(text.splitlines(), delimiter=delimiter) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        advice = "Save it as CSV in UTF-8" if isinstance(error, UnicodeDecodeError) else "Name another file"
        raise ArgumentError(f"Expected '{file}' to be a CSV file. Received: {reason}. {advice}.") from error
    if not rows:
        raise ArgumentError(
            f"Expected '{file}' to be a CSV file of two columns. Received: an empty one. Name another file."
        )
    width = max(2, Counter(map(len, rows)).most_common(1)[0][0])
    if short := next((number for number, row in enumerate(rows, start=1) if len(row) < width), None):
        raise ArgumentError(
            f"Expected {width} columns in every row of '{file}'. Received: fewer in row {short}. Complete or remove it."
        )
    head = [cell.strip().lower() for cell in rows[0]]
    if set(head) & {*FILE_COLUMNS, *LABEL_COLUMNS} and may_be_header(rows[0]):
        return rows[1:], head
    return rows, []


def _column(
    columns: Sequence[str], wanted: Sequence[str], usual: int, file: str, what: str, not_this: int | None = None
) -> int:
    """Return the number of the first column with a wanted name, or the usual one of a file without names or of two."""
    found = next((columns.index(name) for name in wanted if name in columns and columns.index(name) != not_this), None)
    if found is not None:
        return found
    if len(columns) in (0, 2):
        return usual
    raise ArgumentError(
        f"Expected a column of {what} in '{file}', called one of: {', '.join(wanted)}. Received: {', '.join(columns)}."
    )
