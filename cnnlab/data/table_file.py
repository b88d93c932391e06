"""Read the rows of a CSV file, in the encodings and with the delimiters that spreadsheets write."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from cnnlab.errors import ArgumentError, did_you_mean

DELIMITERS = "\t;,|"  # of equally good ones the first; spaces where there is none of them
LINES_TRIED = 50


def read_rows(file: str) -> list[list[str]]:
    """Read a CSV file whose values are separated by commas, semicolons, tabs, bars or spaces.

    Returns:
        The rows with a value, the header among them. A header without the name of the first column gets an empty one.

    Raises:
        ArgumentError: the file cannot be read, has one column, or a row has fewer or more values than the others.
    """
    try:
        text = re.sub(r"\Asep=.\r?\n", "", _decode(Path(file).read_bytes()))  # which Excel understands
        lines = list(_first_lines(text))
        delimiter = max(DELIMITERS, key=lambda one: _rows_divided(lines, one))
        delimiter = delimiter if _rows_divided(lines, delimiter) else " "
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        rows = [row for row in reader if any(map(str.strip, row))]
    except (OSError, UnicodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        advice = "Save it as CSV in UTF-8" if isinstance(error, UnicodeError) else "Name another file"
        near = did_you_mean(file, files=Path.is_file) if isinstance(error, FileNotFoundError) else ""
        raise ArgumentError(f"Expected '{file}' to be a CSV file. Received: {reason}. {advice}.{near}") from error
    if not rows:
        raise ArgumentError(
            f"Expected '{file}' to be a CSV file of two columns. Received: an empty one. Name another file."
        )
    width = max(2, Counter(map(len, rows)).most_common(1)[0][0])
    if len(rows[0]) == width - 1 and len(rows) > 1:
        rows[0] = ["", *rows[0]]
    for number, row in enumerate(rows, start=1):
        if len(row) < width or (len(row) > width and any(map(str.strip, row[width:]))):
            raise ArgumentError(
                f"Expected {width} columns in every row of '{file}'. Received: {len(row)} in row {number}. Complete or "
                "remove it, and write values with a delimiter in them in quotes."
            )
    return rows


def _decode(content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16")
    if 0 in content[:2]:  # of Latin letters, without a mark
        return content.decode("utf-16-be" if content[0] == 0 else "utf-16-le")
    return content.decode("utf-8-sig")


def _first_lines(text: str) -> Iterator[str]:
    """Yield the first lines that are not empty."""
    lines = (line for line in io.StringIO(text, newline="") if line.strip())
    yield from (line for line, _ in zip(lines, range(LINES_TRIED), strict=False))


def _rows_divided(lines: Sequence[str], delimiter: str) -> int:
    """Count the lines that a delimiter divides into the same number of values, two or more."""
    widths = Counter(map(len, csv.reader(lines, delimiter=delimiter, skipinitialspace=True)))
    return max((count for width, count in widths.items() if width > 1), default=0)
