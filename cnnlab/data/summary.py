"""Describe a data set in sentences: its size, classes, picture sizes, and the files left out with the reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cnnlab.data.folder_scan import describe_left_out
from cnnlab.utils.text import escape_control_characters

if TYPE_CHECKING:
    from cnnlab.data.duplicates import DuplicatePair

RESIZE_WORDS = {"crop": "each cut to its middle square", "pad": "each padded to a square", "stretch": "each stretched"}
MOST_CLASSES = 10  # that are named
UNEVEN = 5  # times as many pictures of one class as of another are reported


@dataclass(frozen=True)
class DatasetSummary:
    """Hold what is reported about a data set when it is loaded, and what is stored with the runs on it."""

    lines: tuple[str, ...] = ()  # sentences for the screen
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)  # the paths that are not used, by reason
    tables: Mapping[str, str] = field(default_factory=dict)  # texts of CSV files, by artifact path
    duplicates: tuple[DuplicatePair, ...] = ()  # pairs of pictures that are the same or nearly so

    @property
    def text(self) -> str:
        """Return the lines, and every path that was left out."""
        lists = [
            f"\n{reason} ({len(paths):,}):\n" + "\n".join(f"  {escape_control_characters(path)}" for path in paths)
            for reason, paths in self.left_out.items()
        ]
        return "\n".join([*self.lines, *lists]) + "\n"


def describe_dataset(
    name: str,
    class_names: Sequence[str],
    counts: Mapping[str, int],
    side: int,
    *,
    labels: npt.NDArray[np.int64] | None = None,
    sizes: npt.NDArray[np.int32] | None = None,
    resize_mode: str | None = None,
    notes: Sequence[str] = (),
    left_out: Mapping[str, Sequence[str]] | None = None,
) -> tuple[str, ...]:
    """Describe a data set in sentences.

    Args:
        counts: pictures of each split; "val" is absent where the test set is the validation set too.
        side: pixels a side of the images in memory.
        labels: `(N,)` of the training images, to report uneven classes.
        sizes: `(N, 2)`, width and height of the files.
        notes: further sentences.
        left_out: the paths that are not used, by reason.
    """
    splits = [f"{counts['train']:,} training"]
    splits += [f"{counts['val']:,} validation"] if "val" in counts else []
    line = f"{name}: {', '.join(splits)} and {counts['test']:,} test pictures"
    if sizes is not None and len(sizes):
        line += f", {_describe_sizes(sizes)} pixels"
        line += f", {RESIZE_WORDS[resize_mode]}" if resize_mode and (sizes[:, 0] != sizes[:, 1]).any() else ""
    line += f", at {side} x {side}."
    notes, more = list(notes), len(class_names) - MOST_CLASSES
    if labels is not None and len(labels) and (uneven := _describe_uneven_classes(class_names, labels)):
        notes.append(uneven)
    names = ", ".join(class_names[:MOST_CLASSES]) + (f" and {more:,} more" if more > 0 else "")
    lines = [line, f"{len(class_names):,} classes: {names}."]
    if notes:
        lines.append(f"Note: {'; '.join(notes)}.")
    if left_out:
        lines.append(f"Left out: {escape_control_characters(describe_left_out(left_out))}.")
    return tuple(lines)


def _describe_uneven_classes(class_names: Sequence[str], labels: npt.NDArray[np.int64]) -> str:
    counts = np.bincount(labels, minlength=len(class_names))
    most, fewest = int(counts.argmax()), int(counts.argmin())
    if counts[most] < UNEVEN * counts[fewest]:
        return ""
    return (
        f"classes are uneven, from {counts[fewest]:,} of '{class_names[fewest]}' to {counts[most]:,} of "
        f"'{class_names[most]}' for training: look at balanced accuracy, and consider balanced class_weights"
    )


def _describe_sizes(sizes: npt.NDArray[np.int32]) -> str:
    smallest, largest = sizes[sizes.prod(axis=1).argmin()], sizes[sizes.prod(axis=1).argmax()]
    if (sizes == sizes[0]).all():
        return f"all {sizes[0][0]} x {sizes[0][1]}"
    return f"{smallest[0]} x {smallest[1]} to {largest[0]} x {largest[1]}"
