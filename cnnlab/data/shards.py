"""Picture files, decoded once: their pixels in one memory-mapped file of the cache, and what is known of each."""

import contextlib
import hashlib
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import psutil
from filelock import FileLock
from rich.console import Console
from rich.progress import Progress

from cnnlab import cached
from cnnlab.data.images import FORMATS, SIXTEEN_BITS
from cnnlab.data.parallel import Facts, decode_files
from cnnlab.data.rows import forget
from cnnlab.errors import LabError

RECHECK_VARIABLE = "CNNLAB_RECHECK"
WRITTEN_AT_ONCE = 2**24  # bytes between two notes of how far it is


@dataclass(frozen=True)
class Decoded:
    """Decoded files, in their order.

    Attributes:
        pixels: `(N, side, side, 3) uint8`, memory-mapped where they are stored.
        digests: `(N,) S32`, sha256 of the pixels of each.
        looks: `(N,) uint64`, the difference hash of each.
        sizes: `(N, 2) int`, width and height of each file.
        bad: position to why the file does not decode.
        grey_range: lowest and highest value of 16-bit grey pictures, or `None` where there are none.
        path: the file of the pixels, or `None`.
    """

    pixels: np.ndarray
    digests: np.ndarray
    looks: np.ndarray
    sizes: np.ndarray
    bad: dict[int, str]
    grey_range: tuple[float, float] | None
    path: Path | None = None


def decoded(top, files, side, fit) -> Decoded:
    """Decode files, or find them decoded.

    They are known by their names, sizes and times; with `$CNNLAB_RECHECK` by their bytes too. A pass that was killed
    goes on where it was.

    Args:
        top: the folder that the paths are relative to, absolute.
        files: relative path to size in bytes and time in nanoseconds.
        side: pixels a side of the squares that they become.
        fit: how, as in `decode_image`.

    Raises:
        LabError: there is no room for them, neither on the disk nor in memory.
    """
    paths = [os.path.join(top, file) for file in files]
    what = f"{len(files):,} of {os.path.basename(top)} ({fit})"
    key = _key(files, side, fit)
    path = cached.cache_folder("pictures") / f"{key}.npy"
    size = len(files) * side * side * 3
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Of two processes that need them, one decodes and the other waits.
        with FileLock(path.with_suffix(".lock")):
            stored = _load(path, paths)
            if stored is None:
                _build(path, paths, side, fit, what)
                stored = _load(path, ())
                cached.remove_oldest(keep=path)
            return stored
    except OSError as error:
        if size > psutil.virtual_memory().available / 2:
            raise LabError(
                f"Expected {size / 1e9:,.1f} GB for the decoded pictures in '{path.parent}'. Received: {error}. Make "
                "room, name another folder with CNNLAB_CACHE, or use a smaller --picture-size or --limit."
            ) from error
        print(
            f"warning: decoded pictures ({size / 1e6:,.0f} MB) cannot be stored in '{path.parent}' ({error}); keeping "
            "them in memory.",
            file=sys.stderr,
        )
    pixels, facts = np.empty((len(paths), side, side, 3), np.uint8), []
    _fill(pixels, facts, paths, side, fit, lambda start, new: None)
    return Decoded(pixels, *_columns(facts))


def _key(files, side, fit):
    """sha256 of the names, sizes and times of the files, and of what decodes them."""
    key = hashlib.sha256(f"{side} {fit} {PIL.__version__} {' '.join(FORMATS)}\n".encode())
    for file, (size, time) in files.items():
        key.update(os.fsencode(f"{file}\0{size} {time}\n"))
    return key.hexdigest()[:40]


def _load(path, recheck):
    """What is stored, or `None` where there is nothing, or it is damaged or no longer what the files hold."""
    try:
        about = json.loads(path.with_suffix(".json").read_text())
        pixels = np.load(path, mmap_mode="r")
        with np.load(path.with_suffix(".npz")) as known:
            digests, looks, sizes = known["digests"], known["looks"], known["sizes"]
            contents = known["contents"]
        if pixels.shape != tuple(about["shape"]) or len(digests) != len(pixels):
            raise ValueError("its parts do not belong together")
        os.utime(path)  # the oldest out first goes by the last use
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as error:
        print(f"warning: the decoded pictures '{path}' are damaged ({error}); decoding again.", file=sys.stderr)
        return None
    if os.environ.get(RECHECK_VARIABLE) and recheck:
        changed = sum(
            _digest(file) != content.ljust(32, b"\0") for file, content in zip(recheck, contents, strict=True)
        )
        damaged = sum(
            hashlib.sha256(row).digest() != digest.ljust(32, b"\0") for row, digest in zip(pixels, digests, strict=True)
        )
        print(f"Rechecked {len(recheck):,} pictures: {changed:,} files changed, {damaged:,} stored ones damaged.")
        if changed or damaged:
            return None
    bad = {int(position): reason for position, reason in about["bad"].items()}
    grey_range = tuple(about["grey_range"]) if about["grey_range"] else None
    return Decoded(pixels, digests, looks, sizes, bad, grey_range, path)


