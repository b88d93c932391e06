"""Pictures of nearly the same look: as if one had been saved anew, resize_images a little, or taken a moment later."""

import numpy as np

from cnnlab.data.disk_rows import forget

HASH_BITS = 64
NEAR = 3  # bits in which the hashes of two pictures may differ
BANDS = 4  # of the hash, one more than NEAR: two hashes that are near agree in one of them
ALIKE = 0.98  # correlation of grey pixels, above which two pictures with near hashes are the same
AT_ONCE = 128  # pairs
CROWD = 200  # pictures with one band in common, above which it says nothing (plain skies)


def find_near_duplicates(pixels, looks):
    """Positions of pictures of nearly the same look.

    The look is the difference hash of the library ImageHash (64 bits, of neighbouring brightnesses); two pictures whose
    hashes differ in at most 3 bits are compared pixel by pixel.

    Args:
        pixels: `(N, side, side, 3) uint8`.
        looks: `(N,) uint64`.

    Returns:
        `(M, 2) int64`, the smaller position first.
    """
    width, found = HASH_BITS // BANDS, [np.empty((0, 2), np.int64)]
    for band in range(BANDS):
        keys = ((looks >> np.uint64(band * width)) & np.uint64(2**width - 1)).astype(np.int64)
        crowd = np.bincount(keys, minlength=2**width)[keys]
        order = np.flatnonzero((crowd > 1) & (crowd <= CROWD))
        order = order[np.argsort(keys[order], kind="stable")]
        for shift in range(1, CROWD):
            a, b = order[:-shift], order[shift:]
            together = keys[a] == keys[b]
            if not together.any():
                break
            a, b = a[together], b[together]
            near = np.bitwise_count(looks[a] ^ looks[b]) <= NEAR
            found.append(np.sort(np.stack([a[near], b[near]], axis=1), axis=1))
    pairs = np.unique(np.concatenate(found), axis=0)
    kept = [pairs[:0]]
    for start in range(0, len(pairs), AT_ONCE):
        some = pairs[start : start + AT_ONCE]
        kept.append(some[_likeness(_small(pixels, some[:, 0]), _small(pixels, some[:, 1])) > ALIKE])
        forget(pixels)
    return np.concatenate(kept)


def _small(pixels, positions):
    """`(n, P) float32`, grey pixels in a grid of about 32 x 32, each picture's mean taken off."""
    step = max(1, pixels.shape[1] // 32)
    grey = pixels[positions][:, ::step, ::step].mean(axis=3, dtype=np.float32).reshape(len(positions), -1)
    return grey - grey.mean(axis=1, keepdims=True)


def _likeness(a, b):
    """`(n,)`: the correlation of rows; 0 where one is plain."""
    size = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(axis=1) / np.where(size > 0, size, np.inf)
