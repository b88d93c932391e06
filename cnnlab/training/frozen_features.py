"""The cache of features that frozen layers give: load them, or run the layers over the images and store them."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import pickle
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import numpy.typing as npt
import psutil

from cnnlab.data.disk_rows import MappedRows
from cnnlab.utils import user_cache
from cnnlab.utils.log import log
from cnnlab.utils.screen import progress_bar
from cnnlab.utils.signals import signals_held
from cnnlab.utils.worker_pool import Job, ThisProcess, current_workers, run_jobs

if TYPE_CHECKING:
    import keras

JOB_BYTES = 2**23  # of images that a worker gets at a time, about
BATCH = 256  # images of a forward pass at most
BATCH_BYTES = 2**28  # of the largest layer's output in a forward pass at most

FeatureType = Literal["float16", "float32"]
Images = npt.NDArray[np.uint8] | MappedRows
Features = npt.NDArray[np.floating[Any]]


def load_or_compute(
    frozen: keras.Model,
    images: Sequence[Images],
    positions: npt.NDArray[np.integer[Any]],
    digests: npt.NDArray[np.bytes_],
    *,
    mirrored: bool = False,
    dtype: FeatureType = "float32",
) -> Features | None:
    """Load the features of images from the cache, memory-mapped, or compute and store them.

    Args:
        frozen: the frozen layers, from images to features.
        images: arrays `(N, H, W, 3)`.
        positions: `(M,)` positions of the distinct images in the concatenated arrays.
        digests: `(M,)` digests of these images, sorted.
        mirrored: whether to mirror the images first.
        dtype: the type to store features in; float32 is used where their values are too large for float16.

    Returns:
        `(M, ...)`, in the order of `digests`; in memory where they cannot be stored, and `None` where there is no room
        in memory either.
    """
    path = user_cache.cache_folder("features") / f"{_cache_key(frozen, digests, mirrored, dtype)}.npy"
    shape = (len(positions), *frozen.output_shape[1:])

    def fill(stored: Features) -> Features:
        return _fill(stored, frozen, images, positions, mirrored)

    try:
        compute = functools.partial(_compute, fill, shape, dtype, path, f"up to layer {frozen.layers[-1].name}")
        return user_cache.load_or_make(path, lambda: _load(path, shape), compute)
    except OSError as error:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        fits = size < psutil.virtual_memory().available / 2
        log.warning(
            f"features of frozen layers ({size / 1e6:,.0f} MB) cannot be stored in '{path.parent}' ({error}); "
            + ("keeping them in memory." if fits else "computing them in every epoch.")
        )
        if not fits:
            return None
        filled = fill(np.empty(shape, dtype))
        return filled if len(filled) else fill(np.empty(shape, filled.dtype))


def _cache_key(frozen: keras.Model, digests: npt.NDArray[np.bytes_], mirrored: bool, dtype: FeatureType) -> str:
    """Return a hash of the images, the frozen weights, the layers' configuration with their precision, and versions."""
    import keras  # here, so that `cnnlab cache` answers without it

    key = hashlib.sha256(digests.tobytes())
    for weight in frozen.get_weights():
        key.update(np.ascontiguousarray(weight))  # pyright: ignore[reportArgumentType]  an array is a buffer
    key.update(_canonical_config(frozen).encode())
    key.update(f"{keras.__version__} {keras.backend.backend()} {mirrored} {dtype}".encode())
    return key.hexdigest()[:40]


def _canonical_config(model: keras.Model) -> str:
    """Return a model's configuration as JSON, without the numbers that Keras puts into names (`get_item_3`)."""
    config = json.loads(model.to_json())
    names = {layer["name"]: f"operation{i}" for i, layer in enumerate(config["config"]["layers"])}
    names[model.name] = "front"  # a part of the key of every stored file

    def rename(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: rename(value) for key, value in node.items()}
        if isinstance(node, list):
            return [rename(value) for value in node]
        return names.get(node, node) if isinstance(node, str) else node

    return json.dumps(rename(config), sort_keys=True)


def _load(path: Path, shape: tuple[int, ...]) -> Features | None:
    """Load stored features memory-mapped; return `None` where there are none or they are damaged."""
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
        os.utime(path)  # the cache removes what was not used for longest
        return stored
    except Exception as error:  # damaged files make their readers raise anything
        log.warning(f"the cached features '{path}' are damaged ({error}); computing them again.")
        return None


