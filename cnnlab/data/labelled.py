"""Pictures whose labels are in a CSV file, and the reading of such files."""

import csv
import os
import unicodedata
from collections import Counter

from cnnlab.data.class_folders import PARTS, part_of
from cnnlab.data.listing import Listing
from cnnlab.errors import ArgumentError
from cnnlab.names import shown

# Names of columns, in the order in which they are looked for.
FILE_COLUMNS = ("file", "filename", "file_name", "image", "image_id", "image_name", "path", "filepath", "id", "name")
LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "class_name", "breed", "species", "y")
PART_COLUMNS = ("split", "part", "set", "subset")


def from_labels(listing: Listing, labels):
    """Pictures by a CSV file, whose names may be paths or bare names, with or without their ending.

    Returns:
        As `class_folders.from_class_folders`.

    Raises:
        ArgumentError: the file is not understood, or contradicts itself.
    """
    by_name = _by_name(listing.files)
    rows, columns = read_table(labels, lambda row: not any(_clean(cell) in by_name for cell in row))
    name_column = _column(columns, FILE_COLUMNS, 0, labels, "file names")
    label_column = _column(columns, LABEL_COLUMNS, 1, labels, "labels", not_this=name_column)
    part_column = next((columns.index(name) for name in PART_COLUMNS if name in columns), None)
    parts, csv_name, used, other_case = {part: [] for part in PARTS}, os.path.basename(labels), {}, 0
    in_any_case, top = _by_name(listing.files, str.casefold), os.path.basename(listing.top)
    for number, row in enumerate(rows, start=2 if columns else 1):
        name, label = _clean(row[name_column]), row[label_column].strip()
        files = _files_of(name, by_name, top)
        part = "train" if part_column is None else part_of(row[part_column])
        if not files and (files := _files_of(name.casefold(), in_any_case, top.casefold())):
            other_case += 1
        if not files:
            listing.leave_out(f"rows of {csv_name} without a picture", name)
            continue
        if len(files) > 1:
            raise ArgumentError(
                f"Expected each file name of '{labels}' to be one picture of '{listing.top}'. Received: '{name}', "
                f"which is {shown(files[0])} and {shown(files[1])}. Write their folders too."
            )
        [file] = files
        if not label or part is None:
            what = "a label" if not label else "train, val or test as their split"
            listing.leave_out(f"pictures that {csv_name} gives without {what}", file)
            used.setdefault(file, (label, part))
        elif used.setdefault(file, (label, part)) != (label, part):
            first, second = (" of ".join(filter(None, (shown(one), of))) for one, of in (used[file], (label, part)))
            raise ArgumentError(
                f"Expected one label and one part for each picture in '{labels}'. Received for {shown(file)}: "
                f"{first} and, in row {number}, {second}. Remove one of the rows."
            )
        else:
            parts[part].append((file, label))
    for file in listing.files:
        if file not in used:
            listing.leave_out(f"pictures that {csv_name} does not name", file)
    notes = [f"labels are those of {labels}"]
    if other_case:
        notes.append(f"{other_case:,} names of {csv_name} are the files' in another case")
    return {part: list(dict.fromkeys(pairs)) for part, pairs in parts.items()}, notes


def _clean(cell):
    return unicodedata.normalize("NFC", cell.strip().replace("\\", "/").removeprefix("./"))


def _by_name(files, form=str):
    """Every name that a table may call a file by, in some form, to the files: with and without folder and ending."""
    by_name = {}
    for file in files:
        stem = os.path.splitext(file)[0]
        names = (file, stem, os.path.basename(file), os.path.basename(stem))
        for name in {form(unicodedata.normalize("NFC", name)) for name in names}:
            by_name.setdefault(name, []).append(file)
    return by_name


def _files_of(name, by_name, top):
    """The files that a row's name may mean; one with a folder is in that folder, or in the one that is looked into."""
    for one in (name, name.partition(f"{top}/")[2] if f"/{top}/" in f"/{name}" else ""):
        if files := by_name.get(one):
            whole = [file for file in files if one in (file, os.path.splitext(file)[0])]
            return whole or files
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
