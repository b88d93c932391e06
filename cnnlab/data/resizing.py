"""Resize the images of a built-in set, in memory, or into a file of the cache where they are too large for memory."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image

from cnnlab.data.decoded_cache import DecodedImages, load_or_build
from cnnlab.data.disk_rows import IN_MEMORY, MappedRows, row_digests

BYTES_AT_ONCE = 2**24  # of images that are resized between two writes to the cache, about


def resize_images(
    arrays: Sequence[npt.NDArray[np.uint8]], side: int, name: str, recheck: bool = False
) -> list[npt.NDArray[np.uint8] | MappedRows]:
    """Resize several arrays of images to RGB squares of one size.

    Args:
        arrays: of shape `(N, H, W)` or `(N, H, W, 3)`, uint8.
        side: pixels a side of the result.
        name: of the data set, for the list of what the cache holds.
        recheck: as in `load_dataset`.

    Returns:
        For each array `(N, side, side, 3) uint8`: an array, or, where all of them together are too large for memory,
        `MappedRows` of a file of the cache that is written once.

    Raises:
        LabError: there is no room for them, neither on the disk nor in memory.
    """
    ends = np.cumsum([0, *map(len, arrays)])
    if int(ends[-1]) * side * side * 3 <= IN_MEMORY:
        return [resize_to_rgb(images, side) for images in arrays]
    at_once = max(1, BYTES_AT_ONCE // (side * side * 3))
    key = hashlib.sha256(f"{side} {PIL.__version__} {[images.shape for images in arrays]}\n".encode())
    for images in arrays:
        key.update(np.ascontiguousarray(images).data)

    def fill(made: DecodedImages, done: int, save_progress: Callable[[int], None]) -> None:
        # Near duplicates are not searched for.
        made.known["low"], made.near_duplicates = np.nan, np.empty((0, 2), np.int64)
        for images, end in zip(arrays, ends[1:].tolist(), strict=True):
            while done < end:
                first = done - end + len(images)
                rows = resize_to_rgb(images[first : first + at_once], side)
                made.pixels[done : done + len(rows)] = rows
                made.known["pixels"][done : done + len(rows)] = row_digests(rows)
                done += len(rows)
                save_progress(done)

    shape = (int(ends[-1]), side, side, 3)
    what = f"{shape[0]:,} of {name}, resized"
    stored = load_or_build(key.hexdigest()[:40], shape, what, fill, recheck=recheck)
    rows = [np.arange(start, end) for start, end in itertools.pairwise(ends)]
    return [MappedRows([(stored.pixels, some)], digests=stored.digests) for some in rows]


def resize_to_rgb(images: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    """Resize `(N, H, W)` or `(N, H, W, 3) uint8` to `(N, side, side, 3) uint8`; grey becomes three equal channels."""
    if images.shape[1:3] != (side, side):
        size = (side, side)
        images = np.stack([np.asarray(Image.fromarray(i).resize(size, Image.Resampling.BILINEAR)) for i in images])
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=-1)
    return np.ascontiguousarray(images)
