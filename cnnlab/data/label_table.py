"""Pictures whose labels are in a CSV file, and the reading of such files."""

import csv
import os
import unicodedata
from collections import Counter

import numpy as np

from cnnlab.data.class_folders import split_of_folder
from cnnlab.data.folder_scan import FolderScan
from cnnlab.errors import ArgumentError
from cnnlab.utils.text import escape_control_characters

# Names of columns, in the order in which they are looked for.
FILE_COLUMNS = ("file", "filename", "file_name", "image", "image_id", "image_name", "path", "filepath", "id", "name")
LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "class_name", "breed", "species", "y")
PART_COLUMNS = ("split", "part", "set", "subset")


def layout_from_label_table(listing: FolderScan, labels):
    """Pictures by a CSV file, whose names may be paths or bare names, with or without their ending.

    Returns:
        As `class_folders.layout_from_class_folders`.

    Raises:
        ArgumentError: the file is not understood, or contradicts itself.
    """
    by_stem, top = _by_stem(listing.files), os.path.basename(listing.top)

    def find(name, form=str):
        return _files_of(name, listing.files, by_stem, top, form)

    rows, columns = read_table(labels, lambda row: not any(find(_clean(cell)) for cell in row))
    name_column = _column(columns, FILE_COLUMNS, 0, labels, "file names")
    label_column = _column(columns, LABEL_COLUMNS, 1, labels, "labels", not_this=name_column)
    part_column = next((columns.index(name) for name in PART_COLUMNS if name in columns), None)
    csv_name, other_case, numbers = os.path.basename(labels), 0, {"": 0}
    given = np.full(len(listing.files), -1)  # numbers of labels, 0 where there is none
    part = np.full(len(listing.files), "", "U5")
    for number, row in enumerate(rows, start=2 if columns else 1):
        name, label = _clean(row[name_column]), row[label_column].strip()
        files = find(name)
        of = "train" if part_column is None else split_of_folder(row[part_column]) or ""
        if not files and (files := find(name, str.casefold)):
            other_case += 1
        if not files:
            listing.leave_out(f"rows of {csv_name} without a picture", name)
            continue
        if len(files) > 1:
            raise ArgumentError(
                f"Expected each file name of '{labels}' to be one picture of '{listing.top}'. Received: '{name}', "
                f"which is {listing.files[files[0]]} and {listing.files[files[1]]}. Write their folders "
                "too."
            )
        [file] = files
        new = given[file] < 0
        if new:
            given[file], part[file] = numbers.setdefault(label, len(numbers)), of
        if not label or not of:
            what = "a label" if not label else "train, val or test as their split"
            listing.leave_out(f"pictures that {csv_name} gives without {what}", listing.files[file])
        elif not new and (given[file], part[file]) != (numbers.get(label), of):
            before = list(numbers)[given[file]], str(part[file])
            first, second = (
                " of ".join(filter(None, (escape_control_characters(one), of))) for one, of in (before, (label, of))
            )
            raise ArgumentError(
                f"Expected one label and one part for each picture in '{labels}'. Received for "
                f"{listing.files[file]}: {first} and, in row {number}, {second}. Remove one of the rows."
            )
    for file in listing.files[given < 0]:
        listing.leave_out(f"pictures that {csv_name} does not name", file)
    notes = [f"labels are those of {labels}"]
    if other_case:
        notes.append(f"{other_case:,} names of {csv_name} are the files' in another case")
    used = (given > 0) & (part != "")
    return list(numbers)[1:], np.where(used, given - 1, -1), np.where(used, part, ""), notes


def _clean(cell):
    return _one_form(cell.strip().replace("\\", "/").removeprefix("./"))


def _one_form(name):
    return unicodedata.normalize("NFC", name)


def _by_stem(files):
    """Paths without ending, and their names alone, in one form and case, to the position of the file, or a list of
    several.
    """
    by_stem = {}
    for position, file in enumerate(files):
        stem = _one_form(os.path.splitext(file)[0]).casefold()
        for key in {stem, os.path.basename(stem)}:
            before = by_stem.setdefault(key, position)
            if isinstance(before, list):
                before.append(position)
            elif before != position:
                by_stem[key] = [before, position]
    return by_stem


def _files_of(name, files, by_stem, top, form):
    """Positions of the files that a row's name may mean, with or without folder and ending; one with a folder is in
    that folder, or in the one that is looked into.
    """
    name, top = form(name), form(top)
    for one in (name, name.partition(f"{top}/")[2] if f"/{top}/" in f"/{name}" else ""):
        found = {}
        for key in {one.casefold(), os.path.splitext(one)[0].casefold()}:
            positions = by_stem.get(key, [])
            for position in [positions] if isinstance(positions, int) else positions:
                path = form(_one_form(files[position]))
                whole = path, os.path.splitext(path)[0]
                if one in (*whole, *map(os.path.basename, whole)):
                    found[position] = one in whole
        if found:
            return sorted(position for position in found if found[position]) or sorted(found)
    return []


def read_table(file, may_be_header=lambda row: True):
    """The rows of a CSV file (commas, semicolons or tabs), and the lower-case names of its columns, if it has any.

    Args:
        may_be_header: of the first row.
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


def _column(columns, wanted, usual, file, what, not_this=None):
    found = next((columns.index(name) for name in wanted if name in columns and columns.index(name) != not_this), None)
    if found is not None or not columns:
        return usual if found is None else found
    if len(columns) == 2:
        return usual
    raise ArgumentError(
        f"Expected a column of {what} in '{file}', called one of: {', '.join(wanted)}. Received: {', '.join(columns)}."
    )
