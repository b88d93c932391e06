"""Images of a named set at another size: in memory, or in the cache where they are too large for it."""

import hashlib
import itertools

import numpy as np
import PIL
from PIL import Image

from cnnlab.data.decoded_cache import load_or_build
from cnnlab.data.disk_rows import IN_MEMORY, MappedRows

AT_ONCE = 2**24  # bytes, about


def resize_images(parts, side, name):
    """Images as RGB of one size; no near duplicates are looked for.

    Args:
        parts: of arrays `(N, H, W) uint8` or `(N, H, W, 3) uint8`.
        side: pixels a side that they are brought to.
        name: the data set's, for those who look at the cache.

    Returns:
        For each part `(N, side, side, 3) uint8`: an array, or `MappedRows` of what was made once and stored where all
        of them together are too large for memory.

    Raises:
        LabError: there is no room for them.
    """
    ends = np.cumsum([0, *map(len, parts)])
    if int(ends[-1]) * side * side * 3 <= IN_MEMORY:
        return [resize_to_rgb(images, side) for images in parts]
    few = max(1, AT_ONCE // (side * side * 3))
    key = hashlib.sha256(f"{side} {PIL.__version__} {[images.shape for images in parts]}\n".encode())
    for images in parts:
        key.update(np.ascontiguousarray(images))

    def fill(made, done, note):
        made.known["low"], made.near = np.nan, np.empty((0, 2), np.int64)
        for images, end in zip(parts, ends[1:].tolist(), strict=True):
            while done < end:
                first = done - end + len(images)
                rows = resize_to_rgb(images[first : first + few], side)
                made.pixels[done : done + len(rows)] = rows
                made.known["pixels"][done : done + len(rows)] = [hashlib.sha256(row).digest() for row in rows]
                done += len(rows)
                note(done)

    shape = (int(ends[-1]), side, side, 3)
    stored = load_or_build(key.hexdigest()[:40], shape, f"{shape[0]:,} of {name}, resize_images", fill)
    rows = [np.arange(start, end) for start, end in itertools.pairwise(ends)]
    return [MappedRows([(stored.pixels, some)], digests=stored.digests) for some in rows]


def resize_to_rgb(images, side):
    """`(N, H, W)` or `(N, H, W, 3) uint8` to `(N, side, side, 3) uint8`."""
    if images.shape[1:3] != (side, side):
        size = (side, side)
        images = np.stack([np.asarray(Image.fromarray(i).resize(size, Image.Resampling.BILINEAR)) for i in images])
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=-1)
    return np.ascontiguousarray(images)
