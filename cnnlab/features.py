"""The frozen front of a model, run once over the images and kept on disk.

A frozen layer gives the same output for the same image in every epoch, run and search trial. The longest front of a
model that is frozen and has no randomness is found, its outputs ("features") are computed in large batches and stored,
and only the rest (the "head") is trained on them. The head's layers are the full model's own, so the full model is
trained when the head is.
"""

import contextlib
import hashlib
import json
import math
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cnnlab.interrupts import signals_held

BATCH = 256  # images a forward pass
CACHE_VARIABLE = "CNNLAB_CACHE"
LIMIT_VARIABLE = "CNNLAB_CACHE_GB"
DEFAULT_LIMIT_GB = 20
IN_MEMORY = 2**30  # bytes; larger features are read from the disk batch by batch


@dataclass(frozen=True)
class Split:
    """A model cut in two: `front` from images to features, `head` from features to probabilities.

    With `flips`, the model starts with a random horizontal flip: the head takes `(N, 2, ...)`, the features of an image
    and of its mirror image, and picks one of the two at random while training, the first one otherwise.
    """

    front: object
    head: object
    flips: bool


def split_at_frozen_front(model) -> Split | None:
    """Cut a compiled functional model behind its frozen, deterministic front.

    Returns:
        `None` where nothing is gained: no frozen weights before the first trained or random layer, or a graph that
        cannot be cut at one tensor. The head is compiled like the model, with the model's own optimizer.
    """
    import keras

    if not isinstance(model, keras.Model) or not getattr(model, "operations", None):
        return None
    layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    first = layers[0]
    flips = isinstance(first, keras.layers.RandomFlip) and first.mode == "horizontal"
    start = first.output if flips else model.inputs[0]
    live = next((layer for layer in layers[flips:] if layer.trainable_weights or _is_random(layer)), None)
    if live is None or len(model.inputs) > 1 or isinstance(live.input, list):
        return None
    try:
        front = keras.Model(start, live.input)
        head = keras.Model(live.input, model.outputs[0], name=model.name)
    except ValueError:  # something after the cut also needs something before it
        return None
    if not front.weights:
        return None
    if flips:
        both = keras.Input((None, *live.input.shape[1:]), name="features_and_mirrored")
        head = keras.Model(both, head(_pick_one_of_two()(both)), name=model.name)
    head.compile(
        optimizer=model.optimizer,
        loss=model.loss,
        metrics=model.get_compile_config()["metrics"],
        steps_per_execution=model.steps_per_execution,
    )
    return Split(front, head, flips)


def features_of(split, train_images, val_images, test_images):
    """The head's inputs for the three parts, from the cache where they are there, else computed and stored.

    All images go through the front in one pass, in an order of their own, so that another split of the same images
    finds the same file.

    Returns:
        Three arrays `(N, ...) float32`, with flips `(N, 2, ...)` for training and `(N, 1, ...)` for the rest; each a
        `MappedRows` instead where it is too large for memory.
    """
    parts = [train_images, val_images, test_images]
    hashes = [_image_hashes(part) for part in parts]
    unique, first = np.unique(np.concatenate(hashes), return_index=True)
    stored = _load_or_compute(split.front, parts, first, unique, mirrored=False)
    sources = [[(stored, np.searchsorted(unique, part))] for part in hashes]
    if split.flips:
        unique, first = np.unique(hashes[0], return_index=True)
        stored = _load_or_compute(split.front, [train_images], first, unique, mirrored=True)
        sources[0].append((stored, np.searchsorted(unique, hashes[0])))
    rows = [MappedRows(source, split.flips) for source in sources]
    return [part[:] if part.nbytes <= IN_MEMORY else part for part in rows]


class MappedRows:
    """Rows of memory-mapped arrays, read when indexed; with `stacked`, the arrays side by side on axis 1."""

    def __init__(self, sources, stacked):
        self.sources, self.stacked = sources, stacked
        stored, rows = sources[0]
        self.nbytes = len(sources) * len(rows) * stored[:1].nbytes

    def __len__(self):
        return len(self.sources[0][1])

    def __getitem__(self, index):
        arrays = [np.asarray(stored[rows[index]]) for stored, rows in self.sources]
        return np.stack(arrays, axis=1) if self.stacked else arrays[0]


def batches(rows, labels, batch_size, shuffle):
    """`MappedRows` and labels as a Keras dataset that reads one batch at a time, in a new order each epoch."""
    import keras

    class Batches(keras.utils.PyDataset):
        def __init__(self):
            super().__init__()
            self.batch_size = batch_size
            self.order = np.arange(len(rows))
            self.on_epoch_end()

        def __len__(self):
            return math.ceil(len(rows) / batch_size)

        def __getitem__(self, i):
            index = np.sort(self.order[i * batch_size : (i + 1) * batch_size])
            return rows[index], labels[index]

        def on_epoch_end(self):
            if shuffle:
                np.random.shuffle(self.order)  # noqa: NPY002  seeded by keras.utils.set_random_seed

    return Batches()


