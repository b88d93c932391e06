"""Decode many picture files on all cores, in worker processes that run this module again (`run_worker`).

Threads would not do: for a small picture Pillow holds Python's lock for longer than it decodes. multiprocessing runs
the user's script again in every worker, and joblib's workers take seconds to start. This module imports little.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import queue
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cnnlab.data.decoding import UndecodableError, UnreadError, decode_bytes, read_file
from cnnlab.data.perceptual_hash import difference_hash
from cnnlab.errors import LabError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Files = Sequence[str] | npt.NDArray[np.object_]

CHUNK = 100  # files a task at most
PATIENCE, WORTH = 0.1, 0.5  # seconds: decode in this process that long, then start workers if that much is left
WORKER = "import sys; sys.path[:] = sys.argv[1:]; from cnnlab.data.parallel_decoding import run_worker; run_worker()"


@dataclass(frozen=True)
class FileFacts:
    """Hold what is known of a file after it was decoded, or could not be.

    Attributes:
        pixel_digest: sha256 of its pixels as they are stored.
        file_digest: sha256 of the file.
        difference_hash: of the picture, 64 bits.
        size: width and height before it became a square.
        grey_range: lowest and highest value of 16-bit grey.
        reason: why it does not decode; its pixels are 0 then.
        unread: whether that is because it cannot be read now.
    """

    pixel_digest: bytes
    file_digest: bytes = b""
    difference_hash: int = 0
    size: tuple[int, int] = (0, 0)
    grey_range: tuple[float, float] | None = None
    reason: str | None = None
    unread: bool = False


Decoded = tuple[bytes, list[FileFacts]]  # pixels `(n, side, side, 3) uint8` of n files, and the facts on each


def decode_files(
    root: str, files: Files, side: int, resize_mode: str, grey_range: tuple[float, float]
) -> Generator[Decoded]:
    """Decode files in order, and yield pixels and facts for a few files at a time.

    Args:
        root: the folder that the paths are relative to.
        files: paths.
        side, resize_mode, grey_range: as in `decode_bytes`.

    Raises:
        LabError: a worker process ended early.
    """
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
    starts = range(0, len(files), size)
    workers: list[subprocess.Popen[bytes]] = []
    idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()

    def ask_worker(chunk: list[str]) -> Decoded:
        worker = idle.get()
        try:
            reply = _ask(worker, chunk, how)
        finally:
            idle.put(worker)
        if isinstance(reply, Exception):
            raise reply
        return reply

    # Each thread only waits for a worker.
    threads = ThreadPoolExecutor(count)
    try:
        for _ in range(min(count, len(starts))):
            workers.append(_start_worker())
            idle.put(workers[-1])
        # A few chunks ahead only: who reads the pixels may be slower, and memory is bounded by them.
        waiting: list[Future[Decoded]] = []
        for start in starts:
            chunk = [os.path.join(root, file) for file in files[start : start + size]]
            waiting.append(threads.submit(ask_worker, chunk))
            if len(waiting) > 2 * count:
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.kill()  # on an error or Ctrl-C it may be busy; a thread that waits for it reads the end of its pipe
        threads.shutdown()
        for worker in workers:
            worker.communicate()


def _start_worker() -> subprocess.Popen[bytes]:
    """Start a worker process, in a session of its own so that it does not get the terminal's Ctrl-C."""
    command = [sys.executable, "-c", WORKER, *sys.path]
    pipe = subprocess.PIPE
    # libtiff writes its complaints about a broken file to stderr; the reason is in the worker's reply.
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, start_new_session=True)


def _ask(worker: subprocess.Popen[bytes], chunk: list[str], how: tuple[Any, ...]) -> Any:
    """Send a worker files to decode, and wait for the pixels and facts, or the error."""
    assert worker.stdin
    assert worker.stdout
    try:
        pickle.dump((chunk, how), worker.stdin)
        worker.stdin.flush()
        return pickle.load(worker.stdout)
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        raise LabError("Decoding failed: a worker process ended early. Is there enough memory?") from error


def run_worker() -> None:
    """Answer requests on stdin with pixels and facts, or with the error, on stdout, until the other end closes."""
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            files, how = pickle.load(sys.stdin.buffer)
            try:
                pixels, facts = zip(*(_decode_one(file, *how) for file in files), strict=True)
                reply = (b"".join(pixels), list(facts))
            except Exception as error:
                reply = error
            pickle.dump(reply, sys.stdout.buffer)
            sys.stdout.buffer.flush()
