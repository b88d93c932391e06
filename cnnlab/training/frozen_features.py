"""The stored features of frozen layers, and the pass that makes them."""

import hashlib
import json
import math
import os
import pickle
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from filelock import FileLock
from rich.console import Console
from rich.progress import Progress

from cnnlab.utils import user_cache
from cnnlab.utils.log import log
from cnnlab.utils.signals import signals_held
from cnnlab.utils.worker_pool import Here, Job, helpers, spread

JOB_BYTES = 2**23  # of images that a worker gets at a time, about
BATCH, BATCH_BYTES = 256, 2**28  # images a forward pass at most, and bytes of its largest layer's output


def load_or_compute(front, parts, first, unique, *, mirrored=False, dtype="float32"):
    """The features of images, memory-mapped, from the cache where they are there, else computed and stored.

    Args:
        front: `keras.Model` from images to features.
        parts: arrays of images.
        first: `(M,)` positions of the distinct images in the concatenated parts.
        unique: `(M,)` their digests, sorted.
        mirrored: of the mirror images.
        dtype: to store them in.

    Returns:
        `(M, ...)` of that dtype, in the order of `unique`; where they cannot be stored, in memory, and `None` where
        there is no room for them in memory either.
    """
    key = _cache_key(front, unique, mirrored, dtype)
    path = user_cache.cache_folder("features") / f"{key}.npy"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Of two processes that need it, one computes and the other waits.
        with FileLock(path.with_suffix(".lock")):
            stored = _load(path, (len(first), *front.output_shape[1:]))
            if stored is None:
                stored = _compute(front, parts, first, mirrored, dtype, path)
                user_cache.remove_oldest(keep=path)
            return stored
    except OSError as error:
        shape = (len(first), *front.output_shape[1:])
        size = math.prod(shape) * np.dtype(dtype).itemsize
        fits = size < psutil.virtual_memory().available / 2
        log.warning(
            f"features of frozen layers ({size / 1e6:,.0f} MB) cannot be stored in '{path.parent}' ({error}); "
            + ("keeping them in memory." if fits else "computing them in every epoch.")
        )
        if not fits:
            return None
        filled = _fill(np.empty(shape, dtype), front, parts, first, mirrored)
        return filled if len(filled) else _fill(np.empty(shape, filled.dtype), front, parts, first, mirrored)


def _cache_key(front, unique, mirrored, dtype):
    """sha256 of the images, the frozen weights, and the layers' configuration (with their precision) and versions."""
    import keras  # here, so that `cnnlab cache` answers without it

    key = hashlib.sha256(unique.tobytes())
    for weight in front.get_weights():
        key.update(np.ascontiguousarray(weight))
    key.update(_canonical_config(front).encode())
    key.update(f"{keras.__version__} {keras.backend.backend()} {mirrored} {dtype}".encode())
    return key.hexdigest()[:40]


def _canonical_config(front):
    """The front's configuration as JSON, without the running numbers that Keras puts into names (`get_item_3`)."""
    config = json.loads(front.to_json())
    names = {layer["name"]: f"operation{i}" for i, layer in enumerate(config["config"]["layers"])}
    names[front.name] = "front"

    def renamed(node):
        if isinstance(node, dict):
            return {key: renamed(value) for key, value in node.items()}
        if isinstance(node, list):
            return [renamed(value) for value in node]
        return names.get(node, node) if isinstance(node, str) else node

    return json.dumps(renamed(config), sort_keys=True)


def _load(path, shape):
    """The stored features memory-mapped, or `None` where there are none or they are damaged."""
    about = path.with_suffix(".json")
    if not path.exists() or not about.exists():
        return None
    try:
        expected = json.loads(about.read_text())["sha256"]
        with path.open("rb") as file:
            received = hashlib.file_digest(file, "sha256").hexdigest()
        if received != expected:
            raise ValueError("its checksum differs")
        stored = np.load(path, mmap_mode="r")
        if stored.shape != shape or stored.dtype.kind != "f":
            raise ValueError(f"{stored.dtype} of shape {stored.shape}")
        os.utime(path)  # the oldest out first goes by the last use
        return stored
    except Exception as error:  # of whatever is in the two files
        log.warning(f"the cached features '{path}' are damaged ({error}); computing them again.")
        return None


