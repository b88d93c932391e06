"""Near duplicates among pictures, found by their difference hashes and confirmed by the correlation of their pixels.

Two pictures are near duplicates where one is the other saved again, resized a little, or taken a moment later.
"""

from __future__ import annotations

import imagehash
import numpy as np
import numpy.typing as npt
from PIL import Image

from cnnlab.data.disk_rows import release_pages

HASH_BITS = 64
MOST_DIFFERENT_BITS = 3  # between the hashes of near duplicates
BANDS = 4  # of a hash, one more than the bits that may differ: hashes of near duplicates agree in at least one band
LEAST_CORRELATION = 0.98  # of the grey pixels of near duplicates
PAIRS_AT_ONCE = 128
LARGEST_GROUP = 200  # pictures that agree in a band; larger groups (plain skies) are skipped, as they say nothing


def difference_hash(image: Image.Image) -> int:
    """Return the difference hash of a Pillow image: 64 bits, each of two neighbouring brightnesses."""
    return int(str(imagehash.dhash(image)), 16)


def find_near_duplicates(pixels: npt.NDArray[np.uint8], hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Find pairs of pictures `(N, side, side, 3) uint8` that look nearly the same.

    Pictures whose difference hashes `(N,) uint64` differ in at most 3 bits are compared pixel by pixel.

    Returns:
        `(M, 2) int64`, pairs of positions, the smaller position first.
    """
    pairs = _pairs_of_similar_hashes(hashes)
    kept = [pairs[:0]]
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        some = pairs[start : start + PAIRS_AT_ONCE]
        a, b = _grey_grid(pixels, some[:, 0]), _grey_grid(pixels, some[:, 1])
        size = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        correlation = (a * b).sum(axis=1) / np.where(size > 0, size, np.inf)  # 0 where a picture is constant
        kept.append(some[correlation > LEAST_CORRELATION])
        release_pages(pixels)
    return np.concatenate(kept)


def _pairs_of_similar_hashes(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Return `(M, 2) int64`, sorted pairs of positions whose hashes differ in at most `MOST_DIFFERENT_BITS` bits."""
    width, found = HASH_BITS // BANDS, [np.empty((0, 2), np.int64)]
    for band in range(BANDS):
        keys = ((hashes >> np.uint64(band * width)) & np.uint64(2**width - 1)).astype(np.int64)
        group_sizes = np.bincount(keys, minlength=2**width)[keys]
        order = np.flatnonzero((group_sizes > 1) & (group_sizes <= LARGEST_GROUP))
        order = order[np.argsort(keys[order], kind="stable")]
        for shift in range(1, LARGEST_GROUP):
            a, b = order[:-shift], order[shift:]
            same_key = keys[a] == keys[b]
            if not same_key.any():
                break
            a, b = a[same_key], b[same_key]
            similar = np.bitwise_count(hashes[a] ^ hashes[b]) <= MOST_DIFFERENT_BITS
            found.append(np.sort(np.stack([a[similar], b[similar]], axis=1), axis=1))
    return np.unique(np.concatenate(found), axis=0)


def _grey_grid(pixels: npt.NDArray[np.uint8], positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Return `(n, P) float32`: grey pixels in a grid of about 32 x 32, less the mean of each picture."""
    step = max(1, pixels.shape[1] // 32)
    grey = pixels[positions][:, ::step, ::step].mean(axis=3, dtype=np.float32).reshape(len(positions), -1)
    return grey - grey.mean(axis=1, keepdims=True)
