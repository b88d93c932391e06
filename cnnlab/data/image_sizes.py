"""How large the pictures of a data set are, before they are read."""

import os

import numpy as np
from PIL import Image

from cnnlab.data.builtin_sets import BUILTIN_SETS, DEFAULT_DATASET
from cnnlab.data.folder_layout import FolderLayout

LOOKED_AT = 1000  # files of a folder


def largest_image_side(source, resize_mode="crop") -> int:
    """The side, in pixels, of the square of the largest picture, as far as evenly spread files of a folder tell.

    Args:
        source: what `data.locate_dataset` gives: a name, `None` or a `FolderLayout`.
        resize_mode: as in `decode_image`; of a picture that is cut, the shorter side counts, else the longer one.
    """
    if not isinstance(source, FolderLayout):
        return BUILTIN_SETS[source or DEFAULT_DATASET].side
    files = source.files
    spread = np.unique(np.linspace(0, len(files) - 1, min(len(files), LOOKED_AT)).astype(int)) if len(files) else ()
    shorter_or_longer = min if resize_mode == "crop" else max
    return max((_side(os.path.join(source.top, files[i]), shorter_or_longer) for i in spread), default=0)


def _side(file, shorter_or_longer):
    try:
        with Image.open(file) as image:
            return shorter_or_longer(image.size)
    except Exception:  # what does not decode is said when it is read
        return 0
