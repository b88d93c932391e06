"""Many picture files to uint8 pixels, on all cores.

The workers are this module again (`work`) and import little.
Threads would not do: for a small picture Pillow holds Python's lock for longer than it decodes. multiprocessing runs
the user's script again in every worker, and joblib's workers take seconds to start.
"""

import contextlib
import hashlib
import os
import pickle
import queue
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import imagehash

from cnnlab.data.decoding import UndecodableError, UnreadError, decode, read
from cnnlab.errors import LabError

CHUNK = 100  # images a task at most
PATIENCE, WORTH = 0.1, 0.5  # seconds: decode here that long, then start workers if that much is left
WORKER = "import sys; sys.path[:] = sys.argv[1:]; from cnnlab.data.parallel_decoding import work; work()"


@dataclass(frozen=True)
class Facts:
    """What is known of a file that was decoded, or was not.

    Attributes:
        pixels: sha256 of its pixels as they are stored.
        content: sha256 of the file.
        look: its difference hash, 64 bits.
        size: width and height before it became a square.
        values: lowest and highest value of 16-bit grey.
        reason: why it does not decode; its pixels are 0 then.
        unread: whether that is because it cannot be read now.
    """

    pixels: bytes
    content: bytes = b""
    look: int = 0
    size: tuple[int, int] = (0, 0)
    values: tuple[float, float] | None = None
    reason: str | None = None
    unread: bool = False


def decode_files(top, files, side, resize_mode, grey_range):
    """Yield `(pixels, facts)` for a few files at a time, in order: bytes of `(n, side, side, 3) uint8`, and `Facts` of
    each. The files' paths are relative to the folder `top`.
    """
    start = time.perf_counter()
    for done, file in enumerate(files):
        spent = time.perf_counter() - start
        if done and spent > PATIENCE and spent / done * (len(files) - done) > WORTH:
            yield from _decode_in_workers(top, files[done:], (side, resize_mode, grey_range))
            return
        pixels, facts = _decode_one(os.path.join(top, file), side, resize_mode, grey_range)
        yield pixels, [facts]


def _decode_one(file, side, resize_mode, grey_range):
    try:
        content = read(file)
        decoded = decode(content, file, side, resize_mode, grey_range)
    except UndecodableError as error:
        pixels = bytes(3 * side * side)
        return pixels, Facts(
            hashlib.sha256(pixels).digest(), reason=str(error.reason), unread=isinstance(error, UnreadError)
        )
    pixels = decoded.image.tobytes()
    digests = hashlib.sha256(pixels).digest(), hashlib.sha256(content).digest()
    return pixels, Facts(*digests, difference_hash(decoded.image), decoded.size, decoded.values)


def difference_hash(image) -> int:
    """The difference hash of a Pillow image, 64 bits."""
    return int(str(imagehash.dhash(image)), 16)


def _decode_in_workers(top, files, how):
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    size = min(CHUNK, len(files) // (4 * count) + 1)  # a few photographs are shared out too
    starts = range(0, len(files), size)
    workers, idle = [], queue.SimpleQueue()

    def ask_worker(chunk):
        worker = idle.get()
        try:
            pickle.dump((chunk, how), worker.stdin)
            worker.stdin.flush()
            reply = pickle.load(worker.stdout)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise LabError("Decoding failed: a worker process ended early. Is there enough memory?") from error
        finally:
            idle.put(worker)
        if isinstance(reply, Exception):
            raise reply
        return reply

    # Each thread only waits for a worker. In a session of their own, the workers don't get the terminal's Ctrl-C.
    threads = ThreadPoolExecutor(count)
    try:
        for _ in range(min(count, len(starts))):
            command = [sys.executable, "-c", WORKER, *sys.path]
            pipe = subprocess.PIPE
            # libtiff writes what it thinks of a broken file to stderr; the reason is in what the worker answers.
            workers.append(
                subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, start_new_session=True)
            )
            idle.put(workers[-1])
        # A few chunks ahead only: the one who asks may be slower, and memory is bounded by them.
        waiting = []
        for start in starts:
            chunk = [os.path.join(top, file) for file in files[start : start + size]]
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


def work():
    """Answer requests on stdin with pixels and facts, or the error, on stdout, until the other end closes."""
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
