"""Choose the columns of a table that hold file names and labels: file names by content, labels by name."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cnnlab.data.table_splits import SplitColumns, choose_split_columns, is_flag
from cnnlab.errors import ArgumentError, expect_one_of
from cnnlab.utils.text import escape_control_characters

# Names without spaces and other marks, the most telling first.
IMAGE_NAMES = tuple(
    "file filename image imageid imagename path filepath imagepath id name img photo picture pic imagefile fname "
    "filenames images".split()
)
LABEL_NAMES = tuple(
    "label labels class category target classname breed species y classlabel lbl diagnosis dx classid categoryid "
    "labelname groundtruth gt tag tags answer".split()
)
INDEX_NAMES = ("", "unnamed0", "index")
PICTURE_ENDING = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?|heic|avif|jfif)$", re.IGNORECASE)
FRACTION = re.compile(r"[+-]?\d*\.\d*[1-9]\d*")
SAMPLE = 300  # rows, over the whole table, in which file names are looked for


@dataclass(frozen=True)
class TableOptions:
    """Say by hand how a table of labels is read; `None` where that is found out."""

    image: str | None = None  # name or number, from 1, of the column of file names
    label: str | None = None  # that of the column of labels
    split: str | None = None  # that of the column of splits; "none" leaves such columns aside
    fold: str | None = None  # the fold that is the validation set


class Pictures(Protocol):
    """Finds the pictures of a folder, `root`, by the values of a table."""

    root: str

    def find(self, value: str) -> Sequence[int]:
        """Return the positions of the files that a value may mean."""
        ...


@dataclass(frozen=True)
class Columns:
    """Say what the columns of a table hold."""

    names: tuple[str, ...]  # of all columns, for messages
    has_header: bool  # whether the first row holds the names
    image: int  # the column of file names
    label: int  # the column of labels
    splits: SplitColumns  # what says which split a row belongs to

    def describe(self) -> list[str]:
        """Say in sentences which columns are used, and which are not."""
        used = {self.image, self.label, *self.splits.columns}
        aside = [name for column, name in enumerate(self.names) if column not in used]
        return [
            f"pictures are those of the column '{self.names[self.image]}', labels those of '{self.names[self.label]}'",
            *self.splits.describe(self.names),
            *([f"columns left aside: {', '.join(aside)}"] if aside else []),
        ]


def plain(name: str) -> str:
    """Return a name in lower case, without spaces and other marks."""
    return re.sub(r"[\W_]+", "", name.casefold())


def has_known_names(row: Sequence[str]) -> bool:
    """Return whether a row holds a name that columns of file names or labels usually have."""
    return bool({plain(cell) for cell in row} & {*IMAGE_NAMES, *LABEL_NAMES})


def choose_columns(rows: Sequence[Sequence[str]], table: str, pictures: Pictures, options: TableOptions) -> Columns:
    """Find out which columns of a table hold file names, labels and splits.

    The file names are in the column whose values name the most different pictures; names only break ties.

    Args:
        rows: of the table, perhaps with a header.
        table: its file, for messages.
        pictures: that the table may name.
        options: what is said by hand.

    Raises:
        ArgumentError: a column that is named is not there, or none or several may be meant.
    """
    head = [escape_control_characters(cell.strip()) for cell in rows[0]]
    given = {
        "image": options.image,
        "label": options.label,
        "split": None if options.split == "none" else options.split,
    }
    by_hand = {what: _column_called(name, head, f"{what}_column") for what, name in given.items() if name}
    if len(set(by_hand.values())) < len(by_hand):
        raise ArgumentError(
            f"Expected a column of '{table}' for each of {' and '.join(f'{what}_column' for what in by_hand)}. "
            "Received: the same one twice. Name another."
        )
    image = by_hand.get("image", -1)
    if image < 0:
        image = _image_column(rows, head, table, pictures, by_hand.values())
    has_header = any(plain(head[column]) == plain(given[what] or "") for what, column in by_hand.items())
    has_header = has_header or _is_header(rows, image, pictures)
    names = [name or "unnamed" if has_header else str(column) for column, name in enumerate(head, start=1)]
    plain_names, body = [plain(name) if has_header else "" for name in head], rows[has_header:]
    label = by_hand.get("label", -1)
    others = {column: name for column, name in enumerate(plain_names) if column not in (image, label)}
    splits = choose_split_columns(
        body, names, others, by_hand.get("split"), options.split == "none", options.fold, table, label < 0
    )
    if label < 0:
        candidates = [column for column in others if column not in splits.columns]
        label = _label_column(body, plain_names, names, candidates, table, image)
    return Columns(tuple(names), has_header, image, label, splits)


def _column_called(name: str, head: Sequence[str], option: str) -> int:
    """Return the number of the column that has a name, or whose number, from 1, it is."""
    for column, called in enumerate(head):
        if called == name or plain(called) == plain(name):
            return column
    if name.isdecimal() and 1 <= int(name) <= len(head):
        return int(name) - 1
    expect_one_of(option, name, [called for called in head if called])
    raise AssertionError("a name among them was found above")


def _image_column(
    rows: Sequence[Sequence[str]], head: Sequence[str], table: str, pictures: Pictures, taken: Collection[int]
) -> int:
    """Return the column whose values name the most different pictures, first of all with their endings."""
    names = [plain(name) for name in head]
    free = [column for column in range(len(head)) if column not in taken]

    def named(column: int, sample: Sequence[Sequence[str]]) -> tuple[Any, ...]:
        found = {tuple(pictures.find(value)): value for value in {row[column] for row in sample}}
        found.pop((), None)
        with_ending = sum(bool(PICTURE_ENDING.search(value.strip())) for value in found.values())
        usual = IMAGE_NAMES.index(names[column]) if names[column] in IMAGE_NAMES else len(IMAGE_NAMES)
        return bool(found), names[column] not in INDEX_NAMES, with_ending, len(found), -usual

    for sample in (rows[:: max(1, len(rows) // SAMPLE)], rows):
        scores = {column: named(column, sample) for column in free}
        best = max(free, key=lambda column: (scores[column], -column))
        if not scores[best][0]:
            continue
        equal = [column for column in free if scores[column] == scores[best]]
        if any(row[column] != row[best] for column in equal for row in sample[1:]):
            listed = " and ".join(head[column] or str(column + 1) for column in equal)
            raise ArgumentError(
                f"Expected one column of '{table}' to name the pictures of '{pictures.root}'. Received: {listed}, "
                "which name as many. Name it with image_column."
            )
        return best
    examples = ", ".join(f"'{escape_control_characters(rows[-1][column].strip())}'" for column in free[:5])
    raise ArgumentError(
        f"Expected a column of '{table}' to name pictures of '{pictures.root}'. Received none, but values such as "
        f"{examples}. Name the folder that holds the pictures, or correct the names."
    )


def _is_header(rows: Sequence[Sequence[str]], image: int, pictures: Pictures) -> bool:
    """Return whether the first row holds names of columns, not a picture and its label."""
    first = [cell.strip() for cell in rows[0]]
    if len(rows) < 2 or pictures.find(first[image]):
        return False
    if has_known_names(first):
        return True
    sample = rows[1 :: max(1, len(rows) // SAMPLE)]
    comes_again = any(
        cell and cell in {row[column].strip() for row in sample} for column, cell in enumerate(first) if column != image
    )
    return not comes_again and not PICTURE_ENDING.search(first[image])


def _label_column(
    rows: Sequence[Sequence[str]],
    plain_names: Sequence[str],
    names: Sequence[str],
    candidates: Sequence[int],
    table: str,
    image: int,
) -> int:
    """Return the column with a usual name for labels, or the only one that may hold them."""
    for name in LABEL_NAMES:
        if name in (plain_names[column] for column in candidates):
            return next(column for column in candidates if plain_names[column] == name)
    if len(called := [column for column in candidates if "label" in plain_names[column]]) == 1:
        return called[0]
    sample = rows[:: max(1, len(rows) // SAMPLE)]
    values = {column: [row[column].strip() for row in sample] for column in candidates}
    if len(candidates) > 1:
        named = [column for column in candidates if plain_names[column] not in INDEX_NAMES or not any(plain_names)]
        candidates = [column for column in named if _may_be_labels(values[column])] or named
    if len(candidates) == 1:
        return candidates[0]
    if not any(plain_names) and image + 1 in candidates:
        return image + 1
    listed = ", ".join(names[column] for column in candidates)
    if candidates and all(is_flag(value) for column in candidates for value in values[column]):
        raise ArgumentError(
            f"Expected one column with the label of each picture in '{table}'. Received: {len(candidates)} columns of "
            f"0 and 1: {listed}. Write the class of each picture into one column, or name one with label_column."
        )
    raise ArgumentError(
        f"Expected a column of labels in '{table}', called label, class, category or so. Received: "
        f"{listed or 'file names only'}. Name it with label_column."
    )


def _may_be_labels(values: Sequence[str]) -> bool:
    """Return whether values may be labels: several that come again, and no fractions."""
    different = set(values)
    return 1 < len(different) < max(3, len(values)) and not any(FRACTION.fullmatch(value) for value in different)
