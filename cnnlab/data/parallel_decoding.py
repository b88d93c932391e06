"""Decode many picture files on all cores, in worker processes.

Threads would not do: for a small picture Pillow holds Python's lock for longer than it decodes. This module imports
little, so that the processes start fast.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cnnlab.data.decoding import UndecodableError, UnreadError, decode_bytes, read_file
from cnnlab.data.perceptual_hash import difference_hash
from cnnlab.utils.local_workers import ProcessWorkers
from cnnlab.utils.worker_pool import Job, run_jobs

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Files = Sequence[str] | npt.NDArray[np.object_]

CHUNK = 100  # files a task at most
PATIENCE, WORTH = 0.1, 0.5  # seconds: decode in this process that long, then start workers if that much is left


@dataclass(frozen=True)
class FileFacts:
    """Hold what is known of a file after it was decoded, or could not be."""

    pixel_digest: bytes  # sha256 of its pixels as they are stored
    file_digest: bytes = b""  # sha256 of the file
    difference_hash: int = 0  # of the picture, 64 bits
    size: tuple[int, int] = (0, 0)  # width and height before it became a square
    grey_range: tuple[float, float] | None = None  # lowest and highest value of 16-bit grey
    reason: str | None = None  # why it does not decode; its pixels are 0 then
    unread: bool = False  # whether that is because it cannot be read now


Decoded = tuple[bytes, list[FileFacts]]  # pixels `(n, side, side, 3) uint8` of n files, and the facts on each


def decode_files(
    root: str, files: Files, side: int, resize_mode: str, grey_range: tuple[float, float]
) -> Generator[Decoded]:
    """Decode files in order as `decode_bytes` does, and yield pixels and facts for a few at a time."""
    start = time.perf_counter()
    for done, file in enumerate(files):
        spent = time.perf_counter() - start
        if done and spent > PATIENCE and spent / done * (len(files) - done) > WORTH:
            yield from _decode_in_workers(root, files[done:], (side, resize_mode, grey_range))
            return
        pixels, facts = _decode_one(os.path.join(root, file), side, resize_mode, grey_range)
        yield pixels, [facts]


def _decode_one(file: str, side: int, resize_mode: str, grey_range: tuple[float, float]) -> tuple[bytes, FileFacts]:
    try:
        content = read_file(file)
        decoded = decode_bytes(content, file, side, resize_mode, grey_range)
    except UndecodableError as error:
        pixels, unread = bytes(3 * side * side), isinstance(error, UnreadError)
        return pixels, FileFacts(hashlib.sha256(pixels).digest(), reason=str(error.reason), unread=unread)
    pixels = decoded.image.tobytes()
    digests = hashlib.sha256(pixels).digest(), hashlib.sha256(content).digest()
    return pixels, FileFacts(*digests, difference_hash(decoded.image), decoded.size, decoded.grey_range)


def _decode_in_workers(root: str, files: Files, how: tuple[Any, ...]) -> Iterator[Decoded]:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    size = min(CHUNK, len(files) // (4 * count) + 1)  # a few photographs are shared out too
    starts = deque(range(0, len(files), size))
    decoded: dict[int, Decoded] = {}  # what was decoded ahead of `position`, by the position of its first file
    position = 0

    def next_job() -> Job | None:
        # A few chunks ahead only: who reads the pixels may be slower, and memory is bounded by them.
        if not starts or starts[0] - position > 3 * count * size:
            return None
        start = starts.popleft()
        paths = [os.path.join(root, file) for file in files[start : start + size]]
        return Job(f"the decoding of {paths[0]} and what follows", _decode_chunk, (start, paths, how))

    with contextlib.closing(ProcessWorkers(min(count, len(starts)), loads_tensorflow=False)) as workers:
        for result in run_jobs(next_job, workers, ahead=2):
            start, chunk = result.result()
            decoded[start] = chunk
            while position in decoded:
                chunk = decoded.pop(position)
                position += size
                yield chunk


def _decode_chunk(start: int, paths: list[str], how: tuple[Any, ...]) -> tuple[int, Decoded]:
    pixels, facts = zip(*(_decode_one(path, *how) for path in paths), strict=True)
    return start, (b"".join(pixels), list(facts))
