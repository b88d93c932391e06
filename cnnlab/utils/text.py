"""Names that people gave to folders and files, made fit to be shown: names are data, whatever is in them."""

import csv
import hashlib
import html
import io
import re
import unicodedata

# Characters that end a line, command a terminal, or are no text in UTF-8 (bytes of a name in another encoding).
HIDDEN = ("Cc", "Cs", "Zl", "Zp")
# They turn the order of all that is shown after them.
TURNING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def escape_control_characters(text) -> str:
    r"""A text on one line that can be written in UTF-8: `\x1b`, `\n`, `\udce9` in place of what cannot be shown.

    Everything else stays, also what has a meaning to some program that it is shown in.
    """
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in HIDDEN or unicodedata.bidirectional(character) in TURNING
        else character
        for character in str(text)
    )


def shortened(text, length) -> str:
    """A text of at most so many characters, with an ellipsis in it: both ends stay, since names differ in either."""
    if len(text) <= length:
        return text
    end = (length - 1) // 3
    return f"{text[: length - 1 - end]}…{text[len(text) - end :]}"


def short_hash(text) -> str:
    """Six characters that tell apart what has one name."""
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def markdown(text) -> str:
    """A text as it is, in Markdown: in a line, a heading or the cell of a table."""
    text = re.sub(r"([\\`*_{}\[\]|~#])", r"\\\1", html.escape(escape_control_characters(text), quote=False))
    return text.replace("$", "&#36;")  # between two of them there are formulas


def csv_line(values) -> str:
    """A line of a CSV file for people: a text that a spreadsheet would run as a formula is quoted."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(map(_cell, values))
    return line.getvalue()


def _cell(value):
    if not isinstance(value, str):
        return value
    text = escape_control_characters(value)
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) and not _is_number(text) else text


def _is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True