def _digest(file):
    try:
        with open(file, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").digest()
    except OSError:
        return bytes(32)


def _build(path, paths, side, fit, what):
    """Decode the files into `path`, going on where a pass that was killed has ended."""
    shape, folder = (len(paths), side, side, 3), path.parent / f"{cached.UNFINISHED}{path.stem}"
    # Said before anything is written.
    size, free = int(np.prod(shape)), shutil.disk_usage(path.parent).free
    fresh, notes = folder / path.name, folder / "done.jsonl"
    facts = _done(notes)
    if not facts:
        shutil.rmtree(folder, ignore_errors=True)
        if size > free:
            raise OSError(f"only {free / 1e9:,.1f} GB are free")
        folder.mkdir()
        np.lib.format.open_memmap(fresh, "w+", np.uint8, shape)
        cached.reserve(fresh)
    try:
        pixels = np.load(fresh, mmap_mode="r+")
        with notes.open("a") as file:

            def note(start, new):
                forget(pixels)
                file.write(json.dumps([start, [_as_json(one) for one in new]]) + "\n")
                file.flush()

            _fill(pixels, facts, paths, side, fit, note)
        pixels.flush()
        digests, looks, sizes, bad, grey_range = _columns(facts)
        contents = np.array([one.content for one in facts], "S32")
        np.savez(folder / "known.npz", digests=digests, looks=looks, sizes=sizes, contents=contents)
        about = {"shape": shape, "what": what, "bad": bad, "grey_range": grey_range}
        Path(folder, "about.json").write_text(json.dumps(about))
        os.replace(folder / "known.npz", path.with_suffix(".npz"))
        os.replace(fresh, path)
        os.replace(folder / "about.json", path.with_suffix(".json"))
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _done(notes):
    """The facts of the files that a pass that was killed has written."""
    facts = []
    with contextlib.suppress(OSError, ValueError):  # none, or a last line that is not whole
        for line in notes.read_text().splitlines():
            start, new = json.loads(line)
            if start != len(facts):
                break
            facts.extend(
                Facts(
                    bytes.fromhex(pixels), bytes.fromhex(content), look, tuple(size), values and tuple(values), reason
                )
                for pixels, content, look, size, values, reason in new
            )
    return facts


def _as_json(facts):
    return [facts.pixels.hex(), facts.content.hex(), facts.look, facts.size, facts.values, facts.reason]


def _fill(pixels, facts, paths, side, fit, note):
    """Decode the files behind those whose `facts` are there; grey ones of 16 bits by the range of all of them."""
    console = Console(stderr=True)
    flat, row = pixels.reshape(-1), side * side * 3
    bar = Progress(console=console, disable=not console.is_terminal)
    done = len(facts)
    files = paths[done:]
    with bar, contextlib.closing(decode_files(files, side, fit, SIXTEEN_BITS)) as parts:
        task = bar.add_task(f"Decoding {len(paths):,} pictures", total=len(paths), completed=done)
        for part, new in parts:
            start = len(facts)
            flat[start * row : (start + len(new)) * row] = np.frombuffer(part, np.uint8)
            facts.extend(new)
            if (len(facts) - done) * row >= WRITTEN_AT_ONCE:
                note(done, facts[done:])
                done = len(facts)
            bar.update(task, completed=len(facts))
    grey = [position for position, one in enumerate(facts) if one.values]
    low_high = _range(facts)
    if low_high and low_high != SIXTEEN_BITS:
        start = 0
        for part, new in decode_files([paths[position] for position in grey], side, fit, low_high):
            for i, one in enumerate(new):
                position = grey[start + i]
                flat[position * row : (position + 1) * row] = np.frombuffer(part[i * row : (i + 1) * row], np.uint8)
                facts[position] = one
            start += len(new)


def _range(facts):
    values = [one.values for one in facts if one.values]
    return (min(low for low, _ in values), max(high for _, high in values)) if values else None


def _columns(facts):
    digests = np.array([one.pixels for one in facts], "S32")
    looks = np.array([one.look for one in facts], np.uint64)
    sizes = np.array([one.size for one in facts], np.int32).reshape(-1, 2)
    bad = {position: one.reason for position, one in enumerate(facts) if one.reason}
    return digests, looks, sizes, bad, _range(facts)