def _compute(front, parts, first, mirrored, dtype, path):
    """The features, written to `path` atomically."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=user_cache.UNFINISHED) as folder:
        fresh = Path(folder, path.name)
        stored = np.lib.format.open_memmap(fresh, "w+", dtype, (len(first), *front.output_shape[1:]))
        user_cache.reserve(fresh)
        stored = _fill(stored, front, parts, first, mirrored)
        if stored.dtype != dtype:
            return _compute(front, parts, first, mirrored, str(stored.dtype), path)
        stored.flush()
        with fresh.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        about = {"sha256": sha256, "shape": list(stored.shape), "what": f"up to layer {front.layers[-1].name}"}
        Path(folder, "about.json").write_text(json.dumps(about))
        os.replace(Path(folder, "about.json"), path.with_suffix(".json"))
        os.replace(fresh, path)
    return stored


def _fill(stored, front, parts, first, mirrored):
    """One pass over the images at positions `first` of the concatenated parts, into `stored`; where its type is too
    small for the features, an empty array of one that is not.

    The pass is spread over whatever workers help (`spread.helpers`); each of its jobs is some batches.
    """
    workers = helpers()
    batch = _batch_size(front)
    image_bytes = math.prod(parts[0].shape[1:]) * parts[0].dtype.itemsize
    rows = batch * max(1, int(JOB_BYTES // (batch * image_bytes)))
    # The last jobs are to end together, even where there are few rows.
    rows = min(rows, batch * max(1, len(first) // (4 * workers.room() * batch)))
    shared = workers.share(front if isinstance(workers, Here) else np.frombuffer(pickle.dumps(front), np.uint8))
    bounds = np.cumsum([0, *map(len, parts)])
    key = f"{id(stored)}-{time.monotonic_ns()}"
    starts = iter(range(0, len(first), rows))

    def ask():
        if (start := next(starts, None)) is None:
            return None
        positions = first[start : start + rows]
        owner = np.searchsorted(bounds, positions, side="right") - 1
        images = np.stack([parts[o][p - bounds[o]] for o, p in zip(owner, positions, strict=True)])
        if mirrored:
            images = images[:, :, ::-1]
        return Job(f"the pass from row {start:,}", _features_of, (shared, key, images, batch, stored.dtype.name, start))

    console = Console(stderr=True)
    title = f"Frozen layers over {len(first):,} {'mirrored ' if mirrored else ''}images"
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=len(first))
        for ended in spread(ask, workers, ahead=2):
            start, features = ended.result()
            if features is None:
                log.warning(f"frozen layers' features are too large for {stored.dtype}; storing them in float32.")
                return np.empty(0, np.float32)
            stored[start : start + len(features)] = features
            progress.advance(task, len(features))
    return stored


_fronts = {}  # of this process as a worker, the last one, by the pass that it is for


def _features_of(front, key, images, batch, dtype, start):
    """`(start, features)` of some batches of images, or `(start, None)` where the type is too small for them."""
    if isinstance(front, np.ndarray):  # pickled, for a worker elsewhere
        if key not in _fronts:
            _fronts.clear()
            _fronts[key] = pickle.loads(front)
        front = _fronts[key]
    stored = np.empty((len(images), *front.output_shape[1:]), dtype)
    for i in range(0, len(images), batch):
        with signals_held():
            features = front.predict_on_batch(images[i : i + batch])
        if np.abs(features).max(initial=0) > np.finfo(stored.dtype).max:
            return start, None
        stored[i : i + batch] = features
    return start, stored


def _batch_size(front):
    """As many images as a pass has memory for: at 224 pixels a side there are fifty times as many values as at 32."""
    shapes = [shape for layer in front.layers if len(shape := getattr(layer.output, "shape", ())) == 4]
    largest = max((math.prod(side or 1 for side in shape[1:]) for shape in shapes), default=1)
    return max(8, min(BATCH, BATCH_BYTES // (4 * largest)))
