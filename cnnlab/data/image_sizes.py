"""The size of the largest picture of a data set, read from the files' headers before any picture is decoded."""

from __future__ import annotations

import contextlib
import os

import numpy as np
from PIL import Image

from cnnlab.data.builtin_sets import BUILTIN_SETS, DEFAULT_DATASET
from cnnlab.data.folder_layout import FolderLayout

MOST_FILES = 1000  # of a folder whose sizes are read


def largest_image_side(source: str | FolderLayout | None, resize_mode: str | None = "crop") -> int:
    """Return the side, in pixels, of the square that the largest picture becomes.

    Of a folder with many files, the sizes of 1,000 evenly spread ones are read.

    Args:
        source: what `locate_dataset` returns: a built-in set's name, `None` or a `FolderLayout`.
        resize_mode: as in `decode_image`. The shorter side of a cropped picture counts, else the longer one.
    """
    if not isinstance(source, FolderLayout):
        return BUILTIN_SETS[source or DEFAULT_DATASET].side
    files = source.files
    spread = np.unique(np.linspace(0, len(files) - 1, min(len(files), MOST_FILES)).astype(int)) if len(files) else []
    sides = [0]
    for file in files[spread]:
        # A file that does not decode is reported when its pixels are read.
        with contextlib.suppress(Exception), Image.open(os.path.join(source.root, file)) as image:
            sides.append(min(image.size) if resize_mode == "crop" else max(image.size))
    return max(sides)
