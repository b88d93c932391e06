"""Map the labels of a table to classes: leave out missing ones, and join two spellings of one label."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

from cnnlab.errors import ArgumentError
from cnnlab.utils.text import escape_control_characters, list_first

# What pandas, R and people write where there is no label; "none" may be a class.
MISSING = frozenset(("", "NaN", "nan", "NAN", "NA", "N/A", "n/a", "#N/A", "None", "NULL", "null", "<NA>", "?"))
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)", re.ASCII)


def classes_of_labels(counts: Mapping[str, int], table: str) -> tuple[dict[str, str], list[str]]:
    """Find the class of each label.

    Labels that are one number (0, 0.0, 00), or differ in spaces, in upper and lower case or in their Unicode form only,
    are one class, by its most frequent spelling. Single letters are different classes in upper and lower case.

    Args:
        counts: how often each label is written, without spaces around it.
        table: its file, for messages.

    Returns:
        `(classes, notes)`: the class of each label, "" for one that is missing; and a sentence on what was joined.

    Raises:
        ArgumentError: there are several labels in one, or nearly as many as pictures.
    """
    _expect_one_label([label for label in counts if label not in MISSING], table)
    spellings: dict[str, list[str]] = {}
    for label in counts:
        if label not in MISSING:
            spellings.setdefault(_form(label), []).append(label)
    if len(spellings) > max(10, 0.9 * sum(counts.values())):
        raise ArgumentError(
            f"Expected labels in '{table}' that several pictures share. Received: {len(spellings):,} different ones of "
            f"{sum(counts.values()):,} pictures, such as '{next(iter(spellings.values()))[0]}'. Name the column of "
            "classes as label_column, or divide numbers into ranges."
        )
    classes, joined = dict.fromkeys(counts, ""), []
    for same in spellings.values():
        usual = max(same, key=counts.__getitem__)
        classes |= dict.fromkeys(same, usual)
        if len(same) > 1:
            joined.append(" = ".join(f"'{escape_control_characters(label)}' ({counts[label]:,})" for label in same))
    return classes, [f"labels in several spellings, each one class: {list_first(joined)}"] if joined else []


def _form(label: str) -> str:
    """Return what is equal for labels that are one class."""
    if NUMBER.fullmatch(label):
        whole, _, fraction = label.lstrip("+-").partition(".")
        number = f"{whole.lstrip('0')}.{fraction.rstrip('0')}"
        return f"-{number}" if label.startswith("-") and number != "." else number
    words = " ".join(unicodedata.normalize("NFC", label).split())
    return words if len(words) == 1 else words.casefold()


def _expect_one_label(labels: Sequence[str], table: str) -> None:
    """Raise `ArgumentError` where labels are lists of labels: "cat|dog", "cat dog" where there is "cat" and "dog"."""
    for separator in ("|", ";", ",", None):
        parts = {
            label: [part for piece in label.split(separator) if (part := piece.strip(" []{}()'\""))] for label in labels
        }
        uses = Counter(part for found in parts.values() for part in set(found))
        alone = {found[0] for found in parts.values() if len(found) == 1}
        # A bar is in no name. Words and commas are in many, which are lists where each part is a label too, or where
        # few words make more labels, of different lengths.
        known = {part for part, count in uses.items() if count > 1} if separator in ("|", ";") else alone
        several = {label: found for label, found in parts.items() if len(found) > 1}
        lists = [label for label, found in several.items() if label[0] == "[" or set(found) <= known]
        if not lists and len(set(map(len, parts.values()))) > 2 and len(labels) > len(uses):
            lists = [max(labels, key=lambda label: len(parts[label]))]
        if lists:
            raise ArgumentError(
                f"Expected one label for each picture in '{table}'. Received: '{lists[0]}', which is "
                f"{' and '.join(repr(part) for part in parts[lists[0]][:4])}. Choose one of them for each picture, or "
                "write a class of several words with _ between them."
            )
