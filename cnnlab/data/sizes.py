"""How large the pictures of a data set are."""

import numpy as np
from PIL import Image

from cnnlab.data.folders import pictures_below
from cnnlab.data.named import DEFAULT_DATASET, NAMED, is_folder

LOOKED_AT = 1000  # files of a folder


def picture_side(name_or_folder) -> int:
    """The longer side, in pixels, of the largest picture, as far as evenly spread files of a folder tell."""
    name = str(name_or_folder or DEFAULT_DATASET)
    if not is_folder(name):
        return NAMED[name].side
    files = sorted(pictures_below(name))
    spread = np.unique(np.linspace(0, len(files) - 1, min(len(files), LOOKED_AT)).astype(int)) if files else ()
    return max((_side(files[i]) for i in spread), default=0)


def _side(file):
    try:
        with Image.open(file) as image:
            return max(image.size)
    except (OSError, ValueError, Image.DecompressionBombError):  # what does not decode is said when it is read
        return 0
