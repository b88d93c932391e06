"""Decode the pictures of a folder once, and keep their pixels in one memory-mapped file of the user's cache.

An entry is three files: `KEY.npy` with the pixels, `KEY.npz` with the facts on each file, and `KEY.json`. A pass that
was killed is resumed where it ended.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
import psutil

from cnnlab.data.decoding import FORMATS, SIXTEEN_BITS
from cnnlab.data.disk_rows import release_pages, row_digests
from cnnlab.data.parallel_decoding import FileFacts, decode_files
from cnnlab.data.perceptual_hash import find_near_duplicates
from cnnlab.errors import LabError
from cnnlab.utils import user_cache
from cnnlab.utils.log import log
from cnnlab.utils.screen import progress_bar

WRITTEN_AT_ONCE = 2**24  # bytes of pixels between two notes of the progress
# What is stored of each file, as in `FileFacts`: the sha256 of its pixels and of its content, its difference hash, its
# width and height, and the lowest and highest value of 16-bit grey, which are NaN for other pictures.
FACTS_DTYPE = np.dtype(
    [("pixels", "S32"), ("content", "S32"), ("look", "u8"), ("size", "i4", 2), ("low", "f8"), ("high", "f8")]
)

Fill = Callable[["DecodedImages", int, Callable[[int], None]], None]


@dataclass
class DecodedImages:
    """Hold decoded pictures, and what is known of their files."""

    pixels: npt.NDArray[np.uint8]  # `(N, side, side, 3) uint8`, memory-mapped where they are stored
    known: npt.NDArray[Any]  # `(N,)` of `FACTS_DTYPE`
    bad: dict[int, str]  # why a file does not decode, by its position
    near_duplicates: npt.NDArray[np.int64]  # `(M, 2) int64`, positions of pictures that look nearly the same
    unread: bool = False  # whether a file could not be read at all, which may pass

    @property
    def digests(self) -> npt.NDArray[np.bytes_]:
        """Return `(N,) S32`, the sha256 of the pixels of each picture."""
        return self.known["pixels"]

    @property
    def file_digests(self) -> npt.NDArray[np.bytes_]:
        """Return `(N,) S32`, the sha256 of each file."""
        return self.known["content"]

    @property
    def sizes(self) -> npt.NDArray[np.int32]:
        """Return `(N, 2) int32`, the width and height of each file."""
        return self.known["size"]

    @property
    def grey_range(self) -> tuple[float, float] | None:
        """Return the lowest and highest value of the 16-bit grey pictures, `None` where there are none."""
        grey = ~np.isnan(self.known["low"])
        return (float(self.known["low"][grey].min()), float(self.known["high"][grey].max())) if grey.any() else None

    def store(self, positions: Iterable[int], pixels: bytes, facts: list[FileFacts]) -> None:
        """Store the pixels and facts of a few files at their positions."""
        positions = list(positions)
        self.pixels[positions] = np.frombuffer(pixels, np.uint8).reshape(-1, *self.pixels.shape[1:])
        for position, one in zip(positions, facts, strict=True):
            grey_range = one.grey_range or (np.nan, np.nan)
            self.known[position] = (one.pixel_digest, one.file_digest, one.difference_hash, one.size, *grey_range)
            if one.reason:
                self.bad[position] = one.reason
            self.unread |= one.unread


def decode_folder(
    root: str,
    files: npt.NDArray[np.object_],
    stamps: npt.NDArray[np.int64],
    side: int,
    resize_mode: str,
    recheck: bool = False,
) -> DecodedImages:
    """Decode files, or find them decoded in the cache by their names, sizes and times; and find near duplicates.

    Grey pictures of 16 bits are scaled by the range of all of them, which is known only once all are decoded; they are
    decoded twice.

    Args:
        root: the folder that the paths are relative to, absolute.
        files: `(N,)` relative paths.
        stamps: `(N, 3) int64`, as in `FolderScan`.
        side: pixels a side of the squares that they become.
        resize_mode: how, as in `decode_image`.
        recheck: whether the files' contents are compared with those that were decoded.

    Raises:
        LabError: there is no room for them, neither on the disk nor in memory.
    """

    def fill(made: DecodedImages, done: int, save_progress: Callable[[int], None]) -> None:
        saved, chunks = done, decode_files(root, files[done:], side, resize_mode, SIXTEEN_BITS)
        bar = progress_bar(f"Decoding {len(files):,} pictures", len(files), done)
        with bar as advance, contextlib.closing(chunks):
            for pixels, facts in chunks:
                made.store(range(done, done + len(facts)), pixels, facts)
                done += len(facts)
                if (done - saved) * side * side * 3 >= WRITTEN_AT_ONCE:
                    save_progress(done)
                    saved = done
                advance(len(facts))
        if made.grey_range not in (None, SIXTEEN_BITS):
            left = np.flatnonzero(~np.isnan(made.known["low"]))
            for pixels, facts in decode_files(root, files[left], side, resize_mode, made.grey_range):
                made.store(left[: len(facts)], pixels, facts)
                left = left[len(facts) :]
        made.near_duplicates = find_near_duplicates(made.pixels, made.known["look"])

    def contents() -> npt.NDArray[np.bytes_]:
        return np.array([_file_digest(os.path.join(root, file)) for file in files], "S32")

    key, shape = _key(files, stamps, side, resize_mode), (len(files), side, side, 3)
    what = f"{len(files):,} of {os.path.basename(root)} ({resize_mode})"
    return load_or_build(key, shape, what, fill, contents, recheck)


def load_or_build(
    key: str,
    shape: tuple[int, int, int, int],
    what: str,
    fill: Fill,
    contents: Callable[[], npt.NDArray[np.bytes_]] | None = None,
    recheck: bool = False,
) -> DecodedImages:
    """Load pictures of the cache, or build them there; in memory where the cache has no room for them.

    Args:
        key: the name of the entry.
        shape: `(N, side, side, 3)`.
        what: a description, for the list of what the cache holds.
        fill: called with `DecodedImages`, the number of rows that a killed pass has filled already, and a function to
            be called with the number of filled rows, so that a pass that is killed can be resumed.
        contents: returns `(N,)` sha256 of the files that the pictures were made of.
        recheck: whether stored pictures are compared with their digests, and these with `contents`.

    Raises:
        LabError: there is no room for them, neither on the disk nor in memory.
    """
    path = user_cache.cache_folder("pictures") / f"{key}.npy"
    user_cache.limit_bytes()  # a wrong limit is reported before the work, not after it
    try:
        return user_cache.load_or_make(
            path, lambda: _load(path, contents, recheck), lambda: _build(path, shape, fill, what)
        )
    except OSError as error:
        size = math.prod(shape)
        if size > psutil.virtual_memory().available / 2:
            raise LabError(
                f"Expected {size / 1e9:,.1f} GB for the decoded pictures in '{path.parent}'. Received: {error}. Make "
                "room, name another folder with CNNLAB_CACHE, or use a smaller stored_size or limit."
            ) from error
        log.warning(
            f"decoded pictures ({size / 1e6:,.0f} MB) cannot be stored in '{path.parent}' ({error}); keeping "
            "them in memory."
        )
    made = _empty(np.empty(shape, np.uint8), np.zeros(shape[0], FACTS_DTYPE))
    fill(made, 0, lambda done: None)
    return made


def _empty(pixels: npt.NDArray[np.uint8], known: npt.NDArray[Any], bad: dict[int, str] | None = None) -> DecodedImages:
    return DecodedImages(pixels, known, bad or {}, np.empty((0, 2), np.int64))


def _key(files: npt.NDArray[np.object_], stamps: npt.NDArray[np.int64], side: int, resize_mode: str) -> str:
    """Return a hash of the names, sizes and times of the files, and of everything that determines their pixels."""
    key = hashlib.sha256(f"{side} {resize_mode} {PIL.__version__} {' '.join(FORMATS)}\n".encode())
    for file, (size, *times) in zip(files, stamps, strict=True):
        key.update(os.fsencode(f"{file}\0{size} {times[0]} {times[1]}\n"))
    return key.hexdigest()[:40]


def _load(path: Path, contents: Callable[[], npt.NDArray[np.bytes_]] | None, recheck: bool) -> DecodedImages | None:
    """Load an entry; return `None` where there is none, or it is damaged, incomplete or outdated."""
    try:
        about = json.loads(path.with_suffix(".json").read_text())
        unread = bool(about["unread"])
        pixels = np.load(path, mmap_mode="r")
        with np.load(path.with_suffix(".npz")) as stored:
            known, near = stored["known"], stored["near"]
        bad = {int(position): str(reason) for position, reason in about["bad"].items()}
        if pixels.shape != tuple(about["shape"]) or known.shape != pixels.shape[:1] or known.dtype != FACTS_DTYPE:
            raise ValueError("its parts do not belong together")
        positions = np.concatenate([near.ravel(), np.fromiter(bad, np.int64)])
        if len(positions) and not 0 <= positions.min() <= positions.max() < len(pixels):
            raise ValueError("it names pictures that it has not")
        os.utime(path)  # `remove_oldest` goes by the last use
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever is in the three files
        log.warning(f"the decoded pictures '{path}' are damaged ({error}); decoding again.")
        return None
    if unread:  # a file that could not be read then may be readable now
        return None
    if recheck:
        changed = np.count_nonzero(known["content"] != contents()) if contents else 0
        damaged = np.count_nonzero(known["pixels"] != row_digests(pixels))
        log.info(f"Rechecked {len(known):,} pictures: {changed:,} files changed, {damaged:,} stored ones damaged.")
        if changed or damaged:
            return None
    return DecodedImages(pixels, known, bad, near)


def _file_digest(file: str) -> bytes:
    try:
        with open(file, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").digest()
    except OSError:
        return bytes(32)


def _build(path: Path, shape: tuple[int, int, int, int], fill: Fill, what: str) -> DecodedImages:
    """Build an entry of the cache, resuming a pass that was killed."""
    folder = path.parent / f"{user_cache.UNFINISHED}{path.stem}"
    fresh, known, progress = folder / path.name, folder / "known.npy", folder / "done.json"
    made, done = _unfinished(fresh, known, progress, shape) or (None, 0)
    if made is None:
        shutil.rmtree(folder, ignore_errors=True)
        # Before anything is written.
        size, free = math.prod(shape), shutil.disk_usage(path.parent).free
        if size > free:
            raise OSError(f"{size / 1e6:,.1f} MB are needed, and {free / 1e6:,.1f} MB are free")
    try:
        if made is None:
            folder.mkdir()
            for file, dtype, shape_ in ((fresh, np.uint8, shape), (known, FACTS_DTYPE, shape[:1])):
                np.lib.format.open_memmap(file, "w+", dtype, shape_)
                user_cache.reserve(file)
            made = _empty(np.load(fresh, mmap_mode="r+"), np.load(known, mmap_mode="r+"))
        building = made

        def save_progress(done: int) -> None:
            release_pages(building.pixels)
            _write_json(progress, {"done": done, "bad": building.bad, "unread": building.unread})

        fill(made, done, save_progress)
        if isinstance(made.pixels, np.memmap):
            made.pixels.flush()
        np.savez(folder / "known.npz", known=made.known, near=made.near_duplicates)
        _write_json(folder / "about.json", {"shape": shape, "what": what, "bad": made.bad, "unread": made.unread})
        os.replace(folder / "known.npz", path.with_suffix(".npz"))
        os.replace(fresh, path)
        os.replace(folder / "about.json", path.with_suffix(".json"))
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    made = DecodedImages(np.load(path, mmap_mode="r"), np.array(made.known), made.bad, made.near_duplicates)
    shutil.rmtree(folder, ignore_errors=True)
    return made


def _write_json(file: Path, content: dict[str, Any]) -> None:
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(content))
    os.replace(partial, file)


def _unfinished(
    fresh: Path, known: Path, progress: Path, shape: tuple[int, int, int, int]
) -> tuple[DecodedImages, int] | None:
    """Load what a killed pass has written, and how many files are done; return `None` where nothing can be used.

    The pixels are compared with their digests: after a power failure they may not have reached the disk.
    """
    try:
        noted = json.loads(progress.read_text())
        done, bad = int(noted["done"]), {int(position): str(reason) for position, reason in noted["bad"].items()}
        for file in (fresh, known):
            np.load(file, mmap_mode="r")  # fails with a file that is too short, which "r+" would lengthen
        made = _empty(np.load(fresh, mmap_mode="r+"), np.load(known, mmap_mode="r+"), bad)
        fits = made.pixels.shape == shape and made.known.dtype == FACTS_DTYPE and 0 < done <= len(made.known)
        if noted["unread"] or not fits or (row_digests(made.pixels[:done]) != made.known["pixels"][:done]).any():
            return None
        return made, done
    except Exception:  # whatever is in the files
        return None
