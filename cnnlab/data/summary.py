"""What was found in a data set, in words: numbers, classes, sizes, what was left out, and what was taken for what."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from cnnlab.data.folder_scan import describe_left_out
from cnnlab.utils.text import escape_control_characters

RESIZE_WORDS = {"crop": "each cut to its middle square", "pad": "each padded to a square", "stretch": "each stretched"}
NAMED = 10  # classes
UNEVEN = 5  # times as many pictures of one class as of another


@dataclass(frozen=True)
class DatasetSummary:
    """What is said of a data set before it is used.

    Attributes:
        lines: sentences for the screen.
        left_out: reason to paths.
        tables: texts by artifact path.
        duplicates: `duplicates.DuplicatePair`s.
    """

    lines: tuple[str, ...] = ()
    left_out: Mapping = field(default_factory=dict)
    tables: Mapping = field(default_factory=dict)
    duplicates: tuple = ()

    @property
    def text(self) -> str:
        """All of it, with every path that was left out."""
        lists = [
            f"\n{reason} ({len(paths):,}):\n" + "\n".join(f"  {escape_control_characters(path)}" for path in paths)
            for reason, paths in self.left_out.items()
        ]
        return "\n".join([*self.lines, *lists]) + "\n"


def describe(
    name, class_names, counts, side, *, labels=None, sizes=None, resize_mode=None, notes=(), left_out=None
) -> tuple[str, ...]:
    """Sentences on a data set.

    Args:
        name: the data set's.
        class_names: in label order.
        counts: pictures of each part, "val" being absent where the test set is it.
        side: pixels a side in memory.
        labels: `(N,)` of the training pictures.
        sizes: `(N, 2)` of the files, width and height.
        resize_mode: how they became squares.
        notes: further sentences.
        left_out: reason to paths.
    """
    left_out = left_out or {}
    parts = [f"{counts['train']:,} training", f"{counts['val']:,} validation"] if "val" in counts else []
    parts = parts or [f"{counts['train']:,} training"]
    line = f"{name}: {', '.join(parts)} and {counts['test']:,} test pictures"
    if sizes is not None and len(sizes):
        line += f", {_sizes(sizes)} pixels"
        line += f", {RESIZE_WORDS[resize_mode]}" if resize_mode and (sizes[:, 0] != sizes[:, 1]).any() else ""
    line += f", at {side} x {side}."
    notes, more = list(notes), len(class_names) - NAMED
    if labels is not None and len(labels) and (uneven := _uneven(class_names, labels)):
        notes.append(uneven)
    names = ", ".join(class_names[:NAMED]) + (f" and {more:,} more" if more > 0 else "")
    lines = [line, f"{len(class_names):,} classes: {names}."]
    if notes:
        lines.append(f"Note: {'; '.join(notes)}.")
    if left_out:
        lines.append(f"Left out: {escape_control_characters(describe_left_out(left_out))}.")
    return tuple(lines)


def _uneven(class_names, labels):
    counts = np.bincount(labels, minlength=len(class_names))
    most, fewest = int(counts.argmax()), int(counts.argmin())
    if counts[most] < UNEVEN * counts[fewest]:
        return ""
    return (
        f"classes are uneven, from {counts[fewest]:,} of '{class_names[fewest]}' to {counts[most]:,} of "
        f"'{class_names[most]}' for training: look at balanced accuracy, and consider --class-weight balanced"
    )


def _sizes(sizes):
    smallest, largest = sizes[sizes.prod(axis=1).argmin()], sizes[sizes.prod(axis=1).argmax()]
    if (sizes == sizes[0]).all():
        return f"all {sizes[0][0]} x {sizes[0][1]}"
    return f"{smallest[0]} x {smallest[1]} to {largest[0]} x {largest[1]}"
