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
    rows, columns = read_table(labels)
    name_column = _column(columns, FILE_COLUMNS, 0, labels, "file names")
    label_column = _column(columns, LABEL_COLUMNS, 1, labels, "labels", not_this=name_column)
    part_column = next((columns.index(name) for name in PART_COLUMNS if name in columns), None)
    by_name = {}
    for file in listing.files:
        stem = os.path.splitext(file)[0]
        for name in {file, stem, os.path.basename(file), os.path.basename(stem)}:
            by_name.setdefault(unicodedata.normalize("NFC", name), []).append(file)
    parts, csv_name = {part: [] for part in PARTS}, os.path.basename(labels)
    used = {}
    for number, row in enumerate(rows, start=1):
        name = unicodedata.normalize("NFC", row[name_column].strip().replace("\\", "/").removeprefix("./"))
        label, files = row[label_column].strip(), by_name.get(name, by_name.get(os.path.basename(name), ()))
        part = "train" if part_column is None else part_of(row[part_column])
        if not files:
            listing.leave_out(f"rows of {csv_name} without a picture", name)
        elif len(files) > 1 and name not in files:
            raise ArgumentError(
                f"Expected each file name of '{labels}' to be one picture of '{listing.top}'. Received: '{name}', "
                f"which is {files[0]} and {files[1]}. Write their folders too."
            )
        elif not label or part is None:
            listing.leave_out(f"rows of {csv_name} without a label", name)
        else:
            file = name if name in files else files[0]
            if used.setdefault(file, label) != label:
                raise ArgumentError(
                    f"Expected one label for each picture in '{labels}'. Received for {shown(file)}: "
                    f"'{shown(used[file])}' and, in row {number}, '{shown(label)}'. Remove one of the rows."
                )
            parts[part].append((file, label))
    for file in listing.files:
        if file not in used:
            listing.leave_out(f"pictures that {csv_name} does not name", file)
    return {part: list(dict.fromkeys(pairs)) for part, pairs in parts.items()}, [f"labels are those of {labels}"]


def read_table(file):
    """The rows of a CSV file (commas, semicolons or tabs), and the lower-case names of its columns, if it has any."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as opened:
            text = opened.read()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "a file that is not in UTF-8"
        raise ArgumentError(f"Expected '{file}' to be a CSV file. Received: {reason}.") from error
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    rows = [row for row in csv.reader(text.splitlines(), delimiter=delimiter) if any(cell.strip() for cell in row)]
    width = Counter(map(len, rows)).most_common(1)[0][0] if rows else 0
    if width < 2 or any(len(row) < width for row in rows):
        short = next((number for number, row in enumerate(rows, start=1) if len(row) < max(width, 2)), 0)
        raise ArgumentError(f"Expected at least two columns in '{file}'. Received: fewer in row {short}.")
    head = [cell.strip().lower() for cell in rows[0]]
    if set(head) & {*FILE_COLUMNS, *LABEL_COLUMNS}:
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
