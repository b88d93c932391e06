"""Picture files, decoded once: their pixels in one memory-mapped file of the cache, and what is known of each."""

import contextlib
import hashlib
import json
import math
import os
import shutil
from dataclasses import dataclass

import numpy as np
import PIL
import psutil
from filelock import FileLock
from rich.console import Console
from rich.progress import Progress

from cnnlab.data.decoding import FORMATS, SIXTEEN_BITS
from cnnlab.data.disk_rows import forget
from cnnlab.data.parallel_decoding import decode_files
from cnnlab.data.perceptual_hash import find_near_duplicates
from cnnlab.errors import LabError
from cnnlab.utils import user_cache
from cnnlab.utils.log import log

RECHECK_VARIABLE = "CNNLAB_RECHECK"
WRITTEN_AT_ONCE = 2**24  # bytes between two notes of how far it is
# Of each file, as `parallel.Facts` has it; the lowest and highest value are NaN where it is not grey of 16 bits.
KNOWN = np.dtype(
    [("pixels", "S32"), ("content", "S32"), ("look", "u8"), ("size", "i4", 2), ("low", "f8"), ("high", "f8")]
)


@dataclass
class Decoded:
    """Decoded files, in their order.

    Attributes:
        pixels: `(N, side, side, 3) uint8`, memory-mapped where they are stored.
        known: `(N,)` of `KNOWN`.
        bad: position to why the file does not decode.
        near: `(M, 2) int`, positions of pictures of nearly the same look.
        unread: whether a file could not be read at all, which may pass.
    """

    pixels: np.ndarray
    known: np.ndarray
    bad: dict[int, str]
    near: np.ndarray | None = None
    unread: bool = False

    @property
    def digests(self) -> np.ndarray:
        """`(N,) S32`: sha256 of the pixels of each."""
        return self.known["pixels"]

    @property
    def looks(self) -> np.ndarray:
        """`(N,) uint64`: the difference hash of each."""
        return self.known["look"]

    @property
    def sizes(self) -> np.ndarray:
        """`(N, 2) int32`: width and height of each file."""
        return self.known["size"]

    @property
    def grey_range(self) -> tuple[float, float] | None:
        """Lowest and highest value of the 16-bit grey pictures, `None` where there are none."""
        grey = ~np.isnan(self.known["low"])
        return (float(self.known["low"][grey].min()), float(self.known["high"][grey].max())) if grey.any() else None

    def put(self, positions, part, facts):
        """Take a few files that were decoded, at positions one behind the other or anywhere."""
        self.pixels[positions] = np.frombuffer(part, np.uint8).reshape(-1, *self.pixels.shape[1:])
        for position, one in zip(positions, facts, strict=True):
            self.known[position] = (one.pixels, one.content, one.look, one.size, *(one.values or (np.nan, np.nan)))
            if one.reason:
                self.bad[position] = one.reason
            self.unread |= one.unread


def decoded(top, files, stamps, side, resize_mode) -> Decoded:
    """Decode files, or find them decoded.

    They are known by their names, sizes and times; with `$CNNLAB_RECHECK` by their bytes too. A pass that was killed
    goes on where it was.

    Args:
        top: the folder that the paths are relative to, absolute.
        files: `(N,)` relative paths.
        stamps: `(N, 3) int64`, as in `FolderScan`.
        side: pixels a side of the squares that they become.
        resize_mode: how, as in `decode_image`.

    Raises:
        LabError: there is no room for them, neither on the disk nor in memory.
    """
    what = f"{len(files):,} of {os.path.basename(top)} ({resize_mode})"

    def fill(made, done, note):
        _fill(made, done, top, files, side, resize_mode, note)

    def contents():
        return np.array([_digest(os.path.join(top, file)) for file in files], "S32")

    return load_or_build(_key(files, stamps, side, resize_mode), (len(files), side, side, 3), what, fill, contents)