def _compute(
    fill: Callable[[Features], Features], shape: tuple[int, ...], dtype: str, path: Path, what: str
) -> Features:
    """Compute features and write them to `path` atomically; return them memory-mapped."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=user_cache.UNFINISHED) as folder:
        unfinished = Path(folder, path.name)
        stored = np.lib.format.open_memmap(unfinished, "w+", dtype, shape)
        user_cache.reserve(unfinished)
        if (filled := fill(stored)).dtype != dtype:
            return _compute(fill, shape, str(filled.dtype), path, what)
        stored.flush()
        with unfinished.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        about = {"sha256": sha256, "shape": list(shape), "what": what}
        Path(folder, "about.json").write_text(json.dumps(about))
        os.replace(Path(folder, "about.json"), path.with_suffix(".json"))
        os.replace(unfinished, path)
    return stored


def _fill(
    stored: Features,
    frozen: keras.Model,
    images: Sequence[Images],
    positions: npt.NDArray[np.integer[Any]],
    mirrored: bool,
) -> Features:
    """Run the frozen layers over the images at these positions, and put the features into `stored`, which is returned.

    The pass is spread over the workers of `worker_pool.current_workers`; each job is some batches of images. An empty
    float32 array is returned where the type of `stored` is too small for the features.
    """
    workers = current_workers()
    batch_size = _batch_size(frozen)
    rows = _rows_of_a_job(images[0], batch_size, len(positions), workers.room())
    in_process = isinstance(workers, ThisProcess)
    shared = workers.share(frozen if in_process else np.frombuffer(pickle.dumps(frozen), np.uint8))
    pass_id = f"{id(stored)}-{time.monotonic_ns()}"
    starts = iter(range(0, len(positions), rows))

    def next_job() -> Job | None:
        if (start := next(starts, None)) is None:
            return None
        batches = _images_at(images, positions[start : start + rows], mirrored)
        arguments = (shared, pass_id, batches, batch_size, stored.dtype.name, start)
        return Job(f"the pass from row {start:,}", _features_of_job, arguments)

    title = f"Frozen layers over {len(positions):,} {'mirrored ' if mirrored else ''}images"
    with progress_bar(title, len(positions)) as advance:
        for ended in run_jobs(next_job, workers, ahead=2):
            start, features = cast("tuple[int, Features | None]", ended.result())
            if features is None:
                log.warning(f"frozen layers' features are too large for {stored.dtype}; storing them in float32.")
                return np.empty(0, np.float32)
            stored[start : start + len(features)] = features
            advance(len(features))
    return stored


def _rows_of_a_job(images: Images, batch_size: int, total: int, workers: int) -> int:
    """Return how many images a worker gets at a time: whole batches of about 8 MB, fewer where the pass is short."""
    image_bytes = math.prod(images.shape[1:]) * images.dtype.itemsize
    rows = batch_size * max(1, int(JOB_BYTES // (batch_size * image_bytes)))
    return min(rows, batch_size * max(1, total // (4 * workers * batch_size)))  # so that all workers end together


def _images_at(images: Sequence[Images], positions: npt.NDArray[np.integer[Any]], mirrored: bool) -> npt.NDArray[Any]:
    """Read the images at these positions of the concatenated arrays: `(len(positions), H, W, 3)`."""
    bounds = np.cumsum([0, *map(len, images)])
    arrays = np.searchsorted(bounds, positions, side="right") - 1
    read = np.stack([images[i][position - bounds[i]] for i, position in zip(arrays, positions, strict=True)])
    return read[:, :, ::-1] if mirrored else read


_unpickled: dict[str, keras.Model] = {}  # in a worker, the frozen layers of the latest pass, by `pass_id`


def _features_of_job(
    frozen: keras.Model | npt.NDArray[np.uint8],
    pass_id: str,
    images: npt.NDArray[Any],
    batch_size: int,
    dtype: str,
    start: int,
) -> tuple[int, Features | None]:
    """Return `start`, the row of the first of one job's images `(n, H, W, 3)`, and their features `(n, ...)`.

    These are `None` where the type is too small for them. For a worker in another process the frozen layers are pickled
    as bytes, which it unpickles once a pass.
    """
    if isinstance(frozen, np.ndarray):
        if pass_id not in _unpickled:
            _unpickled.clear()
            _unpickled[pass_id] = pickle.loads(frozen)
        frozen = _unpickled[pass_id]
    stored = np.empty((len(images), *frozen.output_shape[1:]), dtype)
    for i in range(0, len(images), batch_size):
        with signals_held():
            features = frozen.predict_on_batch(images[i : i + batch_size])
        if np.abs(features).max(initial=0) > np.finfo(stored.dtype).max:
            return start, None
        stored[i : i + batch_size] = features
    return start, stored


def _batch_size(frozen: keras.Model) -> int:
    """Return how many images fit in a forward pass: at 224 pixels a side, layers give fifty times the values of 32."""
    shapes = [shape for layer in frozen.layers if len(shape := getattr(layer.output, "shape", ())) == 4]
    largest = max((math.prod(side or 1 for side in shape[1:]) for shape in shapes), default=1)
    return max(8, min(BATCH, BATCH_BYTES // (4 * largest)))