def cache_folder() -> Path:
    """Where features are kept: `$CNNLAB_CACHE`, else `cnnlab` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cnnlab"
    return Path(os.environ.get(CACHE_VARIABLE) or default) / "features"


def cache_entries() -> list[dict]:
    """What is stored, newest use first: `key`, `shape`, `bytes`, `used` (seconds since the epoch) and `front`."""
    entries = []
    for path in cache_folder().glob("*.npy"):
        with contextlib.suppress(OSError, ValueError):  # cleared or damaged meanwhile
            about = json.loads(path.with_suffix(".json").read_text())
            stat = path.stat()
            entries.append({"key": path.stem, **about, "bytes": stat.st_size, "used": stat.st_mtime})
    return sorted(entries, key=lambda entry: -entry["used"])


def clear_cache() -> int:
    """Remove every stored file; returns the bytes freed."""
    freed = 0
    for path in [path for ending in ("npy", "json", "lock") for path in cache_folder().glob(f"*.{ending}")]:
        freed += path.stat().st_size
        path.unlink(missing_ok=True)
    return freed


def _is_random(layer):
    """Whether a layer draws random numbers: its seed state is among its variables, but is no weight."""
    return len(layer.variables) > len(layer.weights)


def _pick_one_of_two():
    import keras

    class PickOneOfTwo(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="pick_one_of_two")
            self.seed_generator = keras.random.SeedGenerator()

        def call(self, both, training=False):  # (N, 2, ...) -> (N, ...)
            if not training:
                return both[:, 0]
            shape = (keras.ops.shape(both)[0],) + (1,) * (len(both.shape) - 2)
            mirrored = keras.random.uniform(shape, seed=self.seed_generator) < 0.5
            return keras.ops.where(mirrored, both[:, 1], both[:, 0])

        def compute_output_shape(self, shape):
            return (shape[0], *shape[2:])

    return PickOneOfTwo()


def _image_hashes(images):
    """`(N,)` of 32-byte sha256 digests, one an image."""
    return np.array([hashlib.sha256(image).digest() for image in images], dtype="S32")


def _load_or_compute(front, parts, first, unique, mirrored):
    from filelock import FileLock

    key = _cache_key(front, unique, mirrored)
    path = cache_folder() / f"{key}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):  # of two processes that need it, one computes and the other waits
        stored = _load(path)
        if stored is None:
            stored = _compute(front, parts, first, mirrored, path)
            _remove_oldest(keep=path)
    return stored


def _cache_key(front, unique, mirrored):
    """sha256 of the images, the frozen weights, and the layers' configuration (with their precision) and versions."""
    import keras

    key = hashlib.sha256(unique.tobytes())
    for weight in front.get_weights():
        key.update(np.ascontiguousarray(weight))
    key.update(_canonical_config(front).encode())
    key.update(f"{keras.__version__} {keras.backend.backend()} {mirrored}".encode())
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


def _load(path):
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
        os.utime(path)  # the oldest out first goes by the last use
        return stored
    except (OSError, ValueError, KeyError) as error:
        print(f"warning: the cached features '{path}' are damaged ({error}); computing them again.", file=sys.stderr)
        return None


def _compute(front, parts, first, mirrored, path):
    """One pass over the images at positions `first` of the concatenated parts, written to `path` atomically."""
    from rich.console import Console
    from rich.progress import track

    bounds = np.cumsum([0, *map(len, parts)])
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        fresh = Path(folder, path.name)
        stored = np.lib.format.open_memmap(fresh, "w+", np.float32, (len(first), *front.output_shape[1:]))
        title = f"Frozen layers over {len(first):,} {'mirrored ' if mirrored else ''}images"
        console = Console(stderr=True)
        steps = range(0, len(first), BATCH)
        for i in track(steps, title, console=console, disable=not console.is_terminal):
            positions = first[i : i + BATCH]
            owner = np.searchsorted(bounds, positions, side="right") - 1
            images = np.stack([parts[o][p - bounds[o]] for o, p in zip(owner, positions, strict=True)])
            if mirrored:
                images = images[:, :, ::-1]
            with signals_held():
                stored[i : i + BATCH] = front.predict_on_batch(images)
        stored.flush()
        with fresh.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        about = {"sha256": sha256, "shape": list(stored.shape), "front": f"{front.layers[-1].name}"}
        Path(folder, "about.json").write_text(json.dumps(about))
        os.replace(Path(folder, "about.json"), path.with_suffix(".json"))
        os.replace(fresh, path)
    return stored


def _remove_oldest(keep):
    limit = float(os.environ.get(LIMIT_VARIABLE) or DEFAULT_LIMIT_GB) * 1e9
    entries = cache_entries()
    total = sum(entry["bytes"] for entry in entries)
    for entry in reversed(entries):
        if total <= limit:
            break
        if entry["key"] != keep.stem:
            for suffix in (".npy", ".json"):
                (cache_folder() / f"{entry['key']}{suffix}").unlink(missing_ok=True)
            total -= entry["bytes"]