def load_or_build(key, shape, what, fill, contents=None) -> Decoded:
    """Pictures of the cache, made where they are not there: as one file, or in memory where there is no room for it.

    Args:
        key: that they are known by.
        shape: `(N, side, side, 3)`.
        what: for those who look at the cache.
        fill: called with a `Decoded`, how many of its rows are there already, and a function to be called with how many
            there are then, so that a pass that is killed goes on from there.
        contents: gives `(N,)` sha256 of the files that they were made of, for `$CNNLAB_RECHECK`.

    Raises:
        LabError: there is no room for them, neither on the disk nor in memory.
    """
    path = user_cache.cache_folder("pictures") / f"{key}.npy"
    user_cache.bound()  # a wrong one is said before the work, not after it
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Of two processes that need them, one makes them and the other waits.
        with FileLock(path.with_suffix(".lock")):
            stored = _load(path, contents)
            if stored is None:
                stored = _build(path, shape, fill, what)
                user_cache.remove_oldest(keep=path)
            return stored
    except OSError as error:
        size = math.prod(shape)
        if size > psutil.virtual_memory().available / 2:
            raise LabError(
                f"Expected {size / 1e9:,.1f} GB for the decoded pictures in '{path.parent}'. Received: {error}. Make "
                "room, name another folder with CNNLAB_CACHE, or use a smaller --stored-size or --limit."
            ) from error
        log.warning(
            f"decoded pictures ({size / 1e6:,.0f} MB) cannot be stored in '{path.parent}' ({error}); keeping "
            "them in memory."
        )
    made = Decoded(np.empty(shape, np.uint8), np.zeros(shape[0], KNOWN), {})
    fill(made, 0, lambda done: None)
    return made


def _key(files, stamps, side, resize_mode):
    """sha256 of the names, sizes and times of the files, and of what decodes them."""
    key = hashlib.sha256(f"{side} {resize_mode} {PIL.__version__} {' '.join(FORMATS)}\n".encode())
    for file, (size, *times) in zip(files, stamps, strict=True):
        key.update(os.fsencode(f"{file}\0{size} {times[0]} {times[1]}\n"))
    return key.hexdigest()[:40]


def _load(path, contents):
    """What is stored, or `None` where there is nothing, or it is damaged or no longer what the files hold."""
    try:
        about = json.loads(path.with_suffix(".json").read_text())
        unread = bool(about["unread"])
        pixels = np.load(path, mmap_mode="r")
        with np.load(path.with_suffix(".npz")) as stored:
            known, near = stored["known"], stored["near"]
        bad = {int(position): str(reason) for position, reason in about["bad"].items()}
        if pixels.shape != tuple(about["shape"]) or known.shape != pixels.shape[:1] or known.dtype != KNOWN:
            raise ValueError("its parts do not belong together")
        positions = np.concatenate([near.ravel(), np.fromiter(bad, np.int64)])
        if len(positions) and not 0 <= positions.min() <= positions.max() < len(pixels):
            raise ValueError("it names pictures that it has not")
        os.utime(path)  # the oldest out first goes by the last use
    except FileNotFoundError:
        return None
    except Exception as error:  # of whatever is in the three files
        log.warning(f"the decoded pictures '{path}' are damaged ({error}); decoding again.")
        return None
    if unread:  # what could not be read then may be readable now
        return None
    if os.environ.get(RECHECK_VARIABLE):
        changed = np.count_nonzero(known["content"] != contents()) if contents else 0
        damaged = np.count_nonzero(known["pixels"] != np.array([hashlib.sha256(row).digest() for row in pixels], "S32"))
        log.info(f"Rechecked {len(known):,} pictures: {changed:,} files changed, {damaged:,} stored ones damaged.")
        if changed or damaged:
            return None
    return Decoded(pixels, known, bad, near)


