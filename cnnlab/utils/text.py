"""Escape and shorten texts that come from outside, such as the names of files, for screens, Markdown and CSV."""

from __future__ import annotations

import csv
import hashlib
import html
import io
import re
import unicodedata
from collections.abc import Iterable, Sequence

# Unicode categories of characters that end a line, control a terminal, or cannot be encoded in UTF-8 (the bytes of a
# name in another encoding).
CONTROL_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")
# Bidirectional classes of characters that change the order of the text after them.
DIRECTION_CONTROLS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def escape_control_characters(text: object) -> str:
    r"""A text on one line that can be written in UTF-8: `\x1b`, `\n`, `\udce9` in place of what cannot be shown.

    Everything else stays, also what has a meaning to some program that it is shown in.
    """
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in CONTROL_CATEGORIES
        or unicodedata.bidirectional(character) in DIRECTION_CONTROLS
        else character
        for character in str(text)
    )


def shortened(text: str, length: int) -> str:
    """Shorten a text to at most `length` characters by an ellipsis in it; both ends stay, as names differ in either."""
    if len(text) <= length:
        return text
    end = (length - 1) // 3
    return f"{text[: length - 1 - end]}…{text[len(text) - end :]}"


def list_first(names: Sequence[str], count: int = 10) -> str:
    """List the first names on one line, and say how many more there are."""
    listed = ", ".join(map(escape_control_characters, names[:count]))
    return listed + (f" and {len(names) - count:,} more" if len(names) > count else "")


def short_hash(text: str) -> str:
    """Return six characters of the text's hash, to tell apart things of the same name."""
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def markdown(text: object) -> str:
    """Escape a text so that Markdown shows it as it is, in a line, a heading or the cell of a table."""
    text = re.sub(r"([\\`*_{}\[\]|~#])", r"\\\1", html.escape(escape_control_characters(text), quote=False))
    return text.replace("$", "&#36;")  # between two of them there are formulas


def csv_line(values: Iterable[object]) -> str:
    """Return a line of a CSV file, in which a text that a spreadsheet would run as a formula is quoted."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(map(_cell, values))
    return line.getvalue()


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = escape_control_characters(value)
    if not text.lstrip().startswith(("=", "+", "-", "@")):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text
