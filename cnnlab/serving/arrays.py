"""Images as arrays in JSON, as `/invocations` takes them."""

import json

import numpy as np

from cnnlab.errors import ArgumentError


class UnusualError(Exception):
    """A request that MLflow's own code has to answer."""


def is_json(kind) -> bool:
    """Whether a content type is JSON's, as nearly everybody sends it."""
    return kind.replace(" ", "").lower() in ("application/json", "application/json;charset=utf-8")


def read_images(body, shape) -> np.ndarray:
    """`{"inputs": [image, ...]}`, or "instances", as `(N, *shape) uint8`.

    MLflow's code is slow, as it copies all numbers four times: through lists, objects and floats. What is as it should
    be is read here, and answered the same; for all else MLflow finds the words.

    Raises:
        UnusualError: it is anything else.
    """
    try:
        content = json.loads(body)
        [(name, images)] = content.items()
        if name not in ("inputs", "instances"):
            raise UnusualError
        return checked(np.array(images), shape)
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise UnusualError from error


def checked(images, shape) -> np.ndarray:
    """`(N, *shape)` of whole numbers, 0 to 255, as uint8.

    Raises:
        ArgumentError: they are others.
    """
    if images.ndim != 4 or images.shape[1:] != shape or not len(images):
        raise _wrong(f"an array of shape (N, {', '.join(map(str, shape))})", f"shape {images.shape}")
    if not np.issubdtype(images.dtype, np.number) or not np.isfinite(images).all():
        raise _wrong("numbers", "others")
    low, high = images.min(), images.max()
    scaled = 0 < high <= 1 or (images != np.round(images)).any()
    if scaled or low < 0 or high > 255:
        raise _wrong("pixels as whole numbers from 0 to 255, not scaled", f"values from {low:g} to {high:g}")
    return images.astype(np.uint8)


def _wrong(expected, received):
    return ArgumentError(f"Expected {expected}. Received: {received}.")