def _digest(file):
    try:
        with open(file, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").digest()
    except OSError:
        return bytes(32)


def _build(path, shape, fill, what):
    """Make the pictures in `path`, going on where a pass that was killed has ended."""
    folder = path.parent / f"{user_cache.UNFINISHED}{path.stem}"
    fresh, known, notes = folder / path.name, folder / "known.npy", folder / "done.json"
    made, done = _unfinished(fresh, known, notes, shape)
    if not done:
        shutil.rmtree(folder, ignore_errors=True)
        # Said before anything is written.
        size, free = math.prod(shape), shutil.disk_usage(path.parent).free
        if size > free:
            raise OSError(f"{size / 1e6:,.1f} MB are needed, and {free / 1e6:,.1f} MB are free")
    try:
        if not done:
            folder.mkdir()
            for file, dtype, shape_ in ((fresh, np.uint8, shape), (known, KNOWN, shape[:1])):
                np.lib.format.open_memmap(file, "w+", dtype, shape_)
                user_cache.reserve(file)
            made = Decoded(np.load(fresh, mmap_mode="r+"), np.load(known, mmap_mode="r+"), {})

        def note(done):
            forget(made.pixels)
            _write(notes, {"done": done, "bad": made.bad, "unread": made.unread})

        fill(made, done, note)
        made.pixels.flush()
        np.savez(folder / "known.npz", known=made.known, near=made.near)
        about = {"shape": shape, "what": what, "bad": made.bad, "unread": made.unread}
        _write(folder / "about.json", about)
        os.replace(folder / "known.npz", path.with_suffix(".npz"))
        os.replace(fresh, path)
        os.replace(folder / "about.json", path.with_suffix(".json"))
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    made = Decoded(np.load(path, mmap_mode="r"), np.array(made.known), made.bad, made.near)
    shutil.rmtree(folder, ignore_errors=True)
    return made


def _write(file, content):
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(content))
    os.replace(partial, file)


def _unfinished(fresh, known, notes, shape):
    """What a pass that was killed has written, and how many files are done; `(None, 0)` where there is nothing to go on
    with. The pixels are compared with their digests: after a power failure they may not have reached the disk.
    """
    try:
        noted = json.loads(notes.read_text())
        done, bad = int(noted["done"]), {int(position): str(reason) for position, reason in noted["bad"].items()}
        room = (np.load(file, mmap_mode="r").nbytes for file in (fresh, known))
        whole = all(file.stat().st_size >= size for file, size in zip((fresh, known), room, strict=True))
        made = Decoded(np.load(fresh, mmap_mode="r+"), np.load(known, mmap_mode="r+"), bad)
        if (
            noted["unread"]
            or not whole
            or made.pixels.shape != shape
            or made.known.dtype != KNOWN
            or not 0 <= done <= len(made.known)
        ):
            return None, 0
        for position in range(done):
            if hashlib.sha256(made.pixels[position]).digest() != made.known["pixels"][position].ljust(32, b"\0"):
                return None, 0
        return made, done
    except Exception:  # of whatever is in the files
        return None, 0


def _fill(made, done, top, files, side, resize_mode, note):
    """Decode the files behind those that are done; grey ones of 16 bits then by the range of all of them."""
    console, noted = Console(stderr=True), done
    bar = Progress(console=console, disable=not console.is_terminal)
    with bar, contextlib.closing(decode_files(top, files[done:], side, resize_mode, SIXTEEN_BITS)) as parts:
        task = bar.add_task(f"Decoding {len(files):,} pictures", total=len(files), completed=done)
        for part, facts in parts:
            made.put(range(done, done + len(facts)), part, facts)
            done += len(facts)
            if (done - noted) * side * side * 3 >= WRITTEN_AT_ONCE:
                note(done)
                noted = done
            bar.update(task, completed=done)
    if made.grey_range not in (None, SIXTEEN_BITS):
        left = np.flatnonzero(~np.isnan(made.known["low"]))
        for part, facts in decode_files(top, files[left], side, resize_mode, made.grey_range):
            made.put(left[: len(facts)], part, facts)
            left = left[len(facts) :]
    made.near = find_near_duplicates(made.pixels, made.looks)
